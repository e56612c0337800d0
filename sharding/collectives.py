"""The collectives of the tensor-parallel layout; on a single device all are the identity."""

from __future__ import annotations

from torch import Tensor

from .mesh import Mesh


def all_reduce(x: Tensor, mesh: Mesh | None) -> Tensor:
    """The sum of x over the tensor-parallel ranks."""
    if mesh is None or mesh.tp == 1:
        return x
    raise NotImplementedError(f"all_reduce over {mesh.tp} ranks")
