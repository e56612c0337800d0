"""The command line's ranks: a single device, virtual devices, or one process each."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ..model.params import Runtime
from ..sharding import process, spmd
from ..sharding.mesh import Mesh


@dataclass(frozen=True)
class Launch:
    """Where a command runs; only one of the `processes` speaks."""

    runtime: Runtime
    device: str
    speaks: bool
    processes: int


@contextlib.contextmanager
def launch(tp: int, device: str | None, timeout: float) -> Iterator[Launch]:
    """Starts the ranks of a command for the duration of a `with` block.

    Under torchrun every process is a rank: gloo on CPU tensors, or torch-xla's own collectives
    with `device="xla"` (on Trainium; not run there). Otherwise tp > 1 takes as many virtual devices
    of XLA:CPU.

    Args:
        tp: tensor-parallel ways.
        device: "cpu", "xla", or None for the way's own default.
        timeout: seconds that a process waits for the others.

    Raises:
        ValueError: the number of processes is not tp, or the device does not fit the way.
    """
    mesh = Mesh(tp=tp)
    if process.launched():
        device = device or "cpu"
        rank = process.start(mesh, backend="gloo" if device == "cpu" else "xla", timeout=timeout)
        with contextlib.ExitStack() as stack:
            stack.callback(process.stop)
            if rank:
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            runtime = Runtime(mesh=mesh, rank=rank) if tp > 1 else Runtime()
            try:
                yield Launch(runtime, device, rank == 0, mesh.size)
            except Exception as error:
                print(f"qwen35: rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
                raise
    elif tp > 1:
        if device == "cpu":
            raise ValueError(
                f"--tp {tp} with --device cpu needs one process per rank: "
                f"torchrun --nproc-per-node {tp} -m qwen35 ..."
            )
        spmd.start(mesh)
        yield Launch(Runtime(mesh=mesh, rank=None), "xla", True, 1)
    else:
        yield Launch(Runtime(), device or "xla", True, 1)
