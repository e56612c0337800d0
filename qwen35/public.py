"""The public names: `qwen35.NAME` for each of them, imported when the first is used."""

from .checks.errors import CheckpointError
from .evaluation.scoring import Scores, score, score_continuations
from .files.checkpoint import load, save
from .files.materialize import init_params
from .files.saved_state import SavedState, load_state, save_state
from .generation.answers import AnswerReader, Part
from .generation.chat import Chat, sampling_defaults
from .generation.choosing import choose
from .generation.engine import Engine, QueueFull
from .generation.generate import generate, stream
from .generation.results import Completion, Piece, Timings, TokenLogprob
from .generation.sampling_settings import Sampling
from .generation.tool_grammar import tool_grammar
from .model.config import Config, VisionConfig
from .model.decoder import decode, forward, logits, prefill
from .model.moving import device_put
from .model.observe import Observed, observe
from .model.params import Params, Runtime, VisionParams
from .model.presets import presets
from .model.rows import grow, repeat, stack, take
from .model.state import AttentionState, DeltaNetState, State, init_state
from .prompts.processor import Processor, Prompt, user_message
from .prompts.tokenizer import Tokenizer
from .sharding.mesh import Mesh
from .version import __version__
from .vision.tower import encode_images
from .xla.jit import jit

__all__ = [
    "AnswerReader",
    "AttentionState",
    "Chat",
    "CheckpointError",
    "Completion",
    "Config",
    "DeltaNetState",
    "Engine",
    "Mesh",
    "Observed",
    "Params",
    "Part",
    "Piece",
    "Processor",
    "Prompt",
    "QueueFull",
    "Runtime",
    "Sampling",
    "SavedState",
    "Scores",
    "State",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "VisionConfig",
    "VisionParams",
    "__version__",
    "choose",
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
    "observe",
    "prefill",
    "presets",
    "repeat",
    "sampling_defaults",
    "save",
    "save_state",
    "score",
    "score_continuations",
    "stack",
    "stream",
    "take",
    "tool_grammar",
    "user_message",
]
