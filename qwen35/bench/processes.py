"""Measurements in processes of their own, alternating."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

# What a measurement returned in each of its rounds.
Runs = list[dict[str, Any]]


class Job(NamedTuple):
    """A measurement.

    worker: "module.function" of this package. settings: plain values, what the function gets.
    once: run it in the first round only, for what no ratio of times is made of.
    """

    worker: str
    settings: Mapping[str, Any]
    once: bool = False


def alternate(
    jobs: Mapping[str, Job], *, rounds: int, threads: int, say: Callable[[str], None]
) -> dict[str, Runs]:
    """Runs the jobs one after the other, `rounds` times, each in a process of its own.

    Args:
        jobs: by name.
        rounds: how often each is run.
        threads: cores that a job may use, and threads of torch and XLA.
        say: told what starts.

    Raises:
        ValueError: a job refused its input, or ended without a result; nothing runs on then.
    """
    results: dict[str, Runs] = {name: [] for name in jobs}
    with _pinned(threads):
        for number in range(rounds):
            for name, job in jobs.items():
                if job.once and number:
                    continue
                say(f"round {1 if job.once else number + 1} of {1 if job.once else rounds}: {name}")
                results[name].append(_run(name, job, threads))
    return results


def _run(name: str, job: Job, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "qwen35.bench", job.worker, json.dumps(job.settings)]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "NPROC": str(threads),  # XLA's
        "PJRT_DEVICE": "CPU",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE)
    if done.returncode:
        how = f"exit code {done.returncode}"
        if done.returncode < 0:
            how = f"signal {-done.returncode}"
            how += ": out of memory?" if -done.returncode == signal.SIGKILL else ""
        raise ValueError(f"the measurement {name} failed ({how})")
    result = json.loads(done.stdout.splitlines()[-1])
    if "error" in result:
        raise ValueError(result["error"])
    return result


@contextlib.contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """Keeps this thread, and the processes that it starts, on as many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
