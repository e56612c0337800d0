"""A file of JSON lines that grows line by line, and loses none when its writer dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar

from ..checks.values import shown
from . import aside

Known = TypeVar("Known")
_BLOCK = 1 << 16


class Place(NamedTuple):
    """Where a line stands in the file, in bytes, its end included."""

    start: int
    size: int


class Journal(Generic[Known]):
    """The lines of a file, which `opened` makes; one process at a time has it.

    Attributes:
        known: what was there when it was opened, in the file's order: each line's place, and what
            the opener's `read` made of the line.
    """

    def __init__(self, path: Path, file: BinaryIO, known: list[tuple[Place, Known]]) -> None:
        self.known = known
        self._path = path
        self._file = file

    def add(self, entry: Mapping[str, Any]) -> Place:
        """Writes a line. It is on the disk, whole, when this returns, whatever becomes of the
        process, or of the power.

        Raises:
            OSError: it can't be written; then nothing of it is there.
        """
        line, start = as_line(entry), self._file.seek(0, os.SEEK_END)
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file.fileno(), left) :]
            os.fdatasync(self._file.fileno())
        except OSError:
            self._file.truncate(start)
            raise
        return Place(start, len(line))

    def rewrite(self, places: Sequence[Place]) -> None:
        """Puts a file of these lines alone, in this order, in the place of this one, as one switch.

        Nothing can be added afterwards.
        """
        with aside.replaced(self._path) as target, open(target, "wb") as new:
            for place in places:
                self._file.seek(place.start)
                new.write(self._file.read(place.size))


@contextlib.contextmanager
def opened(
    path: Path, read: Callable[[dict[str, Any]], Known], beginning: bytes
) -> Iterator[Journal[Known]]:
    """Opens a file of lines to add to, for the length of a `with` block; makes it if need be.

    A last line without an end, or with zeros for one as a failing power leaves it, is what a writer
    left that died over it: it is cut off.

    Args:
        path: the file.
        read: takes what matters from a line; ValueError where it is not such a file's.
        beginning: of every line, by which half a line is known.

    Raises:
        ValueError: another process has it, or it is no such file: nothing has been changed then.
        OSError: it can't be opened.
    """
    with _locked(path) as file:
        known, end = [], 0
        for number, line in enumerate(file, 1):
            place, end = Place(end, len(line)), end + len(line)
            if not line.endswith(b"\n"):
                torn = line.rstrip(b"\0")
                if not torn.startswith(beginning) and not beginning.startswith(torn):
                    raise ValueError(f"{path} is a file of something else: it ends in {line[:40]}")
                file.truncate(place.start)
                break
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"{shown(entry)} is no object")
                known.append((place, read(entry)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not one of this command's") from error
        yield Journal(path, file, known)


def as_line(entry: Mapping[str, Any]) -> bytes:
    """Writes an object as a line of JSON; half a character of UTF-16 stays escaped."""
    try:
        return json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(entry).encode("utf-8") + b"\n"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that nobody else of ours writes to; the lock ends with the process."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file that can be gone on with")
    new = not path.exists()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        with open(descriptor, "r+b") as file:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{path} is being written by another process") from None
            # Its writer may have put another file in its place just before.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    if new:
                        aside.sync(path.parent)
                    yield file
                    return
