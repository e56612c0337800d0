"""How a command ends that is stopped from outside: with an exit code, whenever that happens.

It imports nothing slow: a command calls `exit_code` first and imports the rest inside.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_INTERRUPTED = "\nqwen35: interrupted\n"


def exit_code(command: Callable[[], int]) -> int:
    """Calls a command and returns its exit code, or that of what stopped it.

    Ctrl-C gives 130 and a line on standard error, a reader of standard output that has gone 141,
    standard output that can't be written otherwise 2, as on a full disk.

    Raises:
        SystemExit: 143, at SIGTERM; 129, at SIGHUP; or the command's own.
        Exception: what the command raises itself, such as OSError for a file that is not there.
    """
    try:
        with _handled_signals():
            try:
                return command()
            finally:
                _flush_output()  # a reader who has gone is noticed here, not at the exit
    except KeyboardInterrupt:
        sys.stderr.write(_INTERRUPTED)
        return 130
    except BrokenPipeError:
        _give_up_output()
        return 141
    except _UnwritableOutput as error:
        _give_up_output()
        sys.stderr.write(f"qwen35: error: standard output can't be written: {error}\n")
        return 2


def guard_streams() -> None:
    """Makes standard streams usable that are closed, and a standard error that is full harmless.

    A file that is opened while one of their numbers is free would get it, and the messages of all
    libraries with it. What a person can't be told is no reason to fail.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which gets the lowest free number, so this one
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    how = {"encoding": getattr(sys.stderr, "encoding", None), "errors": "backslashreplace"}
    lenient = io.BufferedWriter(_Lenient(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(lenient, line_buffering=True, **how)


class _Lenient(io.FileIO):
    """A file that takes whatever is written, also where there is no room or nobody who reads."""

    def write(self, data: bytes) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def stop_at_signals() -> None:
    """Lets Ctrl-C end this process at once: the command is over, and there is nothing to say."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class _UnwritableOutput(Exception):
    """Standard output takes nothing more, for this reason."""


def _flush_output() -> None:
    if sys.stdout is None:  # it was closed from the start
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _UnwritableOutput(error) from error


def _give_up_output() -> None:
    """Lets nothing more be written: else the interpreter tries, and complains, when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _handled_signals() -> Iterator[None]:
    """Ends the block at SIGTERM and SIGHUP as at Ctrl-C: files aside and child processes go too.

    Inside of an import they end the process at once: torch's aborts where an exception comes up
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
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, terminate)
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
