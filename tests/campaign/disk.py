"""A disk that remembers what was done to it, and what of it a failing power may leave.

`Recorder` looks at a directory before each change that Python makes in it, and at each fsync, and
keeps what differs: names that came, went or moved, and contents. `Recorder.disks` then gives the
directories that may be found if the power fails after a step. Names whose directory was not
synchronised may each be there or not, whatever came later; a rename is one step, as in a journal of
a file system; contents that were not synchronised are there, empty, in half, or zeros.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

_WATCHED = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link")
_hooks: list[Any] = []  # a hook of sys.addaudithook stays for ever: one is enough
_ALL = 6  # pending names of which all combinations are tried


def _audit(name: str, arguments: tuple[Any, ...]) -> None:
    if _hooks and (name in _WATCHED or (name == "open" and _writes(arguments))):
        _hooks[-1](name)


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


sys.addaudithook(_audit)


@contextlib.contextmanager
def before_each_change(call: Any) -> Iterator[None]:
    """Calls a function before every change to files: opening one to write, a rename, a removal, a
    write or a synchronisation of its own."""

    def also(name: str, real: Any, descriptor: int, *rest: Any) -> Any:
        if _hooks:
            _hooks[-1](name)
        return real(descriptor, *rest)

    with contextlib.ExitStack() as stack:
        for name in ("fsync", "fdatasync", "write"):
            called = functools.partial(also, name, getattr(os, name))
            stack.enter_context(mock.patch.object(os, name, called))
        _hooks.append(call)
        try:
            yield
        finally:
            _hooks.remove(call)


def raise_at(event: int, error: BaseException, function: Any) -> bool:
    """Calls a function whose n-th change to files raises; whether it got there."""
    seen = 0

    def count(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == event:
            raise error

    try:
        with before_each_change(count):
            function()
    except type(error):
        pass
    return seen >= event


@dataclass
class _Step:
    """One change of names: which entries are set (None: removed), by directory and name."""

    entries: dict[tuple[int, str], int | None]
    durable: bool = False


@dataclass
class _File:
    now: bytes = b""
    durable: bytes | None = None  # None: never synchronised


_Moment = tuple[dict[tuple[int, str], int], list[_Step], dict[int, _File], int]


@dataclass
class Recorder:
    """What happens to a directory while it is open (`with recorder:`).

    Attributes:
        written: counts what the writer has said to be on the disk.
        moments: after each step, what a failing power may leave: names done, and pending; and what
            was counted by then.
    """

    top: Path
    written: Callable[[], int] = int
    moments: list[_Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers: dict[int, int] = {}  # by inode, as long as it is there
        self._next = itertools.count(1)
        self._files: dict[int, _File] = {}
        self._names: dict[tuple[int, str], int] = {}
        self._done: dict[tuple[int, str], int] = {}
        self._pending: list[_Step] = []
        self._root = self._number(os.stat(self.top))
        self._look()
        self._done = dict(self._names)
        self._pending.clear()
        for file in self._files.values():
            file.durable = file.now

    def _number(self, seen: os.stat_result) -> int:
        if seen.st_ino not in self._numbers:
            self._numbers[seen.st_ino] = next(self._next)
        return self._numbers[seen.st_ino]

    def _look(self) -> None:
        """Notes what has changed since the last look."""
        found: dict[tuple[int, str], int] = {}
        todo = [(self._root, self.top)]
        there = {os.stat(self.top).st_ino}
        while todo:
            number, folder = todo.pop()
            for entry in os.scandir(folder):
                seen = entry.stat(follow_symlinks=False)
                there.add(seen.st_ino)
                own = self._number(seen)
                found[number, entry.name] = own
                if entry.is_dir(follow_symlinks=False):
                    todo.append((own, Path(entry.path)))
                else:
                    content = Path(entry.path).read_bytes()
                    self._files.setdefault(own, _File()).now = content
        self._numbers = {ino: n for ino, n in self._numbers.items() if ino in there}
        differing = {
            key: found.get(key)
            for key in found.keys() | self._names.keys()
            if found.get(key) != self._names.get(key)
        }
        if differing:
            # A rename takes one name away and sets another of the same file: one step.
            self._pending.append(_Step(differing))
            self._names = found

    def _change(self, _: str) -> None:
        with _unwatched():
            self._look()
            self._moment()

    def _moment(self) -> None:
        files = {number: _File(file.now, file.durable) for number, file in self._files.items()}
        self.moments.append((dict(self._done), list(self._pending), files, self.written()))

    def _synced(self, descriptor: int) -> None:
        with _unwatched():
            self._look()
            number = self._numbers.get(os.fstat(descriptor).st_ino)
            if number in self._files:
                self._files[number].durable = self._files[number].now
            elif number is not None:
                for step in [s for s in self._pending if any(d == number for d, _ in s.entries)]:
                    _apply(self._done, step)
                    self._pending.remove(step)
            self._moment()

    def __enter__(self) -> Recorder:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(before_each_change(self._change))
        for name in ("fsync", "fdatasync"):
            real = getattr(os, name)

            def synced(descriptor: int, real: Any = real) -> None:
                real(descriptor)
                self._synced(descriptor)

            self._stack.enter_context(mock.patch.object(os, name, synced))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._change("")

    def disks(
        self, draw: random.Random, target: Path, most: int, last: bool = False
    ) -> Iterator[tuple[str, Path, int]]:
        """Makes the directories that may be found; each is removed when the next is asked for. With
        each comes how much the writer had said to be there.

        Args:
            draw: chooses among very many combinations, and the order of moments.
            target: where they are made, one after the other.
            most: combinations of a moment.
            last: only the moment when all was done.
        """
        seen = set()
        moments = list(enumerate(self.moments))[-1 if last else 0 :]
        draw.shuffle(moments)
        for number, (done, pending, files, written) in moments:
            for kept in _choices(draw, len(pending), most):
                for what in ("all", "none", "half", "zeros"):
                    names = dict(done)
                    for step, keep in zip(pending, kept, strict=True):
                        if keep:
                            _apply(names, step)
                    contents = {n: _content(file, what) for n, file in files.items()}
                    tree = dict(_tree(names, contents, self._root))
                    key = (written, *sorted(tree.items(), key=lambda item: item[0]))
                    if key in seen:
                        continue
                    seen.add(key)
                    _write(tree, target)
                    chosen = "".join("1" if keep else "0" for keep in kept)
                    found = f"step {number}, names {chosen or 'all'}, contents {what}"
                    yield found, target, written


def _choices(draw: random.Random, count: int, most: int) -> Iterator[tuple[bool, ...]]:
    """Which of so many pending names are there: all combinations of a few, some of many."""
    if count <= _ALL and 2**count <= most:
        yield from itertools.product((False, True), repeat=count)
        return
    for length in range(count + 1):  # what a journal keeps: the first ones
        yield tuple(n < length for n in range(count))
    for _ in range(most):
        yield tuple(draw.random() < 0.5 for _ in range(count))


def _apply(names: dict[tuple[int, str], int], step: _Step) -> None:
    for key, number in step.entries.items():
        if number is None:
            names.pop(key, None)
        else:
            names[key] = number


def _content(file: _File, what: str) -> bytes:
    if file.now == file.durable or what == "all":
        return file.now
    old = file.durable or b""
    added = len(file.now) - len(old)
    if what == "none" or not file.now.startswith(old):
        return old
    if what == "half":
        return file.now[: len(old) + added // 2]
    return old + bytes(added)


def _tree(
    names: dict[tuple[int, str], int], contents: dict[int, bytes], root: int
) -> Iterator[tuple[str, bytes | None]]:
    folders = {root: ""}
    todo = [root]
    while todo:
        number = todo.pop()
        for (folder, name), own in names.items():
            if folder != number:
                continue
            path = f"{folders[number]}/{name}"
            if own in contents:
                yield path, contents[own]
            else:
                folders[own] = path
                todo.append(own)
                yield path, None


def _write(tree: dict[str, bytes | None], target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path, content in sorted(tree.items()):
        file = target / path.lstrip("/")
        if content is None:
            file.mkdir()
        else:
            file.write_bytes(content)
            os.utime(file, (0, 0))  # as every file of the recorded directory has


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    held = list(_hooks)
    _hooks.clear()
    try:
        yield
    finally:
        _hooks.extend(held)
