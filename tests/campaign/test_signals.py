"""Signals at random moments of commands, and of the ranks of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle import Fault

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "qwen35" / "commands"))

from test_streams import CODES, COMMANDS, ROOT, interrupt, words_of

WAITS = 15  # seconds that a rank waits for the others
SECONDS = 60  # in which all of them have to end


@pytest.mark.weight(3)
def test_signals_at_random_moments(campaign, tmp_path):
    """Exit codes, no traceback, nobody left, and nothing half-written."""
    if not campaign.full:
        pytest.skip("takes seconds for each; some have their turn in tests/qwen35/commands")
    for number in campaign.numbers("signals"):
        draw = campaign.random(number)
        name, kind = draw.choice(sorted(COMMANDS)), draw.choice(sorted(CODES))
        after = draw.uniform(0.1, 6)
        try:
            interrupt(name, kind, after, tmp_path)
            if left := [path.name for path in tmp_path.rglob(".*.aside")]:
                raise Fault(f"half-written: {left}")
        except (AssertionError, Fault, subprocess.TimeoutExpired) as error:
            campaign.findings.add(error, lambda n=name, k=kind, a=after: f"{n}, {k!r} at {a:.3f} s")
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


@contextlib.contextmanager
def ranks(name: str, folder: Path) -> Iterator[list[subprocess.Popen]]:
    """Starts two processes of a command, as torchrun does, without torchrun, which would end the
    other one by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    words = [*words_of(name, folder), "--timeout", str(WAITS)]
    words += ["--tp", "2"] if "--tp" not in words else []
    started = [
        subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ
            | place
            | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0"},
        )
        for rank in range(2)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def end_one(name: str, victim: int, kind: int, after: float, folder: Path) -> bool:
    """Ends a rank after so many seconds; tells whether it was still there.

    Raises:
        Fault: the other one does not end in time, or otherwise than by a sentence.
    """
    with ranks(name, folder) as started:
        time.sleep(after)
        alive = started[victim].poll() is None
        started[victim].send_signal(kind)
        other = started[1 - victim]
        try:
            _, errors = other.communicate("hi\n" * 3, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise Fault(f"the other rank waits for more than {SECONDS} s") from None
        code = started[victim].wait(SECONDS)
    if "Traceback" in errors or other.returncode not in (0, 2, 141):
        raise Fault(f"the other rank ends with {other.returncode}: {errors[-1500:]}")
    if other.returncode == 2 and "qwen35: " not in errors:
        raise Fault(f"no sentence: {errors[-1500:]}")
    return alive and code != 0


@pytest.mark.weight(3)
def test_ranks_that_are_killed(campaign, tmp_path):
    """At random moments, also before the two have met."""
    if not campaign.full:
        pytest.skip("takes ten seconds for each; some have their turn in tests/sharding")
    for number in campaign.numbers("ranks"):
        draw = campaign.random(number)
        name = draw.choice(("batch", "chat", "generate", "perplexity"))
        victim, kind = draw.randrange(2), draw.choice((signal.SIGKILL, signal.SIGTERM))
        after = draw.uniform(0.5, 8)
        how = f"{name}, {kind!r} to rank {victim} at {after:.3f} s"
        try:
            campaign.count("kills of a rank", end_one(name, victim, kind, after, tmp_path))
        except Fault as fault:
            campaign.findings.add(fault, lambda how=how: how)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
