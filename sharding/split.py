"""A dimension of which each tensor-parallel rank holds a block, such as the vocabulary of logits.

What is asked of whole rows takes one collective of a few values a row, and all ranks get the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..xla.devices import indices
from .collectives import all_gather
from .mesh import Mesh

_EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True, eq=False)
class Split:
    """The last dimension of tensors [B, n], whole or this rank's block of it.

    Attributes:
        size: of the whole dimension; ids are places in it.
        mesh: its tp ranks hold equal blocks, one after the other; None is a single device.
        index: [1] int32, which of the blocks is here. Data, not a static choice: so all ranks run
            one and the same graph. None where tensors are whole.

    Raises:
        ValueError: the ranks can't have equal blocks, or ids are too large for float32, in which
            they go from rank to rank.
    """

    size: int
    mesh: Mesh | None = None
    index: Tensor | None = None

    def __post_init__(self) -> None:
        if self.size % self.ways:
            raise ValueError(f"{self.size} can't be split evenly over tp = {self.ways}")
        if self.size > _EXACT_IN_FLOAT32:
            raise ValueError(f"a dimension of {self.size} is over {_EXACT_IN_FLOAT32}")

    @property
    def ways(self) -> int:
        """Blocks that make up the whole."""
        return 1 if self.mesh is None else self.mesh.tp

    @property
    def width(self) -> int:
        """The size of a block."""
        return self.size // self.ways

    def ids(self, device: torch.device) -> Tensor:
        """Returns the ids of this block, [n] int32."""
        return self.ids_at(indices(self.width, device))

    def ids_at(self, places: Tensor) -> Tensor:
        """Returns the ids, int32, of what stands at some places of this block."""
        places = places.to(torch.int32)
        return places if self.index is None else places + self.index * self.width

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where ids stand in this block (0 for those that do not), and whether they do."""
        places = ids if self.index is None else ids - self.index * self.width
        here = (places >= 0) & (places < self.width)
        return torch.where(here, places, 0), here

    def gather(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Returns all ranks' parts, each [B, k] float32, as [B, ways, k], by one collective."""
        sizes = [part.shape[1] for part in parts]
        joined = all_gather(torch.cat(parts, 1), self.mesh)
        return joined.unflatten(1, (self.ways, -1)).split(sizes, dim=2)

    def sum(self, x: Tensor) -> Tensor:
        """Adds up the ranks' x [B, k] float32, in their order."""
        return x if self.ways == 1 else self.gather(x)[0].sum(1)

    def max(self, x: Tensor) -> Tensor:
        """Returns the largest of the ranks' x [B, k] float32."""
        return x if self.ways == 1 else self.gather(x)[0].amax(1)
