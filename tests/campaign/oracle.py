"""What a damaged input may do: be taken as it is, or be refused in a sentence of our own."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

LONGEST = 2_500  # characters of an error
SECONDS = 1.0  # of the processor's
HANGS = 20.0  # seconds
MEMORY = 2**29  # bytes more than before


class Fault(Exception):
    """Something that an input must not do."""


class Findings:
    """Faults, one of each kind: where it was, and its smallest input so far."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def add(self, error: BaseException, shown: Callable[[], str]) -> None:
        """Notes a fault, unless one of its kind is known."""
        key = kind_of(error)
        if key not in self._found:
            self._found[key] = f"{key}\n    {error}\n    {shown()}"[:4000]

    def __len__(self) -> int:
        return len(self._found)

    def tell(self) -> None:
        """Fails with all of them."""
        assert not self._found, f"{len(self._found)} faults\n" + "\n".join(self._found.values())


def kind_of(error: BaseException) -> str:
    """Names a fault by its type and the deepest place in this package that it came through."""
    cause = error.__cause__ or error
    places = [
        f"{frame.filename.split('/qwen35/')[-1]}:{frame.lineno}"
        for frame in traceback.extract_tb(cause.__traceback__)
        if "/qwen35/" in frame.filename and "/tests/" not in frame.filename
    ]
    return f"{type(cause).__name__} at {places[-1] if places else 'no place of ours'}"


def outcome(function: Callable[[], Any], *ours: type[Exception]) -> Any:
    """Calls a function on an input; returns its result, or the error that refused it.

    Raises:
        Fault: another error; one without a sentence, or with a very long one; too much time or
            memory.
    """
    before, start = _peak(), time.thread_time()
    try:
        with _no_hang():
            result = function()
    except ours as error:
        text = str(error)
        if not text.strip() or len(text) > LONGEST:
            raise Fault(f"an error of {len(text)} characters: {text[:200]}") from error
        result = error
    except Exception as error:
        raise Fault(f"{type(error).__name__}: {str(error)[:300]}") from error
    taken = time.thread_time() - start
    if taken > SECONDS:
        raise Fault(f"took {taken:.1f} s, and ended in {str(result)[:200]}")
    if _peak() - before > MEMORY:
        raise Fault(f"took {(_peak() - before) / 2**20:.0f} MiB")
    return result


@contextlib.contextmanager
def _no_hang() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        raise Fault(f"hangs for {HANGS:.0f} s")

    old = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
