"""Which part of each tensor a rank holds."""

from __future__ import annotations

from collections.abc import Mapping

from .mesh import Mesh


def local_units(
    axis: str | None, sizes: Mapping[str, int], mesh: Mesh | None, rank: int
) -> tuple[int | None, ...]:
    """The units (heads, columns, rows) of a logical axis that a rank holds, in order.

    Args:
        axis: logical axis; None is replicated.
        sizes: the number of units of every logical axis of the model.
        mesh: the mesh; None is a single device.
        rank: the rank within the mesh.

    Returns:
        Indices into the axis. None stands for a padded unit, whose values are zero.
    """
    raise NotImplementedError
