"""Compiles what an engine needs while a person types the first message."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..xla.observers import CompileEvent, on_compile
from ..xla.progress import compile_progress

if TYPE_CHECKING:
    from ..generation.engine import Engine


class _Left(BaseException):
    """Ends the compiling that nobody waits for any more."""


@contextlib.contextmanager
def warming(engine: Engine, aside: bool) -> Iterator[Callable[[], None]]:
    """Compiles an engine's graphs; yields what waits until that is done, and raises its errors.

    Args:
        engine: not to be used inside before the wait.
        aside: compile in a thread of its own, while something else goes on inside, and show it only
            to who waits. When the inside ends first, the graph that is being compiled is the last.
    """
    if not aside:
        engine.warm_up()
        yield lambda: None
        return
    left, awaited = threading.Event(), threading.Event()
    begun = False  # before the eyes of who waits

    def report(event: CompileEvent) -> None:
        nonlocal begun
        if left.is_set():
            raise _Left
        begun = begun or (event.phase == "compile" and awaited.is_set())
        if begun:
            compile_progress(event)

    def warm_up() -> None:
        with on_compile(report):
            engine.warm_up()

    with ThreadPoolExecutor(1, "warm-up") as pool:
        warmed = pool.submit(warm_up)

        def wait() -> None:
            if not warmed.done():
                print("compiling what is left to compile ...", file=sys.stderr, flush=True)
                awaited.set()
            warmed.result()

        try:
            yield wait
        finally:
            left.set()
