"""Rotary positions: partial, half-split, interleaved sections for images (mRoPE), YaRN."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import Config


def rope_table(config: Config, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles.

    Args:
        config: theta, rotary dimensions and sections.
        positions: integer positions, [B, T] for text or [3, B, T] for the rows t, h, w.

    Returns:
        Two float32 tensors [B, T, rotary_dim / 2].
    """
    frequency = _frequencies(config).to(positions.device)
    if positions.dim() == 3:
        positions = positions.movedim(0, -1)  # [B, T, 3]
        row = torch.tensor(_sections(config), device=positions.device)
        positions = positions[..., row]
    else:
        positions = positions[..., None]
    angles = positions.float() * frequency
    if config.yarn is None:
        return angles.cos(), angles.sin()
    # Queries and keys both grow by the scale, and so their products by its square.
    return angles.cos() * config.yarn.scale, angles.sin() * config.yarn.scale


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first 2·P dimensions of each head, pairing j with j + P.

    Args:
        x: [B, T, heads, D].
        cos, sin: [B, T, P] float32.

    Returns:
        The rotated tensor in x's dtype; computed in float32.
    """
    pairs = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = x[..., :pairs].float(), x[..., pairs : 2 * pairs].float()
    rotated = first * cos - second * sin, second * cos + first * sin
    return torch.cat([*(half.to(x.dtype) for half in rotated), x[..., 2 * pairs :]], -1)


def _frequencies(config: Config) -> Tensor:
    """The angle per position of each rotated pair, float32."""
    theta, dim = config.rope_theta, config.rotary_dim
    if config.yarn is not None:
        return config.yarn.frequencies(theta, dim)
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _sections(config: Config) -> list[int]:
    """Which position row (0 t, 1 h, 2 w) each rotated pair reads."""
    _, height, width = config.mrope_section
    return [
        1 if j % 3 == 1 and j < 3 * height else 2 if j % 3 == 2 and j < 3 * width else 0
        for j in range(config.rotary_dim // 2)
    ]
