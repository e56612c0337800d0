"""Has the system read files that are needed soon, while something else is done."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

_PIECE = 2**20  # bytes


@contextlib.contextmanager
def reading_ahead(directory: str | Path) -> Iterator[None]:
    """Reads the safetensors files of a directory in a thread until the block ends, so that the
    system has them in memory when they are asked for.

    Nothing is kept or checked here, and what can't be read is left to who asks for it. More than
    half of the memory that is free is not filled: what comes last would push out what comes first.
    """
    ended = threading.Event()

    def read() -> None:
        room, piece = _free_memory() // 2, bytearray(_PIECE)
        files = sorted(Path(directory).glob("*.safetensors"))
        for file in filter(Path.is_file, files):  # who opens a pipe waits for ever
            with contextlib.suppress(OSError), open(file, "rb", buffering=0) as content:
                while room > 0 and not ended.is_set() and (count := content.readinto(piece)):
                    room -= count

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _free_memory() -> int:
    """Returns the bytes that the system could give, its own copies of files among them; 0 where it
    is no Linux."""
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
