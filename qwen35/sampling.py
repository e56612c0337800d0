"""Choosing the next token from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the most likely token; above, logits are divided by it.
        seed: seeds the draws. Row b of a batch draws from `seed` and b alone, so its tokens do
            not depend on its neighbours.
    """

    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.temperature, int | float) and not isinstance(
            self.temperature, bool
        )
        if not number or not math.isfinite(self.temperature) or self.temperature < 0:
            raise ValueError(f"temperature must be a number >= 0, not {self.temperature!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**62:
            raise ValueError(f"seed must be an integer from 0 to 2^62 - 1, not {self.seed!r}")


def choose(logits: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
    """The next token of each row: argmax of logits / temperature + Gumbel noise.

    The largest of logits perturbed by Gumbel noise is a draw from their softmax, so sampling
    needs neither a sort nor a cumulative sum.

    Args:
        logits: [B, V] float32.
        noise: standard Gumbel noise [B, V], or None for the most likely token.
        temperature: above 0 if there is noise.

    Returns:
        [B] int64.
    """
    if noise is not None:
        logits = logits / temperature + noise
    return logits.argmax(-1)


def gumbel(generators: list[torch.Generator], vocabulary: int) -> Tensor:
    """Standard Gumbel noise [B, V] on the CPU, row b from generator b."""
    rows = [
        torch.empty(vocabulary).exponential_(generator=generator).log_().neg_()
        for generator in generators
    ]
    return torch.stack(rows)
