"""What torchrun says to the processes that it starts."""

from __future__ import annotations

import os


def launched() -> bool:
    """Tells whether torchrun (or anything that sets RANK and WORLD_SIZE) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
