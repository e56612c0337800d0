"""Writes files aside and switches them into place whole.

New files stand in a directory of their own beside what they replace, `.NAME.RANDOM.aside`, until
they are complete and on the disk. One file then takes its place with one rename. Several take
theirs with one rename too: their directory becomes `.switching`, from then on the new files are
the ones that count, and moving them out of it is bookkeeping, which `settle` finishes for a writer
that died over it. Meanwhile the gate, a file without which no program reads the others, is not
there: who knows nothing of this module finds no checkpoint, never a mixture of two.

A writer holds a lock in its directory, and the lock ends with its process, however that ends. So
a directory whose lock is free was left by a dead writer; the next one beside it removes it. Of two
that write the same at once, the last one wins, whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ..checks.errors import CheckpointError
from ..checks.json_file import read_object, to_text

_SWITCHING = ".switching"


@contextlib.contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Yields the path to write a file to; it takes the place of `target` when the block ends.

    If the block raises, or the process dies, `target` stays what it was. The file's permissions
    become what the umask says, whatever wrote it.

    Raises:
        OSError: the file can't be written.
    """
    with _staging(target.parent, target.name) as staging:
        file = staging / "new" / target.name
        yield file
        _sync_file(file, staging)
        os.replace(file, target)
        sync(target.parent)


def make_directory(directory: Path) -> None:
    """Makes a directory, and those above it, unless it is there; then its name is on the disk.

    Raises:
        OSError: it can't be made.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def write(target: Path, content: bytes) -> None:
    """Writes a file as `replaced` does."""
    with replaced(target) as file:
        file.write_bytes(content)


@contextlib.contextmanager
def switched(directory: Path, gate: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Yields an empty directory; its files take their places in `directory` together.

    That happens when the block ends, as one switch for who calls `settle` before reading, and for
    everybody else without a moment at which old and new files stand together behind the gate.
    If the block raises, or the process dies in it, `directory` stays what it was.

    Args:
        directory: where the files belong; other files in it stay. It must be there.
        gate: the name of the new file without which no reader looks at the others.
        stale: patterns of file names (as for fnmatch) that belong to the old files: what they
            match and the new files don't replace is removed. Looked at when the block ends.

    Raises:
        OSError: the files can't be written.
    """
    try:
        with _staging(directory, gate) as staging:
            yield staging / "new"
            _commit(staging, directory, gate, stale)
            _move_all(directory)
    except BaseException:
        settle(directory)  # what was interrupted after the commit counts
        raise


def _commit(staging: Path, directory: Path, gate: str, stale: Sequence[str]) -> None:
    """Turns a directory of complete files into `.switching`, once no other writer's is there."""
    names = sorted(file.name for file in (staging / "new").iterdir())
    blocked = [name for name in names if (directory / name).is_dir()]
    if blocked:
        raise IsADirectoryError(errno.EISDIR, "a directory is in the way", blocked[0])
    plan = {"gate": gate, "files": names, "stale": list(stale)}
    (staging / "plan.json").write_bytes(to_text(plan))
    for file in (staging / "plan.json", *(staging / "new" / name for name in names)):
        _sync_file(file, staging)
    sync(staging / "new")
    sync(staging)
    while True:
        settle(directory)
        try:
            staging.rename(directory / _SWITCHING)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else another writer's switch came first
    sync(directory)


def settle(directory: Path) -> None:
    """Finishes a switch in `directory` whose writer died over it; waits for one that lives.

    Raises:
        CheckpointError: there is one to finish, and this process may not or can't.
    """
    pending = directory / _SWITCHING
    try:
        while pending.exists():
            with _locked(pending / "lock") as held:
                if held:
                    _move_all(directory)
                else:
                    _remove_empty(pending)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: a save was interrupted at its end, and finishing it failed ({error})"
        ) from None


def steady(directory: Path, gate: str) -> Iterator[AbstractContextManager[None]]:
    """Yields a `with` block in which to open the files behind a gate: all of them of one writer.

    Where they were switched meanwhile, which may have shown old ones beside new ones, another block
    comes, and what was wrong in this one (CheckpointError) does not count.

    Raises:
        CheckpointError: as `settle`.
    """

    def mark() -> tuple[int, ...] | None:
        if (directory / _SWITCHING).exists():
            return None
        try:
            seen = os.stat(directory / gate)
        except OSError:
            return ()
        return seen.st_ino, seen.st_ctime_ns, seen.st_size

    again = True

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        nonlocal again
        before = mark()
        try:
            yield
        except CheckpointError:
            again = mark() != before or before is None
            if not again:
                raise
        else:
            again = mark() != before or before is None

    while again:
        settle(directory)
        yield block()


def _move_all(directory: Path) -> None:
    """Moves what `.switching` holds into place, as far as that has not happened yet."""
    pending = directory / _SWITCHING
    gate, names, stale = _read_plan(pending)
    new = pending / "new"
    if gate is not None and (new / gate).exists():
        (directory / gate).unlink(missing_ok=True)
        sync(directory)
        for name in names:
            if name != gate and (new / name).exists():
                os.replace(new / name, directory / name)
        for file in directory.iterdir():
            matches = any(fnmatch.fnmatchcase(file.name, pattern) for pattern in stale)
            if matches and file.name not in names and not file.is_dir():
                file.unlink(missing_ok=True)
        sync(directory)
        os.replace(new / gate, directory / gate)
        sync(directory)
    _remove(pending)


def _read_plan(pending: Path) -> tuple[str | None, list[str], list[str]]:
    """The gate, the names and the stale patterns; no gate where the plan was removed already."""
    file = pending / "plan.json"
    if not file.exists():
        return None, [], []
    plan = read_object(file, "the plan of a save")
    gate, names, stale = plan.get("gate"), plan.get("files"), plan.get("stale")
    lists = isinstance(names, list) and isinstance(stale, list)
    every = [gate, *names, *stale] if lists else [None]
    # A downloaded directory must not make us move or remove files elsewhere on the machine.
    if not all(isinstance(name, str) and Path(name).name == name for name in every):
        raise CheckpointError(f"{file}: not the plan of a save: it holds other than names of files")
    if (pending / "new").is_symlink():
        raise CheckpointError(f"{pending / 'new'}: a link, and not what a save leaves")
    return gate, names, stale


@contextlib.contextmanager
def _staging(directory: Path, label: str) -> Iterator[Path]:
    """A new directory in `directory` with a held `lock` and an empty `new`; removed at the end."""
    for leftover in directory.glob(".*.aside"):
        _remove_if_dead(leftover)
    while True:
        staging = directory / f".{label}.{secrets.token_hex(4)}.aside"
        staging.mkdir()
        with _locked(staging / "lock", os.O_CREAT) as held:
            if not held:
                continue  # another writer took it for a dead one's, before it was locked
            try:
                (staging / "new").mkdir()
                yield staging
            finally:
                with contextlib.suppress(OSError):  # what is left, the next writer removes
                    _remove(staging)
            return


@contextlib.contextmanager
def _locked(file: Path, flags: int = 0, wait: bool = True) -> Iterator[bool]:
    """Holds a lock and yields True; yields False if there is none, or none any more."""
    if file.parent.is_symlink():  # no writer of ours made it: it may lead anywhere
        raise NotADirectoryError(errno.ENOTDIR, "a link, not a directory", str(file.parent))
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        try:
            held = os.path.samestat(os.fstat(descriptor), os.stat(file))
        except FileNotFoundError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _remove_if_dead(staging: Path) -> None:
    with contextlib.suppress(OSError):  # its writer lives, or it is another user's
        with _locked(staging / "lock", wait=False) as held:
            # The lock comes before these: where it is not, it went with its writer and the power.
            ours = any((staging / name).exists() for name in ("new", "plan.json"))
            if held or (ours and not (staging / "lock").exists()):
                _remove(staging)
            else:
                staging.rmdir()  # that of a writer which died, or lives, just before locking it


def _remove_empty(pending: Path) -> None:
    """Removes `.switching` where it has no lock: its writer died before its very last step."""
    try:
        pending.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        try:
            left = os.listdir(pending)
        except FileNotFoundError:
            left = []
        if left and "lock" not in left:
            raise  # else another writer's switch has come, and may have gone again


def _remove(staging: Path) -> None:
    """Removes a directory of ours, its lock last, so that a half-removed one is known as dead.

    Raises:
        OSError: it can't be removed whole; then the lock is there still.
    """
    if not staging.exists():
        return
    if (staging / "new").exists():
        shutil.rmtree(staging / "new")
    plan = staging / "plan.json"
    if plan.exists():
        plan.unlink()
        sync(staging)  # else the lock may be gone, and the plan there, when the power fails
    (staging / "lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another writer's switch may have taken the place
        staging.rmdir()


def _sync_file(file: Path, staging: Path) -> None:
    """Has a file on the disk, with the permissions that the umask leaves."""
    file.chmod(staging.stat().st_mode & 0o666)
    sync(file)


def sync(path: Path) -> None:
    """Has a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
