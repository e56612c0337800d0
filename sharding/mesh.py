"""The device mesh: how many ways data and tensors are split, and which rank stands where."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

_REDUCTIONS = ("activation", "float32")


@dataclass(frozen=True)
class Mesh:
    """A dp x tp grid of ranks; the tp ranks of one dp row are consecutive.

    Attributes:
        dp: data-parallel ways; each splits the batch.
        tp: tensor-parallel ways; each holds a share of every split tensor.
        reduce: what partial sums are added in: "activation" (the dtype that they have) or
            "float32" (twice the bytes of bfloat16 on the links, one rounding less per rank).

    Raises:
        ValueError: dp or tp is not a positive integer, or reduce is unknown.
    """

    dp: int = 1
    tp: int = 1
    reduce: str = "activation"

    def __post_init__(self) -> None:
        for name in ("dp", "tp"):
            value = getattr(self, name)
            ranks = _integer(value)
            if ranks is None or ranks < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
            object.__setattr__(self, name, ranks)
        if self.reduce not in _REDUCTIONS:
            raise ValueError(f"reduce must be one of {_REDUCTIONS}, not {self.reduce!r}")

    @property
    def size(self) -> int:
        """Ranks in the mesh."""
        return self.dp * self.tp

    def coordinates(self, rank: int) -> tuple[int, int]:
        """Returns (dp index, tp index) of a rank.

        Raises:
            ValueError: the rank is not in the mesh.
        """
        index = _integer(rank)
        if index is None or not 0 <= index < self.size:
            raise ValueError(
                f"rank {rank!r} is outside the mesh of dp {self.dp} x tp {self.tp} = {self.size} "
                f"ranks (0 to {self.size - 1})"
            )
        return divmod(index, self.tp)

    def rank(self, dp_index: int, tp_index: int) -> int:
        """Returns the rank at two indices of the grid; the inverse of `coordinates`."""
        for name, index, ways in (("dp", dp_index, self.dp), ("tp", tp_index, self.tp)):
            if not 0 <= index < ways:
                raise ValueError(f"{name} index {index} is outside 0 to {ways - 1}")
        return dp_index * self.tp + tp_index

    @property
    def tp_groups(self) -> list[list[int]]:
        """The groups that share one batch row set and split the tensors: one list per dp index."""
        return [list(range(d * self.tp, (d + 1) * self.tp)) for d in range(self.dp)]

    @property
    def dp_groups(self) -> list[list[int]]:
        """The groups that hold the same share of the tensors: one list per tp index."""
        return [list(range(t, self.size, self.tp)) for t in range(self.tp)]


def _integer(value: Any) -> int | None:
    """What acts as an integer as an int, None for anything else: this package imports no other."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
