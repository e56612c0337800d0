"""Qwen3.5 (gated DeltaNet + GQA hybrids) as pure functions over explicit pytrees, on torch-xla."""

from .chat import Chat, sampling_defaults
from .checkpoint import load, save
from .config import CheckpointError, Config, VisionConfig
from .devices import device_put
from .engine import Engine, QueueFull
from .family import presets
from .generate import generate, stream
from .jit import jit
from .materialize import init_params
from .model import decode, forward, logits, prefill
from .multimodal import Processor, Prompt, user_message
from .params import Params, Runtime, VisionParams
from .results import Completion, Piece, Timings, TokenLogprob
from .sampling import Sampling
from .saved_state import SavedState, load_state, save_state
from .slots import grow
from .state import AttentionState, DeltaNetState, State, init_state
from .tokenizer import Tokenizer
from .vision import encode_images

__all__ = [
    "AttentionState",
    "Chat",
    "CheckpointError",
    "Completion",
    "Config",
    "DeltaNetState",
    "Engine",
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

__version__ = "0.1.0"
