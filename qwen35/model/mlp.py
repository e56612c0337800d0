"""The SwiGLU feed-forward."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..forms import Plain
from .params import AttentionLayer, DeltaNetLayer


def mlp(forms: Plain, layer: DeltaNetLayer | AttentionLayer, x: Tensor) -> Tensor:
    """silu(x Wgate) * (x Wup) Wdown; x [B, T, H], a rank's partial sum [B, T, H]."""
    gate, up = forms.matmul(x, layer.gate_up).chunk(2, dim=-1)
    inner = (F.silu(gate.float()) * up.float()).to(x.dtype)
    return forms.matmul(inner, layer.down)
