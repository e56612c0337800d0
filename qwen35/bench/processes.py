"""Measurements in processes of their own, alternating.

Under torchrun each of its processes starts those of its rank: all of them where the ranks are
measured together, the first alone where one device is, and the others wait.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, get_type_hints

from ..sharding import process
from .records import from_plain


class Job(NamedTuple):
    """A measurement.

    measure: a function of a module of this package that returns a record. arguments: its own, by
    name, as JSON has them. once: run it in the first round only, for what no ratio of times is made
    of. split: whether it is of all ranks, where several processes were started.
    """

    measure: Callable[..., Any]
    arguments: Mapping[str, Any]
    once: bool = False
    split: bool = False


def alternate(
    jobs: Mapping[str, Job],
    *,
    rounds: int,
    threads: int,
    say: Callable[[str], None],
    rank: int | None = None,
) -> dict[str, list[Any]]:
    """Runs the jobs one after the other, `rounds` times, each in a process of its own.

    Args:
        jobs: by name.
        rounds: how often each is run.
        threads: cores that a job may use, and threads of torch and XLA; each rank's.
        say: told what starts.
        rank: of this process, where torchrun started several, which have met
            (`sharding.process.start`): all of them call this alike.

    Returns:
        For each job the records of its rounds, the first rank's; in the others what they have.

    Raises:
        ValueError: a job refused its input, or ended without a result; nothing runs on then.
        RuntimeError: it was another rank's.
    """
    results: dict[str, list[Any]] = {name: [] for name in jobs}
    with _pinned(threads):
        for number in range(rounds):
            for name, job in jobs.items():
                if job.once and number:
                    continue
                say(f"round {1 if job.once else number + 1} of {1 if job.once else rounds}: {name}")
                environment = _environment(threads)
                if rank is None:
                    results[name].append(_run(name, job, environment))
                else:
                    results[name].append(_run_on_ranks(name, job, environment, rank))
    return results


def _run_on_ranks(name: str, job: Job, environment: dict[str, str], rank: int) -> Any:
    """Runs a job's processes of all ranks, or of the first; where one fails, all raise."""
    run = functools.partial(_run, name, job)
    if job.split:
        environment = environment | process.from_rank_0(_meeting())
        return process.call_on_all_ranks(run, environment)
    if rank:
        return process.call_on_all_ranks(lambda: None)
    alone = {key: text for key, text in environment.items() if key not in ("RANK", "WORLD_SIZE")}
    return process.call_on_all_ranks(run, alone)


def _environment(threads: int) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "NPROC": str(threads),  # XLA's
        "PJRT_DEVICE": "CPU",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def _meeting() -> dict[str, str]:
    """Returns where the ranks' processes of a job meet, other than where those met that start
    them: on the first one's machine, as torchrun has it."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def _run(name: str, job: Job, environment: dict[str, str]) -> Any:
    """Runs a job once and returns its record."""
    worker = f"{job.measure.__module__.rpartition('.')[2]}.{job.measure.__name__}"
    command = [sys.executable, "-m", "qwen35.bench", worker, json.dumps(job.arguments)]
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
    """Keeps this thread, and the processes that it starts, on as many cores; those of several ranks
    on different ones, as far as the machine has them."""
    before = os.sched_getaffinity(0)
    cores, first = sorted(before), threads * int(os.environ.get("LOCAL_RANK", "0"))
    own = {cores[(first + number) % len(cores)] for number in range(threads)}
    os.sched_setaffinity(0, own)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
