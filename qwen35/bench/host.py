"""What a step costs the host, and what an engine gains by starting it before the last is read."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..generation.engine import Engine
from ..xla.devices import wait_for_device
from .serving import TURN, busy_engine, load_endless
from .statistics import median, ratio


@dataclass(frozen=True)
class HostWork:
    """An engine's step while all slots are busy; medians over turns.

    Attributes:
        work: processor seconds of the calling thread, for a step.
        seconds: of a step.
        ahead: how many times as long a step takes whose tokens are read before they are decoded:
            over pairs of turns that followed each other.
    """

    work: float
    seconds: float
    ahead: float


def measure_host(
    model: str,
    slots: int,
    prompt: int,
    steps: int,
    tp: int = 1,
    weights: str | None = None,
    head: str | None = None,
) -> HostWork:
    """Measures what a step costs the thread that calls it.

    An engine that starts to decode before it reads the tokens, as it does on XLA, and one that
    reads them first take a few steps each in turn.

    Args:
        model: a checkpoint directory.
        slots: of the engines.
        prompt: tokens of each request's.
        steps: of each engine that are timed.
        tp, weights, head: as for `load_endless`.
    """
    params, tokenizer = load_endless(model, tp, weights, head)
    engines = [busy_engine(params, tokenizer, slots, prompt, steps) for _ in range(2)]
    engines[1].batch.ahead = False
    turns = []
    for start in range(0, steps, TURN):
        turns.append([_turn(engine, min(TURN, steps - start)) for engine in engines])
    ahead, behind = zip(*turns, strict=True)
    return HostWork(
        work=median(work for _, work in ahead),
        seconds=median(seconds for seconds, _ in ahead),
        ahead=ratio([seconds for seconds, _ in ahead], [seconds for seconds, _ in behind]),
    )


def _turn(engine: Engine, steps: int) -> tuple[float, float]:
    """Takes some steps; returns the seconds and the calling thread's processor seconds of one."""
    wait_for_device()
    start, busy = time.perf_counter(), time.thread_time()
    for _ in range(steps):
        engine.step()
    work = time.thread_time() - busy
    wait_for_device()
    return (time.perf_counter() - start) / steps, work / steps
