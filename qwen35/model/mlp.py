"""The SwiGLU feed-forward."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .linear import linear
from .params import AttentionLayer, DeltaNetLayer


def mlp(layer: DeltaNetLayer | AttentionLayer, x: Tensor) -> Tensor:
    """silu(x Wgate) * (x Wup) Wdown; x [B, T, H], a rank's partial sum [B, T, H]."""
    gate, up = linear(x, layer.gate_up, 2 * layer.down.shape[0]).chunk(2, dim=-1)
    inner = (F.silu(gate.float()) * up.float()).to(x.dtype)
    return linear(inner, layer.down, x.shape[-1])
