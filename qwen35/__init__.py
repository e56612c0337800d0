"""Qwen3.5 (gated DeltaNet + GQA hybrids) as pure functions over explicit pytrees, on torch-xla."""

from .checks.errors import CheckpointError
from .files.checkpoint import load, save
from .files.materialize import init_params
from .files.saved_state import SavedState, load_state, save_state
from .generation.chat import Chat, sampling_defaults
from .generation.engine import Engine, QueueFull
from .generation.generate import generate, stream
from .generation.results import Completion, Piece, Timings, TokenLogprob
from .generation.sampling import Sampling
from .model.config import Config, VisionConfig
from .model.decoder import decode, forward, logits, prefill
from .model.moving import device_put
from .model.params import Params, Runtime, VisionParams
from .model.presets import presets
from .model.rows import grow
from .model.state import AttentionState, DeltaNetState, State, init_state
from .prompts.processor import Processor, Prompt, user_message
from .prompts.tokenizer import Tokenizer
from .sharding.mesh import Mesh
from .version import __version__
from .vision.tower import encode_images
from .xla.jit import jit

__all__ = [
    "AttentionState",
    "Chat",
    "CheckpointError",
    "Completion",
    "Config",
    "DeltaNetState",
    "Engine",
    "Mesh",
    "Params",
    "Piece",
    "Processor",
    "Prompt",
    "QueueFull",
    "Runtime",
    "Sampling",
    "SavedState",
    "State",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "VisionConfig",
    "VisionParams",
    "__version__",
    "decode",
    "device_put",
    "encode_images",
    "forward",
    "generate",
    "grow",
    "init_params",
    "init_state",
    "jit",
    "load",
    "load_state",
    "logits",
    "prefill",
    "presets",
    "sampling_defaults",
    "save",
    "save_state",
    "stream",
    "user_message",
]
