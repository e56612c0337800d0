"""YaRN: rotary frequencies and attention scaled for contexts beyond those of training.

Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (2023).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks.values import integer, is_number, positive_number, shown

_LONGEST = 2**31 - 1  # positions are int32


@dataclass(frozen=True)
class Yarn:
    """The rope parameters of type "yarn", by their names in a `config.json`.

    Attributes:
        factor: by how much the context is stretched.
        original_max_position_embeddings: the context that the model was trained with.
        attention_factor: what cosines and sines are multiplied by; None follows from the factor.
        beta_fast, beta_slow: pairs that turn more often than `beta_fast` times within the original
            context keep their frequency, those that turn less than `beta_slow` times are slowed
            down by the factor; between the two a ramp mixes both.
        mscale, mscale_all_dim: where both are given, the attention factor is a quotient of the two.
        truncate: whether the ramp's ends are rounded outwards to whole pairs.

    Raises:
        ValueError: a field is of the wrong kind or impossible; the text has the value.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        prefix, name = "rope_parameters.", "original_max_position_embeddings"
        if not is_number(self.factor) or self.factor < 1:
            raise ValueError(f"{prefix}factor must be at least 1, not {shown(self.factor)}")
        original = integer(prefix + name, getattr(self, name), 1, _LONGEST)
        object.__setattr__(self, name, original)
        if self.factor * original > _LONGEST:
            raise ValueError(f"{prefix}factor {self.factor} takes positions beyond {_LONGEST}")
        for field in ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            if getattr(self, field) is not None:
                positive_number(prefix + field, getattr(self, field))
        if self.beta_fast < self.beta_slow:
            raise ValueError(
                f"{prefix}beta_fast {self.beta_fast} must be at least beta_slow {self.beta_slow}"
            )
        if not isinstance(self.truncate, bool):
            raise ValueError(f"{prefix}truncate must be true or false, not {shown(self.truncate)}")

    @property
    def context(self) -> int:
        """Tokens of the stretched context."""
        return int(self.factor * self.original_max_position_embeddings)

    @property
    def scale(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return self._scale(self.mscale) / self._scale(self.mscale_all_dim)
        return self._scale(1)

    def _scale(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1

    def frequencies(self, theta: float, dim: int) -> Tensor:
        """Compute the angle by which each of the dim / 2 pairs turns per position, float32."""
        wavelengths = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        first, last = (self._pair(theta, dim, turns) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, dim - 1)
        if first == last:
            last += 0.001  # a step instead of a ramp
        ramp = (torch.arange(dim // 2, dtype=torch.float32) - first) / (last - first)
        kept = 1 - ramp.clamp(0, 1)
        return 1 / (self.factor * wavelengths) * (1 - kept) + 1 / wavelengths * kept

    def _pair(self, theta: float, dim: int, turns: float) -> float:
        """The pair, a broken number, that turns so many times within the original context."""
        wavelength = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(theta))


def stretched(yarn: Yarn | None, positions: int, context: int) -> Yarn | None:
    """Return YaRN that reaches `context` tokens, or what is there where that does.

    Args:
        yarn: what the model has.
        positions: its `max_position_embeddings`.
        context: tokens to reach.
    """
    if context <= max(positions, 0 if yarn is None else yarn.context):
        return yarn
    if yarn is None:
        return Yarn(context / positions, positions)
    return dataclasses.replace(yarn, factor=context / yarn.original_max_position_embeddings)
