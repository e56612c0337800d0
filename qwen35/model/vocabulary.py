"""Tensors [B, V] over the vocabulary on the ranks, each of which keeps its block of columns.

Those of all ranks in one process are stacked as a state's tensors are, [ranks · B, V / tp].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sharding import process, spmd
from ..sharding.mesh import Mesh
from ..xla.devices import at_once, device_put
from .params import Params


def empty_vocabulary(params: Params, rows: int) -> Tensor:
    """Makes a tensor of zeros, float32, for so many rows, on params' device.

    Args:
        params: of one rank or of all.
        rows: in all dp rows together, where all ranks are here.
    """
    mesh, vocabulary = params.runtime.mesh or Mesh(), params.config.vocab_size
    if params.runtime.rank is not None:
        shape, device = (rows, vocabulary // mesh.tp), params.device
        return at_once(device, lambda: torch.zeros(shape, device=device))
    return spmd.stack([torch.zeros(rows // mesh.dp, vocabulary // mesh.tp)] * mesh.size, mesh)


def scatter_vocabulary(params: Params, whole: Tensor) -> Tensor:
    """Returns what one rank or all take of a tensor [B, V] on the CPU, on params' device."""
    mesh, rank = params.runtime.mesh or Mesh(), params.runtime.rank
    if rank is not None:
        mine = whole.chunk(mesh.tp, 1)[mesh.coordinates(rank)[1]]
        return device_put(mine.contiguous(), params.device.type)
    shares = [share for rows in whole.chunk(mesh.dp) for share in rows.chunk(mesh.tp, 1)]
    return spmd.stack(shares, mesh)


def gather_vocabulary(params: Params, shares: Tensor) -> Tensor:
    """Returns the whole tensor [B, V], on the CPU.

    Of all ranks in one process it has the rows of all dp rows. With one process per rank, all of a
    tp group must call it, and each gets it.
    """
    mesh = params.runtime.mesh or Mesh()
    if params.runtime.rank is None:
        ranks = spmd.unstack(shares, mesh)
        rows = [torch.cat([ranks[place] for place in group], 1) for group in mesh.tp_groups]
        return torch.cat(rows)
    mine = device_put(shares, "cpu")
    return mine if mesh.tp == 1 else torch.cat(process.gather_tensor(mine, mesh), 1)


def place_vocabulary(params: Params, shares: Tensor) -> Tensor:
    """Returns on params' device what `fetch_state` brought to the CPU."""
    if params.runtime.rank is not None:
        return device_put(shares, params.device.type)
    mesh = params.runtime.mesh or Mesh()
    return spmd.stack(shares.chunk(mesh.size), mesh)
