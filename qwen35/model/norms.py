"""RMS norms; all arithmetic in float32, cast once at the end."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..forms import Plain


def rms_norm(forms: Plain, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zero-centred RMS norm over the last axis: x / rms(x) * (1 + weight), in x's dtype.

    The stored weight is raw; adding 1 in bfloat16 would round small weights away.
    """
    y = x.float()
    y = y * torch.rsqrt(forms.mean(y * y) + eps)
    return (y * (1.0 + forms.widen(weight))).to(x.dtype)


def gated_rms_norm(forms: Plain, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """DeltaNet's output norm: x / rms(x) * weight * silu(gate), float32; the weight is plain."""
    y = x.float()
    y = y * torch.rsqrt(forms.mean(y * y) + eps)
    return y * forms.widen(weight) * F.silu(gate.float())


def l2_norm(forms: Plain, x: Tensor) -> Tensor:
    """x / sqrt(sum(x^2) + 1e-6) over the last axis, float32; the eps inside the root."""
    y = x.float()
    return y * torch.rsqrt(forms.sum(y * y) + 1e-6)
