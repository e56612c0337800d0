"""Writers that die at each change that they make, and disks that fail, are full, or lose power.

Whatever is written stands there as it was before or as it was to become, whole, and the next writer
goes on. What is written: checkpoints, over others and anew; conversions; states; reports; a batch's
answers.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
from disk import Recorder, before_each_change, raise_at
from oracle import Fault
from test_tensors import SMALL
from torch.utils import _pytree as pytree

import qwen35
from qwen35.files import aside
from qwen35.files.compressing import compress
from qwen35.files.conversion import convert
from qwen35.files.journal import opened
from qwen35.reports.page import write_report
from qwen35.sharding.mesh import Mesh

OLD, NEW, NOTHING = "old", "new", "nothing"
MODELS = {name: qwen35.init_params(SMALL, seed=seed) for seed, name in enumerate((OLD, NEW))}
TOKENS = torch.tensor([[5, 6, 7]])
LINES = [{"id": f"x{number}", "text": "é" * number} for number in range(4)]


@dataclass(frozen=True)
class Case:
    """Something that is written in a directory.

    Attributes:
        prepare: makes what is there before.
        write: what is watched.
        found: tells what is there: OLD, NEW, NOTHING; raises `Fault` for anything else.
        allowed: of that, while it is written.
    """

    prepare: Callable[[Path], None]
    write: Callable[[Path], None]
    found: Callable[[Path], str]
    allowed: tuple[str, ...] = (OLD, NEW)


def save(directory: Path, name: str, shard: int = 10**9) -> None:
    with mock.patch("qwen35.files.checkpoint._SHARD_BYTES", shard):
        qwen35.save(MODELS[name], directory / "model")


def whose(params: qwen35.Params) -> str:
    leaves = pytree.tree_leaves(params)
    for name, known in MODELS.items():
        if all(map(torch.equal, leaves, pytree.tree_leaves(known))):
            return name
    raise Fault("a mixture of two models")


def saved(directory: Path) -> str:
    if not (directory / "model").exists():
        return NOTHING
    try:
        return whose(qwen35.load(directory / "model"))
    except qwen35.CheckpointError as error:
        if "no such file" not in str(error):
            raise Fault(f"refused: {error}") from error
        return NOTHING


def write_state(directory: Path, name: str) -> None:
    params = MODELS[OLD]
    tokens = TOKENS if name == OLD else TOKENS + 1
    _, state = qwen35.prefill(params, qwen35.init_state(params, 1, 8), tokens)
    qwen35.save_state(directory / "state", params, state, metadata={"name": name})


def read_state(directory: Path) -> str:
    if not (directory / "state").exists():
        return NOTHING
    try:
        return qwen35.load_state(directory / "state", MODELS[OLD]).metadata["name"]
    except qwen35.CheckpointError as error:
        raise Fault(f"refused: {error}") from error


def converted(directory: Path) -> str:
    """Both ranks are of the new model, or some are not there yet, and converting goes on."""
    for again in (False, True):
        try:
            if again:
                convert(directory / "model", directory / "out", 2, dtype="float32")
            for rank in range(2):
                runtime = qwen35.Runtime(mesh=Mesh(tp=2), rank=rank)
                ours = qwen35.load(directory / "out", runtime=runtime)
                theirs = qwen35.load(directory / "model", runtime=runtime)
                if not all(map(torch.equal, pytree.tree_leaves(ours), pytree.tree_leaves(theirs))):
                    raise Fault("a rank of another model")
            return NOTHING if again else NEW
        except qwen35.CheckpointError as error:
            if again:
                raise Fault(f"it can't be gone on with: {error}") from error
    raise AssertionError


def compressed(directory: Path) -> str:
    """As `converted`: codes equal those that loading makes."""
    wanted = pytree.tree_leaves(qwen35.load(directory / "model", weights="int8"))
    for again in (False, True):
        try:
            if again:
                compress(directory / "model", directory / "out", "int8")
            ours = pytree.tree_leaves(qwen35.load(directory / "out"))
            if not all(
                torch.equal(a.float(), b.float()) for a, b in zip(ours, wanted, strict=True)
            ):
                raise Fault("other codes")
            return NOTHING if again else NEW
        except qwen35.CheckpointError as error:
            if again:
                raise Fault(f"it can't be gone on with: {error}") from error
    raise AssertionError


def report(directory: Path, name: str) -> None:
    result = {"model": name, "dtype": "float32", "device": "cpu", "versions": {}}
    result["provenance"] = {"date": "", "commit": None, "processor": "", "command": ""}
    with mock.patch("qwen35.reports.page.render", lambda found: ""):
        write_report(directory / "out", "page", name, result, name, {})


def reported(directory: Path) -> str:
    if not (directory / "out").exists():
        return NOTHING
    aside.settle(directory / "out")
    page, data = directory / "out" / "page.md", directory / "out" / "page.json"
    if not page.exists():
        return NOTHING
    name = json.loads(data.read_text())["model"]
    if not page.read_text().startswith(f"# {name}\n"):
        raise Fault("a page of one run and the data of another")
    return name


def answer(directory: Path, rewrite: bool = False) -> None:
    """Adds lines, and says so after each where the test can see it."""
    with opened(directory / "out.jsonl", lambda line: line["id"], b'{"id": "') as journal:
        places = [place for place, _ in journal.known]
        for line in LINES[len(places) :]:
            places.append(journal.add(line))
            ADDED.append(line["id"])
        if rewrite:
            journal.rewrite(list(reversed(places)))


ADDED: list[str] = []


def answered(directory: Path) -> str:
    path = directory / "out.jsonl"
    if not path.exists():
        return NOTHING
    try:
        with opened(path, lambda line: line["id"], b'{"id": "') as journal:
            known = [name for _, name in journal.known]
    except ValueError as error:
        raise Fault(f"it can't be gone on with: {error}") from error
    names = [line["id"] for line in LINES]
    if known == names[::-1]:
        return NEW
    if known != names[: len(known)]:
        raise Fault(f"other lines: {known}")
    return OLD if len(known) < len(LINES) else NEW


def of_source(directory: Path) -> None:
    save(directory, NEW)


CASES = {
    "a checkpoint over another": Case(
        lambda d: save(d, OLD), lambda d: save(d, NEW), saved
    ),
    "shards over a checkpoint": Case(
        lambda d: save(d, OLD), lambda d: save(d, NEW, 3000), saved
    ),
    "a checkpoint over shards": Case(
        lambda d: save(d, OLD, 3000), lambda d: save(d, NEW), saved
    ),
    "shards over shards": Case(
        lambda d: save(d, OLD, 3000), lambda d: save(d, NEW, 2000), saved
    ),
    "a new checkpoint": Case(
        lambda d: None, lambda d: save(d, NEW, 3000), saved, (NOTHING, NEW)
    ),
    "a state over another": Case(
        lambda d: write_state(d, OLD), lambda d: write_state(d, NEW), read_state
    ),
    "a new state": Case(
        lambda d: None, lambda d: write_state(d, NEW), read_state, (NOTHING, NEW)
    ),
    "a conversion for ranks": Case(
        of_source, lambda d: convert(d / "model", d / "out", 2, dtype="float32"), converted,
        (NOTHING, NEW),
    ),
    "a quantised conversion": Case(
        of_source, lambda d: compress(d / "model", d / "out", "int8"), compressed, (NOTHING, NEW)
    ),
    "a report over another": Case(
        lambda d: report(d, OLD), lambda d: report(d, NEW), reported
    ),
    "a new report": Case(lambda d: None, lambda d: report(d, NEW), reported, (NOTHING, NEW)),
    "answers": Case(lambda d: None, lambda d: answer(d, rewrite=True), answered,
                    (NOTHING, OLD, NEW)),
}  # fmt: skip


@pytest.fixture(params=sorted(CASES))
def case(request) -> Case:
    return CASES[request.param]


def check(case: Case, directory: Path, finished: bool = False) -> str:
    """What is found is allowed, and the next writer's is there whole, with nothing beside it."""
    found = case.found(directory)
    if found not in ((NEW,) if finished else case.allowed):
        raise Fault(f"found {found}")
    return found


def check_next(case: Case, directory: Path) -> None:
    """Who writes again leaves the new, and no leftovers of the one that died."""
    case.write(directory)
    if case.found(directory) != NEW:
        raise Fault("what is written next is not there")
    hidden = [path for path in directory.rglob(".*") if path.name != ".gitignore"]
    if hidden:
        raise Fault(f"left for ever: {hidden[0].relative_to(directory)}")


def fresh(case: Case, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    case.prepare(directory)
    for file in directory.rglob("*"):  # a conversion looks at a source's time
        os.utime(file, (0, 0))
    return directory


def killed(case: Case, directory: Path, event: int) -> bool:
    """Writes in a child that kills itself before its n-th change; whether it got there."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(_: str) -> None:
            nonlocal seen
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
        with before_each_change(count):
            case.write(directory)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the child ended with {status}"
    return status == signal.SIGKILL


def test_killed_at_every_change(campaign, case, tmp_path):
    """SIGKILL before each file that is opened to write, made, renamed or removed."""
    events = itertools.count(1) if campaign.full else [1 + campaign.random(0).randrange(12)]
    for event in events:
        campaign.count("kill points")
        directory = fresh(case, tmp_path / "d")
        alive = not killed(case, directory, event)
        try:
            check(case, directory, finished=alive)
            check_next(case, directory)
        except Fault as fault:
            campaign.findings.add(fault, lambda event=event: f"killed before change {event}")
        if alive:
            break


def test_killed_again_over_what_was_left(campaign, case, tmp_path):
    """Two or three writers one after the other, each killed at any change."""
    for number in campaign.numbers("kill points"):
        draw = campaign.random(number)
        directory = fresh(case, tmp_path / "d")
        events = [draw.randrange(1, 60) for _ in range(draw.choice((2, 2, 3)))]
        for event in events:
            killed(case, directory, event)
        campaign.count("kill points", len(events) - 1)
        try:
            check(case, directory)
            check_next(case, directory)
        except Fault as fault:
            campaign.findings.add(fault, lambda events=events: f"killed before changes {events}")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_an_error_at_every_change(campaign, case, error, tmp_path):
    """Ctrl-C, or a disk that fails, before each: the writer lives, and cleans up after itself."""
    events = itertools.count(1) if campaign.full else [1 + campaign.random(0).randrange(12)]
    for event in events:
        campaign.count("interrupts" if isinstance(error, KeyboardInterrupt) else "broken disks")
        directory = fresh(case, tmp_path / "d")
        stopped = raise_at(event, error, lambda directory=directory: case.write(directory))
        try:
            check(case, directory, finished=not stopped)
            check_next(case, directory)
        except Fault as fault:
            campaign.findings.add(fault, lambda event=event: f"{error!r} at change {event}")
        if not stopped:
            break


def test_power_fails_after_every_change(campaign, case, tmp_path):
    """What was not synchronised is there or not, in any order; what was promised is there."""
    directory = fresh(case, tmp_path / "d")
    recorder = Recorder(directory)
    ADDED.clear()
    with recorder:
        case.write(directory)
    draw = campaign.random(0)
    most = 48 if campaign.full else 2
    disks = recorder.disks(draw, tmp_path / "disk", most)
    for number, (what, disk) in zip(campaign.numbers("power failures"), disks, strict=False):
        try:
            check(case, disk)
            if number % 5 == 0:
                check_next(case, disk)
        except Fault as fault:
            campaign.findings.add(fault, lambda what=what: what)
    for what, disk in recorder.disks(draw, tmp_path / "disk", most, last=True):
        campaign.count("power failures")
        try:
            check(case, disk, finished=True)
        except Fault as fault:
            campaign.findings.add(fault, lambda what=what: f"after it had returned: {what}")


def test_a_full_disk(campaign, case, tmp_path):
    """No file may grow beyond a size: the error is the system's, and nothing has changed."""
    for number in campaign.numbers("full disks"):
        draw: random.Random = campaign.random(number)
        directory = fresh(case, tmp_path / "d")
        limit = draw.choice((0, 1, 7, 100, 500, 1000, 2000, draw.randrange(6000)))
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                case.write(directory)
            except OSError:
                os._exit(3)
            except BaseException as error:
                print(repr(error)[:300], file=sys.stderr)
                os._exit(4)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            if code not in (0, 3):
                raise Fault("another error than the system's")
            check(case, directory, finished=code == 0)
            check_next(case, directory)
        except Fault as fault:
            campaign.findings.add(fault, lambda limit=limit: f"files of {limit} bytes at most")


def test_a_disk_that_is_really_full(campaign, tmp_path):
    """A file system of 64 KiB, with less and less room on it."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if libc.mount(b"tmpfs", bytes(disk), b"tmpfs", 0, b"size=64k") != 0:
        pytest.skip(f"mounting a file system: {os.strerror(ctypes.get_errno())}")
    try:
        cases = sorted(CASES)
        for number in campaign.numbers("full disks", len(cases)):
            case = CASES[cases[number % len(cases)]]
            shutil.rmtree(disk / "d", ignore_errors=True)
            (disk / "filler").unlink(missing_ok=True)
            directory = fresh(case, disk / "d")
            room = os.statvfs(disk)
            draw = campaign.random(number)
            left = room.f_bavail * room.f_frsize
            (disk / "filler").write_bytes(bytes(draw.randrange(left)))
            try:
                try:
                    case.write(directory)
                    code = NEW
                except OSError:
                    code = OLD
                (disk / "filler").unlink()
                check(case, directory, finished=code == NEW)
                check_next(case, directory)
            except Fault as fault:
                campaign.findings.add(fault, lambda n=number: cases[n % len(cases)])
            except Exception as error:
                campaign.findings.add(error, lambda n=number: cases[n % len(cases)])
    finally:
        libc.umount2(bytes(disk), 2)
