"""Writers that are interrupted, and disks that fail, are full, or lose power.

Whatever is written stands there as it was before or as it was to become, whole, and the next writer
goes on. What is written stands in `writers`; those that are killed in `test_deaths_by_kill`.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
import resource
import shutil
import signal
import sys

import pytest
from disk import Recorder, raise_at
from oracle import Fault
from writers import ADDED, CASES, NEW, OLD, Case, check, check_next, fresh


@pytest.fixture(params=sorted(CASES))
def case(request) -> Case:
    return CASES[request.param]


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
    recorder = Recorder(directory, lambda: len(ADDED))
    ADDED.clear()
    with recorder:
        case.write(directory)
    draw = campaign.random(0)
    most = 48 if campaign.full else 2
    disks = recorder.disks(draw, tmp_path / "disk", most)
    for number, (what, disk, written) in zip(
        campaign.numbers("power failures"), disks, strict=False
    ):
        try:
            if case.kept(disk) < written:
                raise Fault(f"{case.kept(disk)} of {written} pieces that were written")
            check(case, disk)
            if number % 5 == 0:
                check_next(case, disk)
        except Fault as fault:
            campaign.findings.add(fault, lambda what=what: what)
    for what, disk, _ in recorder.disks(draw, tmp_path / "disk", most, last=True):
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
    """A file system of 256 KiB, with more or less room on it."""
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if libc.mount(b"tmpfs", bytes(disk), b"tmpfs", 0, b"size=256k") != 0:
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
            free = draw.choice((draw.randrange(2**14), draw.randrange(left)))
            (disk / "filler").write_bytes(bytes(left - free))
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
