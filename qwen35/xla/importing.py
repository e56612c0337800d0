"""Import large packages faster. This imports nothing slow itself."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the collector of reference cycles while packages are imported inside.

    What they make stays for good, and is looked at again by each of its passes: a fifth of the
    time in which torch, torch-xla and transformers are imported. Inside another pause, and where
    the caller has switched the collector off, nothing changes.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:  # else they are the caller's
            gc.freeze()
            gc.unfreeze()  # into the oldest generation: the youngest would be looked at at once
        gc.enable()
