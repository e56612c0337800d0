"""Tell who asks around a call what it compiles; the function that compiles need not know them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple


class CompileEvent(NamedTuple):
    """A step of a compilation: `phase` is "trace", then "compile", then "done" (or "failed")."""

    name: str
    signature: str
    phase: str
    seconds: float  # since the start of this compilation, without those of compilations inside it


Report = Callable[[CompileEvent], None]


@dataclass
class Compilations:
    """What was compiled inside an `on_compile`: how many graphs, and how long that took."""

    count: int = 0
    seconds: float = 0.0


_observers: ContextVar[tuple[tuple[Compilations, Report | None], ...]] = ContextVar(
    "observers", default=()
)


@contextlib.contextmanager
def on_compile(report: Report | None = None) -> Iterator[Compilations]:
    """Observe what this thread (or asyncio task) compiles inside the `with`.

    Yields the `Compilations`, which count up as they happen; `seconds` includes failed ones.
    Where several are around a compilation, all see it; a report that is there twice is called
    once. A generator must not yield inside: its caller would be observed too.

    Args:
        report: called with a `CompileEvent` before tracing, before compiling, and at the end;
            None only counts.
    """
    seen = Compilations()
    token = _observers.set((*_observers.get(), (seen, report)))
    try:
        yield seen
    finally:
        _observers.reset(token)


def announce(event: CompileEvent) -> None:
    """Tell all observers around of one step of a compilation."""
    told: list[Report | None] = [None]
    for seen, report in _observers.get():
        if event.phase in ("done", "failed"):
            seen.seconds += event.seconds
            seen.count += event.phase == "done"
        if report not in told:
            told.append(report)
            report(event)
