"""Measurements in processes of their own, alternating."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_type_hints

from .records import from_plain


class Job(NamedTuple):
    """A measurement.

    measure: a function of a module of this package that returns a record. arguments: its own, by
    name, as JSON has them. once: run it in the first round only, for what no ratio of times is made
    of.
    """

    measure: Callable[..., Any]
    arguments: Mapping[str, Any]
    once: bool = False


def alternate(
    jobs: Mapping[str, Job], *, rounds: int, threads: int, say: Callable[[str], None]
) -> dict[str, list[Any]]:
    """Runs the jobs one after the other, `rounds` times, each in a process of its own.

    Args:
        jobs: by name.
        rounds: how often each is run.
        threads: cores that a job may use, and threads of torch and XLA.
        say: told what starts.

    Returns:
        For each job the records of its rounds.

    Raises:
        ValueError: a job refused its input, or ended without a result; nothing runs on then.
    """
    results: dict[str, list[Any]] = {name: [] for name in jobs}
    with _pinned(threads):
        for number in range(rounds):
            for name, job in jobs.items():
                if job.once and number:
                    continue
                say(f"round {1 if job.once else number + 1} of {1 if job.once else rounds}: {name}")
                results[name].append(_run(name, job, threads))
    return results


def _run(name: str, job: Job, threads: int) -> Any:
    """Runs a job once and returns its record."""
    worker = f"{job.measure.__module__.rpartition('.')[2]}.{job.measure.__name__}"
    command = [sys.executable, "-m", "qwen35.bench", worker, json.dumps(job.arguments)]
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
    return from_plain(get_type_hints(job.measure)["return"], result)


@contextlib.contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """Keeps this thread, and the processes that it starts, on as many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
