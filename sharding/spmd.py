"""All ranks in one process, each on a device of its own: the virtual devices of XLA:CPU.

A tensor of the ranks is kept as one *stacked* tensor: the ranks' tensors one after the other
along dimension 0, each on its rank's device. `shard_map` runs a function that was written for one
rank on all of them: inside it every stacked tensor has a rank's shape, and the collectives of
`collectives` work across devices. One graph is traced, the one that each rank runs.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..xla import chains, private
from ..xla.devices import numbers_as_constants, run_pending_of, wait_for_device
from ..xla.turns import turn
from .mesh import Mesh


def start(mesh: Mesh) -> None:
    """Switches torch-xla to one device for each of the mesh's ranks, before it is first used.

    On the CPU that sets CPU_NUM_DEVICES; elsewhere the devices must be there.

    Raises:
        RuntimeError: torch-xla runs already, with another number of devices.
    """
    if os.environ.get("PJRT_DEVICE", "CPU") == "CPU":
        os.environ["CPU_NUM_DEVICES"] = str(mesh.size)
        os.environ.setdefault("PJRT_DEVICE", "CPU")
    import torch_xla

    torch_xla.runtime.use_spmd()
    devices = torch_xla.runtime.global_runtime_device_count()
    if devices != mesh.size:
        raise RuntimeError(
            f"dp {mesh.dp} x tp {mesh.tp} needs {mesh.size} devices, but torch-xla has {devices}; "
            "call sharding.spmd.start before anything else uses the XLA device"
        )


def stack(ranks: Sequence[Any], mesh: Mesh) -> Any:
    """Makes one stacked tree on the devices of the ranks' CPU trees, which must be alike in shape.

    Raises:
        ValueError: the number of trees is not that of the mesh's ranks.
    """
    if len(ranks) != mesh.size:
        raise ValueError(f"{len(ranks)} trees for a mesh of {mesh.size} ranks")
    return pytree.tree_map(lambda *shards: _stack(shards, mesh), *ranks)


def unstack(tree: Any, mesh: Mesh) -> list[Any]:
    """Takes the ranks' trees, to the CPU, out of a stacked tree."""
    whole = pytree.tree_map(lambda tensor: tensor.chunk(mesh.size), fetch(tree))
    return [
        pytree.tree_map(lambda chunks, rank=rank: chunks[rank], whole, is_leaf=_is_chunks)
        for rank in range(mesh.size)
    ]


def fetch(tree: Any) -> Any:
    """Brings a stacked tree to the CPU, stacked as before; what is there already stays.

    Each device is read by itself: what is split and read as a whole, torch-xla joins on the devices
    first, by a graph that it compiles every time.
    """
    remote = [leaf for leaf in pytree.tree_leaves(tree) if leaf.device.type == "xla"]
    with turn:
        run_pending_of(remote)
        wait_for_device()
        shards = iter(private._get_local_shards(remote))

    def read(tensor: Tensor) -> Tensor:
        if tensor.device.type != "xla":
            return tensor
        return torch.cat([shard for shard, _ in next(shards)])

    return pytree.tree_map(read, tree)


def shard_map(
    function: Callable[..., Any],
    mesh: Mesh,
    *,
    stacked: Collection[str],
    returns_stacked: Sequence[bool],
    row_axes: Mapping[str, int] = MappingProxyType({}),
) -> Callable[..., Any]:
    """Makes `function`, written for one rank, a function of all ranks' tensors.

    Args:
        function: sees tensors of a rank's shape, and returns a tuple (or one value).
        mesh: of all devices. Works inside `qwen35.jit` and lazily.
        stacked: the parameters whose tensors are stacked. The tensors of all others are whole:
            the rows are split over dp, and each tp rank gets the same.
        returns_stacked: for each of the returned values, whether to stack the ranks' tensors;
            others must be equal on the tp ranks and come back whole.
        row_axes: the parameters whose tensors have their rows along another dimension than 0.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        stacks: dict[int, tuple[Tensor, Tensor]] = {}  # by what is seen of them inside

        def enter(tensor: Tensor, name: str) -> Tensor:
            seen = _enter(tensor, mesh, name in stacked, row_axes.get(name, 0))
            if name in stacked:
                stacks[id(seen)] = seen, tensor
            return seen

        def leave(tensor: Tensor) -> Tensor:
            """A chain's operand: what came in as it is goes to jit as that."""
            _, stack = stacks.get(id(tensor), (tensor, None))
            return _leave(tensor, mesh, True) if stack is None else stack

        for name, value in bound.arguments.items():
            into = functools.partial(enter, name=name)
            bound.arguments[name] = pytree.tree_map_only(Tensor, into, value)
        inwards = functools.partial(_enter, mesh=mesh, stacked=True, axis=0)
        # A number that is an input of the graph belongs to no rank: where it meets tensors of one,
        # as in the carry of a loop, XLA's partitioner aborts the process.
        with numbers_as_constants(), chains.translated(leave, inwards, _of_all_ranks(mesh)):
            result = function(*bound.args, **bound.kwargs)
        parts = result if len(returns_stacked) > 1 else (result,)
        whole = tuple(
            pytree.tree_map_only(Tensor, functools.partial(_leave, mesh=mesh, stacked=kind), part)
            for part, kind in zip(parts, returns_stacked, strict=True)
        )
        return whole if len(returns_stacked) > 1 else whole[0]

    return run


@functools.cache
def _of_all_ranks(mesh: Mesh) -> Callable[[chains.Body], chains.Body]:
    """Returns what makes of a chain's body, written for one rank, one of all ranks' tensors."""

    @functools.cache
    def outside(body: chains.Body) -> chains.Body:
        every = inspect.signature(body).parameters
        return shard_map(body, mesh, stacked=every, returns_stacked=(True, True))

    return outside


def split_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Splits a tensor that was computed from `other` over the devices as that one is.

    XLA would choose a split by itself, and what is split otherwise needs a graph of its own.
    """
    if other.device.type == "xla" and private._get_xla_sharding_spec(other):
        private._xla_mark_sharding(tensor, private._get_xla_op_sharding(other))
    return tensor


def _is_chunks(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Tensor)


def _stack(shards: Sequence[Any], mesh: Mesh) -> Any:
    if not isinstance(shards[0], Tensor):
        return shards[0]
    shape = list(shards[0].shape)
    sharding = _sharding(mesh, len(shape), True)
    shape[0] *= mesh.size
    return private._global_tensor_from_cpu_shards(
        [shard.contiguous() for shard in shards], sharding, shape
    )


def _enter(tensor: Tensor, mesh: Mesh, stacked: bool, axis: int) -> Tensor:
    """Returns a rank's view of a tensor."""
    if not private._get_xla_sharding_spec(tensor) or (mesh.dp > 1 and not stacked):
        # Uploaded to all devices whole: split it in the graph, not the caller's data.
        tensor = tensor.permute(tuple(range(tensor.dim())))
        private._xla_mark_sharding(tensor, _sharding(mesh, tensor.dim(), stacked, axis))
    return private._spmd_full_to_shard_shape(tensor)


def _leave(tensor: Tensor, mesh: Mesh, stacked: bool) -> Tensor:
    """Makes the tensor of all ranks of a rank's."""
    if isinstance(tensor, chains.Passed):
        return tensor
    shape = list(tensor.shape)
    shape[0] *= mesh.size if stacked else mesh.dp
    # An annotation changes the tensor that it is given; that may be one that went in.
    tensor = tensor.permute(tuple(range(tensor.dim())))
    private._mark_manual_sharding(tensor, private.OpSharding([], [], [], 4))
    sharding = _sharding(mesh, tensor.dim(), stacked)
    tensor = private._spmd_shard_to_full_shape(tensor, sharding, shape, tensor.dtype)
    if mesh.dp > 1 and not stacked:
        # Every device gets all rows: what is split, torch-xla reads by a graph of its own.
        tensor = tensor.permute(tuple(range(tensor.dim())))
        private._xla_mark_sharding(tensor, _sharding(mesh, tensor.dim(), False, None))
    return tensor


@functools.cache
def _sharding(mesh: Mesh, dims: int, stacked: bool, axis: int | None = 0) -> Any:
    """Returns a sharding of dimension `axis` of `dims`, None is of none, over all ranks or over dp
    only."""
    import numpy
    from torch_xla.distributed import spmd

    grid = spmd.Mesh(numpy.arange(mesh.size), (mesh.dp, mesh.tp), ("dp", "tp"))
    over = ("dp", "tp") if stacked else "dp"
    return grid.get_op_sharding(tuple(over if dim == axis else None for dim in range(dims)))
