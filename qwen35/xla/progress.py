"""Progress on standard error: compilation and long prefills."""

from __future__ import annotations

import sys

from tqdm import tqdm

from .jit import CompileEvent


def compile_progress(event: CompileEvent) -> None:
    """Shows that a graph is being compiled, and how long that took."""
    name = event.name.strip("_").replace("_", " ")
    if event.phase == "compile":
        print(f"compiling {name} ...", end="", file=sys.stderr, flush=True)
    elif event.phase in ("done", "failed"):
        print(f" {event.phase} in {event.seconds:.1f} s", file=sys.stderr, flush=True)


def prefill_bar(tokens: int, show: bool) -> tqdm:
    """A progress bar over the tokens of a prompt, gone when it is done."""
    return tqdm(total=tokens, desc="prefill", unit="token", disable=not show, leave=False)
