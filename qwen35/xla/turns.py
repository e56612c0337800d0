"""One thread at a time uses torch-xla: what one leaves pending is lost when another traces.

torch-xla keeps computations that have not run in one place for all threads. A trace ends by
forgetting them, so nothing of another thread's may be among them; and what is read from the device
while a function is traced counts as read by the function.
"""

from __future__ import annotations

import threading


class _Tracing(threading.local):
    active = False


tracing_here = _Tracing()

# Held while tracing, while running, while reading from the device, and while computing there
# outside of a compiled function (`devices.at_once`).
turn = threading.RLock()
