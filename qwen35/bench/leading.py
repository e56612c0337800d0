"""Work with an engine in all of its processes: the first does it, and the others follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ..generation.engine import Engine
from ..sharding import process
from .placement import finish, in_processes, meet

Result = TypeVar("Result")


class StepTime(NamedTuple):
    """A step of several: its tokens, seconds, and processor seconds of the calling thread."""

    tokens: float
    seconds: float
    work: float


def lead(engine: Engine, work: Callable[[], Result]) -> Result:
    """Does some work with an engine, in the first of its processes; all get what comes of it. It
    begins everywhere at the same time."""
    params = engine.batch.params
    meet(params)
    mesh = params.runtime.mesh
    if mesh is None or not in_processes(params):
        return work()
    result = None
    if engine.leads:
        result = work()
        engine.pause()
    else:
        engine.follow()
    return process.from_first(result, mesh)


def timed_steps(engine: Engine, steps: int) -> StepTime:
    """Times some steps, the last one's work on the device included; returns what one takes."""

    def take() -> StepTime:
        start, busy = time.perf_counter(), time.thread_time()
        tokens = sum(len(engine.step()) for _ in range(steps))
        work = time.thread_time() - busy
        finish(engine.batch.params)
        seconds = time.perf_counter() - start
        return StepTime(tokens / steps, seconds / steps, work / steps)

    return lead(engine, take)
