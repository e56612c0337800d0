"""Qwen3.5 (gated DeltaNet + GQA hybrids) as pure functions over explicit pytrees, on torch-xla."""

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
from .state import AttentionState, DeltaNetState, State, init_state
from .tokenizer import Tokenizer
from .vision import encode_images

__all__ = [
    "AttentionState",
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
    "init_params",
    "init_state",
    "jit",
    "load",
    "logits",
    "prefill",
    "presets",
    "save",
    "stream",
    "user_message",
]

__version__ = "0.1.0"
