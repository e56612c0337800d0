"""Ctrl-C and SIGTERM: what a command leaves behind when it is stopped at a bad moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[3] / "demo"
MARK = "QWEN35_TEST_RUN"
# A chat that is in the middle of writing a file when the signal comes.
SAVING = """
import sys, time
from qwen35.commands import cli
from qwen35.files import saved_state

def save_slowly(file, tensors, header):
    file.write_bytes(b"half of it")
    print("writing", flush=True)
    time.sleep(60)

assert saved_state.write_tensors
saved_state.write_tensors = save_slowly
sys.exit(cli.main(["chat", "--model", sys.argv[1], "--device", "cpu", "--no-thinking"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_save_that_is_interrupted_leaves_the_old_file_alone(tmp_path, number, code):
    (tmp_path / "kept").write_text("old")
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(DEMO)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    process.stdin.write(f"/save {tmp_path / 'kept'}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "writing\n"
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"


def with_mark(mark: str) -> set[int]:
    """The processes that have the mark in their environment: those started here, and theirs."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:  # ended meanwhile, or another user's
                continue
            if f"{MARK}={mark}".encode() in environment.split(b"\0"):
                found.add(int(entry.name))
    return found


def rank(number: int, processes: set[int]) -> int:
    """The process of a rank of torchrun's."""
    return next(
        process
        for process in processes
        if f"RANK={number}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "victim", "number"),
    [
        ("generate", "torchrun", signal.SIGTERM),
        ("generate", "torchrun", signal.SIGINT),
        ("chat", "torchrun", signal.SIGTERM),
        ("chat", "torchrun", signal.SIGINT),
        ("chat", "rank 1", signal.SIGKILL),
    ],
)
def test_no_rank_outlives_another_or_torchrun(command, victim, number):
    """In the middle of an answer; and not when torchrun loses patience, after 30 s."""
    mark = uuid.uuid4().hex
    options = ["--max-new-tokens", "900", "--temperature", "9", "--seed", "0"]  # goes on for all
    options += ["--prompt", "Once upon a time"] if command == "generate" else ["--no-thinking"]
    command = ["-m", "qwen35", command, "--model", str(DEMO), "--tp", "2", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    try:
        process.stdin.write(b"Once upon a time\n")
        process.stdin.flush()
        assert process.stdout.read(1), "the first character: the ranks are at work"
        assert len(with_mark(mark)) >= 3
        os.kill(process.pid if victim == "torchrun" else rank(1, with_mark(mark)), number)
        start = time.monotonic()
        process.wait(timeout=60)
        assert process.returncode != 0 and time.monotonic() - start < 25
        assert with_mark(mark) == set()
    finally:
        for left in with_mark(mark):
            os.kill(left, signal.SIGKILL)
