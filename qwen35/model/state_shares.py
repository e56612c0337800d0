"""States on the host: to the device and back; of all ranks joined to one, and cut for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..sharding import process, spmd
from ..sharding.mesh import Mesh
from ..xla.devices import device_put
from .all_ranks import kept_layers
from .config import Config
from .declarations import Units, axis_sizes, held_units
from .params import Params
from .state import State, StateTensor, declare_state


def place_state(params: Params, state: State) -> State:
    """A state on the CPU as one on params' device.

    Args:
        params: whose state it is.
        state: of all ranks, where they are in this process: one after the other along dimension 0.
    """
    mesh = params.runtime.mesh
    if mesh is None or params.runtime.rank is not None:
        return device_put(state, params.device.type)
    parts = pytree.tree_map(lambda tensor: tensor.chunk(mesh.size), tuple(state.layers))
    ranks = []
    for rank in range(mesh.size):
        layers = [type(layer)(*(chunks[rank] for chunks in layer)) for layer in parts]
        position, offset = (
            whole.chunk(mesh.size)[rank] for whole in (state.position, state.rope_offset)
        )
        ranks.append(State(position, offset, kept_layers(layers, params.runtime)))
    return spmd.stack(ranks, mesh)


def fetch_state(params: Params, tree: Any, replica: int | None = None) -> Any:
    """A state, or a tree of parts of one, on the CPU: what `place_state` takes.

    Args:
        replica: of all ranks of several dp rows only that one's.
    """
    mesh = params.runtime.mesh
    if mesh is None or params.runtime.rank is not None:
        return device_put(tree, "cpu")
    whole = spmd.fetch(tree)
    if replica is None or mesh.dp == 1:
        return whole
    return pytree.tree_map(lambda tensor: tensor.chunk(mesh.dp)[replica].clone(), whole)


def gather_state(params: Params, state: State) -> State:
    """The whole state on the CPU, whatever ranks it is split over.

    Of all ranks in one process it has the rows of all dp rows. With one process per rank, all of a
    tp group must call it, and each gets it.
    """
    mesh, rank = params.runtime.mesh, params.runtime.rank
    if mesh is None or mesh.size == 1:
        return _on_cpu(state)
    if rank is None:
        ranks = list(map(_plain, spmd.unstack(state, mesh)))
        groups = [[ranks[place] for place in group] for group in mesh.tp_groups]
        return _joined_rows([join_state(params.config, mesh, group) for group in groups])
    mine = _on_cpu(state)
    if mesh.tp == 1:
        return mine
    shares = [process.gather_tensor(tensor, mesh) for tensor in pytree.tree_leaves(mine)]
    structure = pytree.tree_structure(mine)
    ranks = [pytree.tree_unflatten(list(leaves), structure) for leaves in zip(*shares, strict=True)]
    return join_state(params.config, mesh, ranks)


def scatter_state(params: Params, state: State) -> State:
    """Of a whole state on the CPU what parameters of one or all ranks take, on their device.

    Raises:
        ValueError: the dp rows of all ranks can't have equally many of its rows.
    """
    mesh, rank = params.runtime.mesh, params.runtime.rank
    if mesh is None or (mesh.tp == 1 and rank is not None):
        return place_state(params, state)
    if rank is not None:
        return place_state(params, cut_state(params.config, mesh, rank, state))
    ranks = []
    for each in range(mesh.size):
        own = pytree.tree_map(lambda rows, each=each: process.split_batch(rows, mesh, each), state)
        ranks.append(cut_state(params.config, mesh, each, own))
    return place_state(params, _joined_rows(ranks))


def _joined_rows(states: Sequence[State]) -> State:
    return pytree.tree_map(lambda *parts: torch.cat(parts), *states)


def abstract_whole(config: Config, dtype: torch.dtype, batch: int, capacity: int) -> State:
    """The shapes and dtypes of a state that no ranks share, as tensors on the meta device."""
    sizes = axis_sizes(config)

    def empty(tensor: StateTensor) -> Tensor:
        shape = tensor.shape(sizes, None, 0, batch, capacity)
        return torch.empty(shape, dtype=tensor.dtype or dtype, device="meta")

    return pytree.tree_map(empty, declare_state(config))


def join_state(config: Config, mesh: Mesh, ranks: Sequence[State]) -> State:
    """The whole state of what the ranks of a tp group hold, on the CPU."""
    sizes = axis_sizes(config)

    def join(declared: StateTensor, *shares: Tensor) -> Tensor:
        split = _split_dim(declared)
        if split is None:
            return shares[0]
        dim, units = split
        shape = list(shares[0].shape)
        shape[dim] = sum(one.count * one.size for one in units)
        whole = shares[0].new_empty(shape)
        for rank, share in enumerate(shares):
            whole.index_copy_(dim, _places(units, sizes, mesh, rank), share)
        return whole

    return pytree.tree_map(join, declare_state(config), *ranks)


def cut_state(config: Config, mesh: Mesh, rank: int, state: State) -> State:
    """What a rank holds of a whole state on the CPU."""
    sizes = axis_sizes(config)

    def cut(declared: StateTensor, whole: Tensor) -> Tensor:
        split = _split_dim(declared)
        if split is None:
            return whole
        dim, units = split
        return whole.index_select(dim, _places(units, sizes, mesh, rank))

    return pytree.tree_map(cut, declare_state(config), state)


def _on_cpu(state: State) -> State:
    return _plain(device_put(state, "cpu"))


def _plain(state: State) -> State:
    """A state whose layers are a tuple, as declared."""
    return state._replace(layers=tuple(state.layers))


def _split_dim(declared: StateTensor) -> tuple[int, tuple[Units, ...]] | None:
    """The one dimension of a tensor that ranks split, and the units in it."""
    for dim, units in enumerate(declared.dims, 1):
        if units is not None and any(one.axis for one in units):
            return dim, units
    return None


def _places(units: Sequence[Units], sizes: dict[str, int], mesh: Mesh, rank: int) -> Tensor:
    """The places in the whole dimension of what a rank holds of it, in its order."""
    places: list[int] = []
    start = 0
    for one in units:
        for unit in held_units(one, sizes, mesh, rank):
            assert unit is not None  # no axis of a state is padded
            places += range(start + unit * one.size, start + (unit + 1) * one.size)
        start += one.count * one.size
    return torch.tensor(places)
