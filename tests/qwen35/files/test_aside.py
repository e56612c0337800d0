"""Writing aside: whole or not at all, whenever the writer dies and whoever writes beside it."""

import contextlib
import errno
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from qwen35.checks.errors import CheckpointError
from qwen35.files import aside

OLD = {"gate": b"old gate", "a": b"old a", "b": b"old b", "part-1": b"old part"}
NEW = {"gate": b"new gate", "a": b"new a", "c": b"new c"}
OTHERS = {"notes.txt": b"somebody else's", "part-x.txt": b"too"}
STALE = ("b", "part-?")


def fill(directory, files):
    for name, content in files.items():
        (directory / name).write_bytes(content)


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}


def names(directory):
    return sorted(file.name for file in directory.iterdir())


def switch(directory, files):
    with aside.switched(directory, "gate", STALE) as new:
        fill(new, files)


def replace(directory):
    aside.write(directory / "gate", b"new gate")


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    fill(path, OLD | OTHERS)
    return path


def killed_at(event, function, *arguments):
    """Runs in a child that kills itself before its n-th change to a file; whether it got there."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(name, arguments):
            nonlocal seen
            changes = name in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")
            if changes or (name == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        function(*arguments)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def every_death(directory, function, *arguments):
    """Yields after each death of the function, in a directory that is filled anew each time."""
    event = 1
    while killed_at(event, function, *arguments):
        yield event
        for file in directory.iterdir():
            if file.is_file():
                file.unlink()
        fill(directory, OLD | OTHERS)
        event += 1
    assert event > 8  # it did something that can be interrupted


def test_files_take_their_places_together(directory):
    switch(directory, NEW)
    assert contents(directory) == NEW | OTHERS
    assert names(directory) == sorted(NEW | OTHERS)  # nothing is left beside them


def test_all_that_is_stale_goes_but_directories(directory):
    (directory / "folder").mkdir()
    with aside.switched(directory, "gate", stale=("*",)) as new:
        fill(new, NEW)
    assert contents(directory) == NEW and names(directory) == sorted([*NEW, "folder"])


def test_whenever_the_writer_dies_there_is_the_old_or_the_new(directory):
    """Before `settle` a program that asks for the gate first finds the old, nothing, or the new."""
    seen = set()
    for _ in every_death(directory, switch, directory, NEW):
        found = contents(directory)
        if "gate" in found:
            state = "old" if found["gate"] == OLD["gate"] else "new"
            assert found == (OLD if state == "old" else NEW) | OTHERS
        else:
            state = "none"
        aside.settle(directory)
        settled = contents(directory)
        assert settled == NEW | OTHERS or (state == "old" and settled == OLD | OTHERS)
        seen.add(state)
        switch(directory, {"gate": b"next"})
        assert not [name for name in names(directory) if name.startswith(".")]
    assert seen == {"old", "none", "new"}


def test_whoever_finishes_a_switch_may_die_too(directory):
    """A switch that dies right after it counts, and whoever settles it dies at every step."""

    def die_after_the_commit():
        moved = aside._move_all
        aside._move_all = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        try:
            switch(directory, NEW)
        finally:
            aside._move_all = moved

    event = 1
    while True:
        for file in directory.iterdir():
            file.unlink()
        fill(directory, OLD | OTHERS)
        assert killed_at(10**6, die_after_the_commit)
        assert contents(directory) == OLD | OTHERS
        alive = not killed_at(event, aside.settle, directory)
        aside.settle(directory)
        assert contents(directory) == NEW | OTHERS
        assert names(directory) == sorted(NEW | OTHERS)
        if alive:
            break
        event += 1
    assert event > 8


def test_a_single_file_is_old_or_new_whenever_the_writer_dies(directory):
    seen = set()
    for _ in every_death(directory, replace, directory):
        seen.add((directory / "gate").read_bytes())
        assert contents(directory).keys() == (OLD | OTHERS).keys()
        aside.write(directory / "a", b"next")
        assert not [name for name in names(directory) if name.startswith(".")]
    assert seen == {b"old gate", b"new gate"}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_block_leaves_everything_as_it_was(directory, error):
    with pytest.raises(type(error)), aside.switched(directory, "gate", STALE) as new:
        fill(new, NEW)
        raise error
    with pytest.raises(type(error)), aside.replaced(directory / "a") as file:
        file.write_bytes(b"half")
        raise error
    assert contents(directory) == OLD | OTHERS and names(directory) == sorted(OLD | OTHERS)


def test_writers_at_once_never_mix(directory):
    """Eight threads, each with its own contents: what stands there at the end is one's, whole."""

    def write(number):
        for turn in range(10):
            files = {name: f"{number} {turn}".encode() for name in ("gate", "a", f"part-{number}")}
            switch(directory, files)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = contents(directory)
    number, turn = found["gate"].split()
    assert turn == b"9" and found["a"] == found["gate"]
    assert [name for name in found if name.startswith("part-") and name not in OTHERS] == [
        f"part-{number.decode()}"
    ]
    assert not [name for name in names(directory) if name.startswith(".")]


def test_a_switch_that_comes_and_goes_where_an_empty_one_is_removed(directory, monkeypatch):
    """It was in the way, and is done when one looks: nothing has failed."""
    pending = directory / ".switching"
    pending.mkdir()  # as a writer leaves it that dies before its very last step
    remove, failed = Path.rmdir, []

    def rmdir(path):
        if path == pending and not failed:
            failed.append(path)
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        remove(path)

    monkeypatch.setattr(Path, "rmdir", rmdir)
    aside.settle(directory)
    assert failed and not pending.exists()


def test_writers_that_live_are_let_be(directory):
    with aside.switched(directory, "gate", STALE) as slow:
        fill(slow, NEW)
        with aside.replaced(directory / "gate") as file:
            file.write_bytes(b"quick")
        switch(directory, {"gate": b"quick", "a": b"quick"})
        assert contents(directory)["a"] == b"quick"
    assert contents(directory) == NEW | OTHERS


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
def test_permissions_are_what_the_umask_says(directory, umask):
    old = os.umask(umask)
    try:
        with aside.switched(directory, "gate") as new:
            fill(new, NEW)
            (new / "a").chmod(0o600)  # as the writer of safetensors leaves its files
        replace(directory)
    finally:
        os.umask(old)
    for name in NEW:
        assert (directory / name).stat().st_mode & 0o777 == 0o666 & ~umask


def test_content_is_on_the_disk_before_its_name_is(directory, monkeypatch):
    """Each file and its directory are synchronised before the rename that makes them count, and
    the directory that they come into after it."""
    log = []

    def note(name, function):
        def noted(first, *rest, **options):
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
            log.append((name, os.path.basename(path)))
            return function(first, *rest, **options)

        return noted

    monkeypatch.setattr(os, "fsync", note("sync", os.fsync))
    monkeypatch.setattr(os, "rename", note("rename", os.rename))
    monkeypatch.setattr(os, "replace", note("rename", os.replace))
    replace(directory)
    assert log == [("sync", "gate"), ("rename", "gate"), ("sync", "checkpoint")]
    log.clear()
    switch(directory, NEW)
    commit = next(index for index, entry in enumerate(log) if entry[0] == "rename")
    synced = [name for _, name in log[:commit]]
    assert {*NEW, "plan.json", "new"} <= set(synced) and synced.index("new") > synced.index("a")
    assert log[commit][1].endswith(".aside") and synced[-1] == log[commit][1]
    assert log[commit + 1] == ("sync", "checkpoint") and log[-2] == ("sync", "checkpoint")
    assert log[-3] == ("rename", "gate") and log[-4] == ("sync", "checkpoint")
    assert log[-1] == ("sync", ".switching")  # without its plan, before its lock goes
    log.clear()
    aside.make_directory(directory / "one" / "two")
    assert sorted(log) == [("sync", "checkpoint"), ("sync", "one")]
    log.clear()
    aside.make_directory(directory / "one" / "two")
    assert not log


def test_a_directory_in_the_way_is_found_before_anything_moves(directory):
    (directory / "c").mkdir()
    with pytest.raises(IsADirectoryError, match="in the way"):
        switch(directory, NEW)
    assert contents(directory) == OLD | OTHERS
    with pytest.raises(OSError):
        aside.write(directory / "c", b"")
    assert names(directory) == sorted([*OLD, *OTHERS, "c"])


PLAN = '{{"gate": {gate}, "files": {files}, "stale": {stale}}}'


@pytest.mark.parametrize(
    "plan",
    [
        "{",
        "[]",
        "{}",
        PLAN.format(gate='"../victim"', files="[]", stale="[]"),
        PLAN.format(gate='"gate"', files='["gate", "../victim"]', stale="[]"),
        PLAN.format(gate='"gate"', files='["gate"]', stale='["../*"]'),
        PLAN.format(gate='"gate"', files="[3]", stale="[]"),
        PLAN.format(gate='"gate"', files="3", stale="[]"),
        PLAN.format(gate='"gate"', files='["gate"]', stale="[3]"),
    ],
)
def test_a_foreign_plan_is_refused_and_touches_nothing(directory, plan):
    """A downloaded directory may hold anything."""
    pending = directory / ".switching"
    (pending / "new").mkdir(parents=True)
    fill(pending, {"lock": b"", "plan.json": plan.encode(), "victim": b"new"})
    fill(pending / "new", {"gate": b"new"})
    victim = directory.parent / "victim"
    victim.write_text("precious")
    with pytest.raises(CheckpointError, match=r"plan\.json: .*the plan of a save"):
        aside.settle(directory)
    assert contents(directory) == OLD | OTHERS and victim.read_text() == "precious"


def test_a_foreign_link_or_directory_is_refused(directory, tmp_path):
    victim = tmp_path / "victim"
    (victim / "new").mkdir(parents=True)
    fill(victim, {"lock": b""})
    for name in (".switching", ".gate.00000000.aside"):
        (directory / name).symlink_to(victim)
    with pytest.raises(CheckpointError, match="interrupted at its end, and finishing it failed"):
        aside.settle(directory)
    (directory / ".switching").unlink()
    replace(directory)
    assert names(victim) == ["lock", "new"]
    (directory / ".switching").mkdir()
    fill(directory / ".switching", {"something": b"else"})
    with pytest.raises(CheckpointError, match="finishing it failed"):
        aside.settle(directory)


def test_a_switch_that_cannot_be_cleared_is_cleared_later(directory, monkeypatch):
    """Its lock stays: without one, whoever came next took it for a foreign directory, for ever."""
    with monkeypatch.context() as patch:

        def broken(path, **_):
            raise OSError(errno.EIO, "Input/output error", str(path))

        patch.setattr("shutil.rmtree", broken)
        with pytest.raises(CheckpointError, match="Input/output error"):
            switch(directory, NEW)
        with pytest.raises(CheckpointError, match="Input/output error"):
            aside.settle(directory)
    assert contents(directory) == NEW | OTHERS
    aside.settle(directory)
    assert names(directory) == sorted(NEW | OTHERS)


@pytest.mark.parametrize("left", [("new",), ("plan.json",), ("new", "plan.json")])
def test_leftovers_without_their_lock_go(directory, left):
    """Its name was not on the disk yet, or no more, when the power failed."""
    staging = directory / ".a.00000000.aside"
    staging.mkdir()
    for name in left:
        if name == "new":
            (staging / name).mkdir()
            fill(staging / name, NEW)
        else:
            fill(staging, {name: b"{}"})
    replace(directory)
    assert names(directory) == sorted(OLD | OTHERS)


def test_who_reads_while_files_are_switched_reads_again(directory):
    """Between two files, between the last and the end, and where half of them made an error."""
    for moment in ("between", "after", "error"):
        switch(directory, {"gate": b"old", "a": b"old"})
        found = []
        for reading in aside.steady(directory, "gate"):
            with reading:
                first = (directory / "gate").read_bytes()
                if moment == "between" and not found:
                    switch(directory, {"gate": b"new", "a": b"new"})
                found.append((first, (directory / "a").read_bytes()))
                if moment != "between" and len(found) == 1:
                    switch(directory, {"gate": b"new", "a": b"new"})
                    if moment == "error":
                        raise CheckpointError("files of two")
        assert len(found) == 2 and found[-1] == (b"new", b"new")


def test_what_is_wrong_with_steady_files_is_raised(directory):
    tried = []
    with pytest.raises(CheckpointError, match="of its own"):
        for reading in aside.steady(directory, "gate"):
            with reading:
                tried.append(1)
                raise CheckpointError("of its own")
    assert tried == [1]


def test_leftovers_of_others_and_of_the_living_stay(directory):
    """An empty one goes, as its writer died before locking it; one with other content stays."""
    (directory / ".a.00000000.aside").mkdir()
    (directory / ".b.00000000.aside").mkdir()
    fill(directory / ".b.00000000.aside", {"draft": b""})
    replace(directory)
    assert [name for name in names(directory) if name.startswith(".")] == [".b.00000000.aside"]


def test_settling_waits_for_a_living_writer(directory):
    """A reader that comes while files move gets the new ones, not a missing gate."""
    moving, go = threading.Event(), threading.Event()
    move = aside._move_all

    def slow(path):
        moving.set()
        assert go.wait(10)
        move(path)

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(aside, "_move_all", slow)
        writer = threading.Thread(target=switch, args=(directory, NEW))
        writer.start()
        assert moving.wait(10)
        patch.setattr(aside, "_move_all", move)
        reader = threading.Thread(target=aside.settle, args=(directory,))
        reader.start()
        reader.join(0.2)
        assert reader.is_alive() and contents(directory) == OLD | OTHERS
        go.set()
        reader.join(10)
        writer.join(10)
    assert contents(directory) == NEW | OTHERS
