"""Show progress on standard error: of compilations and long prefills."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .observers import Compilations, CompileEvent, on_compile

if TYPE_CHECKING:  # `qwen35 --help` draws no bar, and imports no torch
    from .compiled import Compiled


def compile_progress(event: CompileEvent) -> None:
    """Show that a graph is being compiled, and how long that took."""
    if event.phase == "compile":
        print(f"compiling {plain_name(event)} ...", end="", file=sys.stderr, flush=True)
    elif event.phase in ("done", "failed"):
        print(f" {event.phase} in {event.seconds:.1f} s", file=sys.stderr, flush=True)


def show_compilations(show: bool) -> AbstractContextManager[Compilations]:
    """Return an `on_compile` with progress on standard error, or one that only counts."""
    return on_compile(compile_progress if show else None)


def compile_all(graphs: Iterable[tuple[str, Compiled, tuple]], show: bool) -> Compilations:
    """Compile functions, each for some arguments, unless that has been done; run nothing.

    Return what was compiled.

    Args:
        graphs: a name, the function and its arguments of each.
        show: with progress on standard error: a bar of all, or a line for each that is compiled.
    """
    wanted = list(graphs)
    # Nothing is drawn, a moment long, where all has been compiled; under another bar nothing stays.
    looks = {"delay": 0.1, "leave": None}
    with progress_bar("compile", len(wanted), "graph", show, **looks) as bar:
        with show_compilations(show and isinstance(bar, NoBar)) as seen:
            for name, function, arguments in wanted:
                with on_compile(lambda _, name=name: bar.set_postfix_str(name)):
                    function.compile(*arguments)
                bar.update(1)
    return seen


@contextlib.contextmanager
def count_compilations(show: bool) -> Iterator[None]:
    """Show what is compiled inside, as a line that counts the graphs, while each is compiled; like
    a bar in a terminal only. How many there are to come is not known."""
    looks = {"bar_format": "{desc}: {n_fmt} graphs done{postfix}", "delay": 0.1, "leave": False}
    with progress_bar("compile", None, "graph", show, **looks) as bar:

        def report(event: CompileEvent) -> None:
            if event.phase == "done":
                bar.update(1)
            if event.phase in ("done", "failed"):
                bar.clear()
            else:
                bar.set_postfix_str(f"now {plain_name(event)}")

        with on_compile(report):
            yield


def plain_name(event: CompileEvent) -> str:
    """Return the name of a function that is compiled, as people write it."""
    return event.name.strip("_").replace("_", " ")


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

    def clear(self) -> None:
        """Takes what a bar would be wiped off by."""

    def set_postfix_str(self, text: str) -> None:
        """Takes what would stand behind a bar."""


def progress_bar(
    name: str, total: float | None, unit: str, show: bool, **looks: Any
) -> Bar | NoBar:
    """Return a progress bar, or what stands for one that is not shown.

    It is shown in a terminal or a notebook: in a pipe or a log every stage of it would stay.

    Args:
        name: what is done.
        total: of what `update` takes, in all; None if nobody knows.
        unit: of the counts.
        show: whether it is wanted at all.
        **looks: further settings of tqdm.
    """
    notebook = type(sys.stderr).__module__.startswith("ipykernel.")
    if not (show and (sys.stderr.isatty() or notebook)):
        return NoBar()
    return Bar(total=total, desc=name, unit=unit, **looks)
