"""The device mesh: how many ways data and tensors are split, and which rank stands where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mesh:
    """A dp x tp grid of ranks; the tp ranks of one dp row are consecutive.

    Attributes:
        dp: data-parallel ways; each splits the batch.
        tp: tensor-parallel ways; each holds a share of every split tensor.
    """

    dp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for name in ("dp", "tp"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")

    @property
    def size(self) -> int:
        """Ranks in the mesh."""
        return self.dp * self.tp
