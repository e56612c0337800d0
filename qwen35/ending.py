"""How a command ends that is stopped from outside: with an exit code, whenever that happens.

It imports nothing slow: a command calls `exit_code` first and imports the rest inside.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_INTERRUPTED = "\nqwen35: interrupted\n"


def exit_code(command: Callable[[], int]) -> int:
    """Calls a command and returns its exit code, or that of what stopped it.

    Ctrl-C gives 130 and a line on standard error, a reader of standard output that has gone 141.

    Raises:
        SystemExit: 143, at SIGTERM; or the command's own.
    """
    try:
        with _handled_signals():
            try:
                return command()
            finally:
                if sys.stdout is not None:  # it was closed from the start
                    sys.stdout.flush()  # a reader who has gone is noticed here, not at the exit
    except KeyboardInterrupt:
        sys.stderr.write(_INTERRUPTED)
        return 130
    except BrokenPipeError:
        # The reader has gone; without this the interpreter complains again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


@contextlib.contextmanager
def _handled_signals() -> Iterator[None]:
    """Ends the block at SIGTERM as at Ctrl-C: files aside and child processes go with it.

    Inside of an import both end the process at once: torch's aborts where an exception comes up
    from Python code that it calls, and there is nothing to clear up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clearing up
        if _importing(frame):
            os._exit(128 + number)
        raise SystemExit(128 + number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            os.write(2, _INTERRUPTED.encode())
            os._exit(128 + number)
        raise KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    """Tells whether an import is under way where a signal came."""
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load":
            return True
        frame = frame.f_back
    return False
