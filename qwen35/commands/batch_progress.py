"""How far a run over many lines is, and how long it will take."""

from __future__ import annotations

import sys
import time
from typing import Any

_TERMINAL, _FILE = 0.5, 15.0  # seconds between two notes


class Progress:
    """Notes on standard error.

    Args:
        lines: in all.
        shown: whether this process writes notes.
    """

    def __init__(self, lines: int, shown: bool) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = shown
        self._lines = lines
        self._tokens = self._failed = 0
        self.begin(0)

    def begin(self, left: int) -> None:
        """Starts to count time, with so many lines left to do."""
        self._left = self._to_do = left
        self._start = self._last = time.perf_counter()

    def count(self, tokens: int, failed: bool) -> None:
        """Takes note of a line that has ended."""
        self._left -= 1
        self._tokens += tokens
        self._failed += failed

    def show(self, last: bool = False) -> None:
        """Says how far it is, if that has not been said lately or is the last time."""
        now = time.perf_counter()
        due = now - self._last >= (_TERMINAL if self._terminal else _FILE)
        if self._shown and (due or last):
            self._last = now
            start = "\r\x1b[K" if self._terminal else ""
            end = "" if self._terminal and not last else "\n"
            print(start + self._text(self.summary()), end=end, file=sys.stderr, flush=True)

    def summary(self) -> dict[str, Any]:
        """Returns the numbers: of lines in all, answered or not, and of this run."""
        return {
            "lines": self._lines,
            "left": self._left,
            "done": self._to_do - self._left,
            "errors": self._failed,
            "tokens": self._tokens,
            "seconds": time.perf_counter() - self._start,
        }

    def _text(self, numbers: dict[str, Any]) -> str:
        """Writes the numbers as a line of text."""
        seconds, done, left = (numbers[name] for name in ("seconds", "done", "left"))
        parts = [f"{numbers['lines'] - left:,} of {numbers['lines']:,} lines"]
        parts += [f"{numbers['errors']:,} in error"] if numbers["errors"] else []
        if done:
            parts.append(f"{numbers['tokens'] / seconds:,.1f} tokens per second")
        if done and left:
            parts.append(f"{_span(left * seconds / done)} left")
        return ", ".join(parts)


def _span(seconds: float) -> str:
    """Writes a time as a person says it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
