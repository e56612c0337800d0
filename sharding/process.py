"""One process per rank, as torchrun starts them: groups, checks between ranks, failure."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed

from .mesh import Mesh
from .torchrun import launched

Item = TypeVar("Item")

TIMEOUT = 60.0
UNLIMITED = 365 * 24 * 3600.0  # seconds
_UNTIL_TOLD = datetime.timedelta(seconds=UNLIMITED)


def start(mesh: Mesh, *, backend: str = "gloo", timeout: float = TIMEOUT) -> int:
    """Joins the other ranks' processes and returns this one's rank.

    Args:
        mesh: the mesh; there must be exactly mesh.size processes.
        backend: "gloo" for CPU tensors; "xla" where each process has an XLA device (on Trainium
            torch-neuronx provides them; written from its documentation, not run there).
        timeout: seconds that a rank waits for the others in any collective before it fails.

    Raises:
        ValueError: the process was not started by torchrun, the number of processes is not
            mesh.size, or the timeout is not positive.
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
    if not launched():
        raise ValueError(
            f"a mesh of {mesh.size} processes is started by torchrun --nproc-per-node "
            f"{mesh.size}; RANK and WORLD_SIZE are not set here"
        )
    world = int(os.environ["WORLD_SIZE"])
    if world != mesh.size:
        raise ValueError(
            f"{world} processes were started, but dp {mesh.dp} x tp {mesh.tp} needs {mesh.size}"
        )
    if backend == "xla":
        import torch_xla.distributed.xla_backend  # noqa: F401 - registers the platform's plug-in, if it has one

    # Between XLA devices the collectives are torch-xla's own operations, which need no group. What
    # ranks tell each other lies on the CPU, and torch-xla's backend beside gloo takes that as well.
    with _quiet():
        distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
        _groups(mesh)
        if mesh.dp > 1:
            _replicas_group(mesh)
        if mesh.tp > 1:
            calls_group(mesh)
    return distributed.get_rank()


def stop() -> None:
    """Leaves the process group; later collectives need a new `start`."""
    _groups.cache_clear()
    calls_group.cache_clear()
    _replicas_group.cache_clear()
    distributed.destroy_process_group()


def tp_group(mesh: Mesh) -> distributed.ProcessGroup:
    """Returns the group of this rank's tensor-parallel peers.

    Raises:
        RuntimeError: there are no peers: `start` was not called.
    """
    return _groups(mesh)[0]


def dp_group(mesh: Mesh) -> distributed.ProcessGroup:
    """Returns the group of the ranks that hold the same share of the tensors as this one."""
    return _groups(mesh)[1]


@functools.cache
def _groups(mesh: Mesh) -> tuple[Any, Any]:
    """This rank's (tp, dp) groups. All ranks must create all groups in the same order."""
    if not distributed.is_initialized():
        raise RuntimeError(
            f"a collective over tp = {mesh.tp} on CPU tensors needs one process per rank: run "
            f"under torchrun --nproc-per-node {mesh.size} and call sharding.process.start first, "
            "or use the virtual devices of sharding.spmd"
        )
    if distributed.get_world_size() != mesh.size:
        raise RuntimeError(
            f"{distributed.get_world_size()} processes run, but dp {mesh.dp} x tp {mesh.tp} needs "
            f"{mesh.size}"
        )
    rank = distributed.get_rank()
    mine: list[Any] = []
    for groups in (mesh.tp_groups, mesh.dp_groups):
        if len(groups) == 1:
            mine.append(distributed.group.WORLD)
        elif len(groups[0]) == 1:
            mine.append(None)  # alone: there is nothing to communicate
        else:
            timeout = _timeout()
            created = [(members, distributed.new_group(members, timeout)) for members in groups]
            mine += [group for members, group in created if rank in members]
    return mine[0], mine[1]


@functools.cache
def calls_group(mesh: Mesh) -> distributed.ProcessGroup:
    """Returns a group of this rank's tensor-parallel peers over which the first tells the others
    what to do (see `following`): it alone gives up waiting after the timeout.

    All ranks must call it at the same point.
    """
    rank, mine = distributed.get_rank(), None
    for members in mesh.tp_groups:
        timeout = _timeout() if rank == members[0] else _UNTIL_TOLD
        with _quiet():
            group = distributed.new_group(members, timeout, backend="gloo")
        mine = group if rank in members else mine
    return mine


@functools.cache
def _replicas_group(mesh: Mesh) -> distributed.ProcessGroup:
    """Returns `dp_group` for replicas that wait for each other's work, however long that takes."""
    mine, rank = None, distributed.get_rank()
    for members in mesh.dp_groups:
        group = distributed.new_group(members, _UNTIL_TOLD, backend="gloo")
        mine = group if rank in members else mine
    return mine


def _timeout() -> datetime.timedelta:
    """Returns the timeout of `start`, which groups do not take over by themselves."""
    return distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the process's standard output, to which gloo writes when it connects."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as silence:
            os.dup2(silence.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def check_equal_on_ranks(**facts: Any) -> None:
    """Raises the same ValueError on every rank unless all ranks call with equal facts.

    For what must match before the first collective: configuration, dtype, checkpoint. Values are
    compared by their repr.
    """
    mine = {name: repr(value) for name, value in facts.items()}
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    problems = []
    for name in sorted({name for theirs in everyone for name in theirs}):
        values = [theirs.get(name, "nothing") for theirs in everyone]
        odd = [rank for rank, value in enumerate(values) if value != values[0]]
        if odd:
            shown = values[odd[0]]
            problems.append(
                f"{name} is {shortened(values[0], shown)} on rank 0 but "
                f"{shortened(shown, values[0])} on rank {', '.join(map(str, odd))}"
            )
    if problems:
        raise ValueError("the ranks disagree: " + "; ".join(problems))


def shortened(text: str, other: str, width: int = 60) -> str:
    """Cuts a long text to the part around its first difference from `other`."""
    if len(text) <= width:
        return text
    first = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    start = max(0, first - width // 2)
    return f"…{text[start : start + width]}…"


def call_on_all_ranks(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `function` on every rank; if it raises on one, every rank raises, naming that rank.

    For work without collectives inside, such as loading: without this the healthy ranks would
    wait in their next collective until the timeout.
    """
    error: Exception | None = None
    result = None
    try:
        result = function(*args, **kwargs)
    except Exception as caught:
        error = caught
    everyone: list[Any] = [None] * distributed.get_world_size()
    text = None if error is None else f"{type(error).__name__}: {error}"
    distributed.all_gather_object(everyone, text)
    if error is not None:
        raise error
    failed = {rank: text for rank, text in enumerate(everyone) if text is not None}
    if failed:
        rank, text = next(iter(failed.items()))
        raise RuntimeError(f"rank {rank} failed: {text}")
    return result


def from_first(value: Any, mesh: Mesh) -> Any:
    """Returns what the first of this rank's tensor-parallel peers calls it with; the others wait
    for as long as that takes it."""
    if mesh.tp == 1:
        return value
    values = [value]
    first = mesh.rank(mesh.coordinates(distributed.get_rank())[0], 0)
    distributed.broadcast_object_list(values, first, group=calls_group(mesh))
    return values[0]


def from_rank_0(value: Any) -> Any:
    """Returns what the first of all processes calls it with."""
    values = [value]
    distributed.broadcast_object_list(values, 0)
    return values[0]


def gather_objects(value: Any, mesh: Mesh) -> list[Any]:
    """Returns what the dp rows call it with, in their order; the ranks of a row have the same.

    It waits for as long as all of them live: one row's work may take much longer than another's.
    """
    everyone: list[Any] = [None] * mesh.dp
    distributed.all_gather_object(everyone, value, group=_replicas_group(mesh))
    return everyone


def dealt(items: Sequence[Item], mesh: Mesh, rank: int) -> list[Item]:
    """Returns those of some items that a rank's dp row handles: every dp-th."""
    return list(items[mesh.coordinates(rank)[0] :: mesh.dp])


def undealt(items: list[Item], mesh: Mesh) -> list[Item]:
    """Joins what the dp rows made of the items that `dealt` gave them, one of each, in order.

    It waits as `gather_objects`.
    """
    rows = gather_objects(items, mesh)
    return [rows[place % mesh.dp][place // mesh.dp] for place in range(sum(map(len, rows)))]


def gather_tensor(x: torch.Tensor, mesh: Mesh) -> list[torch.Tensor]:
    """Returns the tensors of this rank's tensor-parallel peers, which are alike in shape."""
    parts = [torch.empty_like(x) for _ in range(mesh.tp)]
    distributed.all_gather(parts, x.contiguous(), group=tp_group(mesh))
    return parts


def split_batch(x: torch.Tensor, mesh: Mesh, rank: int) -> torch.Tensor:
    """Returns the rows of x [B, ...] that a rank's dp row handles, [B / dp, ...].

    Raises:
        ValueError: B is not a multiple of dp.
    """
    rows = x.shape[0]
    if rows % mesh.dp:
        raise ValueError(f"a batch of {rows} rows can't be split evenly over dp = {mesh.dp}")
    return x.chunk(mesh.dp)[mesh.coordinates(rank)[0]]


def join_batch(x: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """Undoes `split_batch`: joins the dp rows' x [B / dp, ...] to [B, ...], on every rank."""
    if mesh.dp == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(mesh.dp)]
    distributed.all_gather(parts, x.contiguous(), group=dp_group(mesh))
    return torch.cat(parts)
