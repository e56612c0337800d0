"""Where a measurement has the model: on one device, on virtual devices, in processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import distributed

from ..files.checkpoint import load
from ..files.likeness import check_same_checkpoint
from ..model.params import Params, Runtime
from ..sharding import process
from ..sharding.launch import Ranks, join_ranks
from ..xla.devices import platform, wait_for_device


@dataclass(frozen=True)
class Placement:
    """The ranks that a model is split over, and how its weights are made.

    Attributes:
        tp, dp, device, timeout: as for `join_ranks`.
        weights, head: as for `load`.
        segments: as in `Runtime`.
    """

    tp: int = 1
    dp: int = 1
    device: str = "xla"
    timeout: float = process.TIMEOUT
    weights: str | None = None
    head: str | None = None
    segments: int | str = 1

    def start(self) -> Ranks:
        """Starts the ranks, and the devices of those that are here."""
        ranks = join_ranks(self.tp, self.device, self.timeout, self.dp)
        if self.device == "xla":
            platform()
        return ranks

    def load(self, model: str, ranks: Ranks, vision: bool = False) -> Params:
        """Loads the text model of a checkpoint directory in float32, or all of it; where that fails
        in one process, it fails in all."""
        how: dict[str, Any] = {"weights": self.weights, "head": self.head}
        run: Callable[..., Params] = load
        if ranks.processes > 1:
            check_same_checkpoint(model)
            run = functools.partial(process.call_on_all_ranks, load)
        return run(
            model,
            dtype="float32",
            device=ranks.device,
            runtime=Runtime(mesh=ranks.mesh, rank=ranks.rank, segments=self.segments),
            check_finite=False,
            vision=vision,
            **how,
        )


def in_processes(params: Params) -> bool:
    """Tells whether the parameters are those of one rank of several, each with a process."""
    mesh = params.runtime.mesh
    return mesh is not None and mesh.size > 1 and params.runtime.rank is not None


def finish(params: Params) -> None:
    """Waits until the device has nothing left to do."""
    if params.device.type == "xla":
        wait_for_device()


def meet(params: Params) -> None:
    """Waits for the device and, where ranks have processes, until all of them have come here: what
    follows begins everywhere at the same time."""
    finish(params)
    if in_processes(params):
        distributed.barrier()
