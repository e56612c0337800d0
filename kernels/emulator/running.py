"""Which core runs a kernel in this thread. Its instructions and tensors ask; a simulation says."""

import threading
from contextlib import contextmanager

from .errors import EmulatorError, NotModelledError

_thread = threading.local()  # .core: the core that runs a kernel in this thread


def current():
    """The `machine.Core` that is running a kernel."""
    core = getattr(_thread, "core", None)
    if core is None:
        raise EmulatorError("nki functions work inside a kernel only: use emulator.simulate")
    return core


def running() -> bool:
    """Whether a kernel is running."""
    return getattr(_thread, "core", None) is not None


@contextmanager
def activate(core):
    """Make `core` the one that instructions run on."""
    if running():
        raise NotModelledError("a simulation inside a running kernel")
    _thread.core = core
    try:
        yield core
    finally:
        _thread.core = None
