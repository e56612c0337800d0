"""What it costs an engine's step to draw tokens, beside the most likely ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..generation.sampling_settings import Sampling
from ..reports.tables import markdown_table, milliseconds, times
from .leading import timed_steps
from .placement import Placement
from .records import medians, to_plain
from .serving import TURN, busy_engine, load_endless
from .statistics import median, ratio

GREEDY = "greedy"
_DRAWN: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "top_p": 0.95}
KINDS = {
    GREEDY: Sampling(),
    "temperature 0.7, top-k 20, top-p 0.95": Sampling(**_DRAWN),
    "the same, penalties and log probabilities": Sampling(
        **_DRAWN, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.1, logprobs=0
    ),
}


@dataclass(frozen=True)
class DrawCost:
    """A step of an engine whose rows are all sampled alike: seconds, the median over turns, and how
    many times as long it takes as a greedy one, over pairs of turns that followed each other."""

    slots: int
    kind: str
    seconds: float
    over_greedy: float


@dataclass(frozen=True)
class DrawCosts:
    """Each kind for each number of slots."""

    steps: tuple[DrawCost, ...]


def measure_draws(
    model: str,
    slots: Sequence[int],
    prompt: int,
    steps: int,
    place: Placement = Placement(),
) -> DrawCosts:
    """Measures engines that sample in each of `KINDS`, a few steps each in turn.

    Args:
        model: a checkpoint directory.
        slots: of the engines, one after the other.
        prompt: tokens of each request's.
        steps: of each engine that are timed.
        place: where the model is.
    """
    params, tokenizer = load_endless(model, place)
    costs = []
    for count in slots:
        engines = {
            kind: busy_engine(params, tokenizer, count, prompt, steps, sampling)
            for kind, sampling in KINDS.items()
        }
        turns: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for start in range(0, steps, TURN):
            for kind, engine in engines.items():
                turns[kind].append(timed_steps(engine, min(TURN, steps - start)).seconds)
        costs += [
            DrawCost(count, kind, median(seconds), ratio(turns[GREEDY], seconds))
            for kind, seconds in turns.items()
        ]
    return DrawCosts(tuple(costs))


def rows(rounds: Sequence[DrawCosts]) -> list[dict[str, Any]]:
    """Returns a row for each number of slots and kind: medians over the records of all rounds."""
    same = zip(*(record.steps for record in rounds), strict=True)
    return [to_plain(medians(records)) | {"slots": records[0].slots} for records in same]


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Renders a Markdown section."""
    table = [
        (str(row["slots"]), row["kind"], milliseconds(row["seconds"]), times(row["over_greedy"]))
        for row in rows
    ]
    head = ("rows", "sampling", "step", "over greedy")
    return f"## Sampling\n\n{markdown_table(head, table, left=(1,))}"
