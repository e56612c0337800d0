"""What a step costs the host, and what an engine gains by starting it before the last is read."""

from __future__ import annotations

from dataclasses import dataclass

from .leading import timed_steps
from .placement import Placement
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
    place: Placement = Placement(),
) -> HostWork:
    """Measures what a step costs the thread that calls it.

    An engine that starts to decode before it reads the tokens, as it does on XLA, and one that
    reads them first take a few steps each in turn.

    Args:
        model: a checkpoint directory.
        slots: of the engines.
        prompt: tokens of each request's.
        steps: of each engine that are timed.
        place: where the model is.
    """
    params, tokenizer = load_endless(model, place)
    engines = [busy_engine(params, tokenizer, slots, prompt, steps) for _ in range(2)]
    engines[1].batch.ahead = False
    turns = []
    for start in range(0, steps, TURN):
        turns.append([timed_steps(engine, min(TURN, steps - start)) for engine in engines])
    ahead, behind = zip(*turns, strict=True)
    return HostWork(
        work=median(turn.work for turn in ahead),
        seconds=median(turn.seconds for turn in ahead),
        ahead=ratio([turn.seconds for turn in ahead], [turn.seconds for turn in behind]),
    )
