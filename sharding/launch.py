"""Starts the ranks of a program: one device, virtual devices, or torchrun's processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from . import process, spmd
from .mesh import Mesh
from .torchrun import launched


class Ranks(NamedTuple):
    """The ranks of this process.

    Attributes:
        mesh: None for a single device.
        rank: this process's place in the mesh; None means all of them, on virtual devices.
        device: "cpu" or "xla", where parameters belong.
        processes: how many run together.
    """

    mesh: Mesh | None
    rank: int | None
    device: str
    processes: int

    @property
    def first(self) -> bool:
        """Whether this is the one process whose results count: rank 0's, or the only one."""
        return not self.rank


@contextlib.contextmanager
def start_ranks(
    tp: int, device: str | None = None, timeout: float = process.TIMEOUT, dp: int = 1
) -> Iterator[Ranks]:
    """Starts the ranks of a mesh for the duration of a `with` block; arguments and errors are those
    of `join_ranks`."""
    ranks = join_ranks(tp, device, timeout, dp)
    try:
        yield ranks
    finally:
        if launched():
            process.stop()


def join_ranks(
    tp: int, device: str | None = None, timeout: float = process.TIMEOUT, dp: int = 1
) -> Ranks:
    """Starts the ranks of a mesh, for the rest of the program.

    Under torchrun every process is a rank: gloo on CPU tensors, or torch-xla's own collectives
    with `device="xla"` (on Trainium; not run there). Otherwise several ranks are as many virtual
    devices of XLA:CPU.

    Args:
        tp: tensor-parallel ways.
        device: "cpu", "xla", or None: "cpu" under torchrun, else "xla".
        timeout: seconds that a process waits for the others.
        dp: data-parallel ways: replicas, each of tp processes.

    Raises:
        ValueError: the number of processes is not dp * tp, or the device does not fit the way.
    """
    mesh = Mesh(dp=dp, tp=tp)
    if launched():
        device = device or "cpu"
        rank = process.start(mesh, backend="gloo" if device == "cpu" else "xla", timeout=timeout)
        return Ranks(mesh if mesh.size > 1 else None, rank, device, mesh.size)
    if mesh.size == 1:
        return Ranks(None, 0, device or "xla", 1)
    check_one_process(mesh, device)
    spmd.start(mesh)
    return Ranks(mesh, None, "xla", 1)


def check_one_process(mesh: Mesh, device: str | None) -> None:
    """Raises a ValueError if the ranks of a mesh can't all be in a process that torchrun has not
    started; device is as for `join_ranks`."""
    if mesh.size > 1 and device == "cpu":
        ways = f"tp = {mesh.tp}" if mesh.dp == 1 else f"dp = {mesh.dp} with tp = {mesh.tp}"
        raise ValueError(
            f"{ways} on CPU tensors needs one process per rank: "
            f"torchrun --nproc-per-node {mesh.size} -m qwen35 ..."
        )
