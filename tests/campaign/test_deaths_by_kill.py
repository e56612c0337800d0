"""Writers that are killed: at each change that Python makes, at system calls, inside of writes that
others make, several at once, and readers that finish a dead writer's switch.

Whatever is written stands there as it was before or as it was to become, whole, and the next writer
goes on. What is written stands in `writers`.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from oracle import Fault
from writers import (
    CASES,
    DEMO,
    NEW,
    NOTHING,
    OTHER,
    Case,
    check,
    check_next,
    fresh,
    killed,
    started,
    was_killed,
)

from qwen35.commands import cli

RIVALS = sorted(name for name, case in CASES.items() if case.rival is not None)
# Those that change files, or by which writers wait for each other; each is counted by itself.
CALLS = ("openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "ftruncate", "chmod",
         "rename", "unlink", "unlinkat", "mkdir", "rmdir", "flock", "close", "mmap")  # fmt: skip


@pytest.fixture(params=sorted(CASES))
def case(request) -> Case:
    return CASES[request.param]


def check_left(campaign, case: Case, directory: Path, how: str, finished: bool = False) -> None:
    """Notes what is wrong with what dead writers left, and with what the next one makes of it."""
    try:
        check(case, directory, finished)
        check_next(case, directory)
    except Fault as fault:
        campaign.findings.add(fault, lambda: how)


def test_killed_at_every_change(campaign, case, tmp_path):
    """Before each file that is opened to write, made, renamed, synchronised or removed."""
    events = itertools.count(1) if campaign.full else [1 + campaign.random(0).randrange(12)]
    for event in events:
        directory = fresh(case, tmp_path / "d")
        dead = killed(case.write, directory, event)
        campaign.count("kills before a change", dead)
        check_left(campaign, case, directory, f"before change {event}", finished=not dead)
        if not dead:
            break


@pytest.mark.weight(3)
def test_killed_again_over_what_was_left(campaign, case, tmp_path):
    """Two or three writers one after the other, each killed at any change."""
    for number in campaign.numbers("successions of writers"):
        draw = campaign.random(number)
        directory = fresh(case, tmp_path / "d")
        events = [draw.randrange(1, 40) for _ in range(draw.choice((2, 2, 3)))]
        dead = [killed(case.write, directory, event) for event in events]
        campaign.count("kills before a change", sum(dead))
        check_left(campaign, case, directory, f"before changes {events}", finished=not dead[-1])


def limited(write, size: int):
    """A writer that the kernel kills at the first byte beyond a size of any file."""

    def run(directory: Path) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        write(directory)

    return run


@pytest.mark.weight(3)
def test_killed_inside_of_a_write(campaign, case, tmp_path):
    """At any byte, the library's own writes of tensors included."""
    for number in campaign.numbers("sizes of files"):
        draw = campaign.random(number)
        directory = fresh(case, tmp_path / "d")
        size = draw.choice((0, 8, draw.randrange(600), draw.randrange(3000), draw.randrange(9000)))
        dead = killed(limited(case.write, size), directory, 0)
        campaign.count("kills inside of a write", dead)
        check_left(campaign, case, directory, f"beyond {size} bytes", finished=not dead)


def traced(write, directory: Path, *options: str) -> bool:
    """Writes in a child that strace follows, and may kill; tells whether it was killed.

    Raises:
        PermissionError: no process may trace another here.
    """
    waiting, go = os.pipe()

    def run(directory: Path) -> None:
        ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER: anybody
        os.read(waiting, 1)
        write(directory)

    child = started(run, directory)
    words = ["strace", "-p", str(child), *options]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as strace:
        said = strace.stderr.readline()  # that it is attached
        os.write(go, b"x")
        os.close(go)
        os.close(waiting)
        try:
            dead = was_killed(child)
        finally:
            strace.wait()
    if "attached" not in said:
        raise PermissionError(said)
    return dead


def system_calls(case: Case, directory: Path) -> list[tuple[str, int]]:
    """The calls that a writer makes, by name and number of those of the name, in their order."""
    log = directory.parent / "calls"
    traced(case.write, fresh(case, directory), "-o", str(log), "-e", "trace=" + ",".join(CALLS))
    names = [line.partition("(")[0] for line in log.read_text().splitlines()]
    return [(name, names[: n + 1].count(name)) for n, name in enumerate(names) if name in CALLS]


@pytest.mark.weight(3)
def test_killed_at_a_system_call(campaign, case, tmp_path):
    """Whoever makes it: Python, the libraries, the interpreter's own buffers."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    directory = tmp_path / "d"
    try:
        calls = system_calls(case, directory)
    except PermissionError as error:
        pytest.skip(f"strace may not trace: {error}")
    for number in campaign.numbers("traced writers"):
        call, time = campaign.random(number).choice(calls)
        directory = fresh(case, directory)
        inject = f"inject={call}:signal=KILL:when={time}"
        dead = traced(case.write, directory, "-o", "/dev/null", "-e", "trace=" + call, "-e", inject)
        campaign.count("kills at a system call", dead)
        check_left(campaign, case, directory, f"{call} number {time}", finished=not dead)


@pytest.mark.weight(2)
@pytest.mark.parametrize("name", RIVALS)
def test_two_write_at_once(campaign, name, tmp_path):
    """Any of them is killed at any change, or none: there is one's or the other's, whole."""
    case = CASES[name]
    for number in campaign.numbers("writers at once"):
        draw = campaign.random(number)
        directory = fresh(case, tmp_path / "d")
        events = [draw.choice((0, draw.randrange(1, 40))) for _ in range(2)]
        children = [
            started(write, directory, event)
            for write, event in zip((case.write, case.rival), events, strict=True)
        ]
        try:
            dead = [was_killed(child) for child in children]
            campaign.count("kills of one of two writers", sum(dead))
            found = case.found(directory)
            allowed = {*case.allowed, OTHER} if all(dead) else {NEW, OTHER}
            if found not in allowed:
                raise Fault(f"found {found}, though {dead} were killed")
            check_next(case, directory)
        except Fault as fault:
            campaign.findings.add(fault, lambda events=events: f"at changes {events}")


@pytest.mark.weight(2)
def test_readers_that_finish_a_switch_are_killed(campaign, case, tmp_path):
    """A writer is killed late, then who reads what it left, then the next reads it whole."""
    for number in campaign.numbers("readers"):
        draw = campaign.random(number)
        directory = fresh(case, tmp_path / "d")
        written, read = draw.randrange(8, 50), draw.randrange(1, 12)
        dead = [
            killed(case.write, directory, written),
            killed(lambda directory: case.found(directory) and None, directory, read),
        ]
        campaign.count("kills before a change", dead[0])
        campaign.count("kills of a reader", dead[1])
        how = f"writer before change {written}, reader before {read}"
        check_left(campaign, case, directory, how, finished=not dead[0])


LINES = ["Once upon a time", "The capital of France is", "What is", "The opposite of hot is"]


def answer_batch(directory: Path) -> None:
    """The command, in this process."""
    how = ["--model", str(DEMO), "--device", "cpu", "--slots", "2", "--capacity", "64"]
    how += ["--max-new-tokens", "2", "--ignore-eos"]
    source, target = directory / "in.jsonl", directory / "out.jsonl"
    if cli.main(["batch", str(source), str(target), *how]) != 0:
        raise Fault("the command failed")


def answers(directory: Path) -> dict[str, str]:
    lines = (directory / "out.jsonl").read_bytes().splitlines()
    return {line["custom_id"]: line["text"] for line in map(json.loads, lines)}


def test_a_batch_that_is_killed_goes_on(campaign, tmp_path, capsys):
    """At any change: no answer is lost or asked for twice, and all are those of one run."""
    if not campaign.full:
        pytest.skip("takes seconds for each; tests/qwen35/commands has one that is killed")
    source = "".join(
        json.dumps({"custom_id": f"x{n}", "prompt": text}) + "\n" for n, text in enumerate(LINES)
    )
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "in.jsonl").write_text(source)
    answer_batch(tmp_path / "whole")
    wanted = answers(tmp_path / "whole")
    case = Case(
        lambda d: (d / "in.jsonl").write_text(source) and None,
        answer_batch,
        lambda d: NEW if (d / "out.jsonl").exists() and answers(d) == wanted else NOTHING,
        (NEW, NOTHING),
    )
    for number in campaign.numbers("batches"):
        draw = campaign.random(number)
        directory, before = fresh(case, tmp_path / "d"), b""
        events = [draw.randrange(1, 16) for _ in range(draw.choice((1, 2, 3)))]
        for event in events:
            campaign.count("kills of a batch", killed(case.write, directory, event))
            out = directory / "out.jsonl"
            now = out.read_bytes() if out.exists() else b""
            whole = before[: before.rfind(b"\n") + 1]
            if not set(whole.splitlines()) <= set(now.splitlines()):
                fault = Fault("an answer that was written is lost")
                campaign.findings.add(fault, lambda events=events: f"before changes {events}")
            before = now
        check_left(campaign, case, directory, f"before changes {events}")
