"""Qwen3.5 (gated DeltaNet + GQA hybrids) as pure functions over explicit pytrees, on torch-xla."""

from .checkpoint import load, save
from .config import CheckpointError, Config, VisionConfig
from .devices import device_put
from .family import presets
from .materialize import init_params
from .model import decode, forward, logits, prefill
from .params import Params, Runtime
from .state import AttentionState, DeltaNetState, State, init_state

__all__ = [
    "AttentionState",
    "CheckpointError",
    "Config",
    "DeltaNetState",
    "Params",
    "Runtime",
    "State",
    "VisionConfig",
    "decode",
    "device_put",
    "forward",
    "init_params",
    "init_state",
    "load",
    "logits",
    "prefill",
    "presets",
    "save",
]

__version__ = "0.1.0"
