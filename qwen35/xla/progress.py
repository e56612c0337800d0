"""Show progress on standard error: of compilations and long prefills."""

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager
from typing import Any

from tqdm import tqdm

from .observers import Compilations, CompileEvent, on_compile


def compile_progress(event: CompileEvent) -> None:
    """Show that a graph is being compiled, and how long that took."""
    name = event.name.strip("_").replace("_", " ")
    if event.phase == "compile":
        print(f"compiling {name} ...", end="", file=sys.stderr, flush=True)
    elif event.phase in ("done", "failed"):
        print(f" {event.phase} in {event.seconds:.1f} s", file=sys.stderr, flush=True)


def show_compilations(show: bool) -> AbstractContextManager[Compilations]:
    """Return an `on_compile` with progress on standard error, or one that only counts."""
    return on_compile(compile_progress if show else None)


class Bar(tqdm):
    """A bar whose lock is this process's own.

    tqdm's is one of `multiprocessing`, which forked processes share: one that is killed while it
    holds it lets all others wait for ever.
    """

    _lock = threading.RLock()


class NoBar:
    """Stands where a bar would that nobody sees, with nothing of tqdm in it."""

    def __enter__(self) -> NoBar:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: float) -> None:
        """Takes what a bar would show."""


def progress_bar(name: str, total: float, unit: str, show: bool, **looks: Any) -> Bar | NoBar:
    """Return a progress bar, or what stands for one that is not shown.

    It is shown in a terminal or a notebook: in a pipe or a log every stage of it would stay.

    Args:
        name: what is done.
        total: of what `update` takes, in all.
        unit: of the counts.
        show: whether it is wanted at all.
        **looks: further settings of tqdm.
    """
    if not (show and (sys.stderr.isatty() or "ipykernel" in sys.modules)):
        return NoBar()
    return Bar(total=total, desc=name, unit=unit, **looks)
