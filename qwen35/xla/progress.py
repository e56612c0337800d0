"""Show progress on standard error: of compilations and long prefills."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager

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


def hidden(show: bool) -> bool:
    """Return what tqdm's `disable` is for a bar that is shown, or not.

    It is shown in a terminal or a notebook: in a pipe or a log every stage of it would stay.
    """
    return not (show and (sys.stderr.isatty() or "ipykernel" in sys.modules))


def prefill_bar(tokens: int, show: bool) -> tqdm:
    """Return a progress bar over the tokens of a prompt, gone when it is done."""
    return tqdm(total=tokens, desc="prefill", unit="token", disable=hidden(show), leave=False)
