"""One thread at a time uses torch-xla: what one leaves pending is lost when another traces.

torch-xla keeps computations that have not run in one place for all threads. A trace ends by
forgetting them, so nothing of another thread's may be among them; and what is read from the device
while a function is traced counts as read by the function.

A process that is forked from one that uses torch-xla has none of its threads, and waits for them
for ever: it is told so instead.
"""

from __future__ import annotations

import os
import threading


class _Tracing(threading.local):
    active = False


tracing_here = _Tracing()

# Held while tracing, while running, while reading from the device, and while computing there
# outside of a compiled function (`devices.at_once`).
turn = threading.RLock()

_user: int | None = None  # the process that uses torch-xla


def begin() -> None:
    """Note that this process uses torch-xla from here on."""
    global _user
    _user = os.getpid()


def check_process() -> None:
    """Raise RuntimeError in a process that was forked from one that had used torch-xla."""
    if _user is not None and _user != os.getpid():
        raise RuntimeError(
            "this process was forked from one that uses XLA, and can't use it: start processes "
            'with multiprocessing\'s "spawn", or before anything is put onto the XLA device'
        )
