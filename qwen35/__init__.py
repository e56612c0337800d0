"""Qwen3.5 (gated DeltaNet + GQA hybrids) as pure functions over explicit pytrees, on torch-xla."""

from .config import CheckpointError, Config, VisionConfig, presets
from .devices import device_put
from .model import decode, forward, logits, prefill
from .params import Params, Runtime, init_params
from .state import AttentionState, DeltaNetState, State, init_state

__version__ = "0.1.0"
