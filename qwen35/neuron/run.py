"""`qwen35 neuron run`: the steps one after the other, each in a process that may die.

What a step found is a line of a journal in the output directory as soon as it has ended, and a
later run goes on from there: steps that passed on this machine, with these versions and settings,
are not run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..files.journal import Journal, opened
from ..version import __version__
from .machine import Machine, describe
from .steps import STEPS, Settings, Step

PASSED, FAILED = "passed", "failed"  # of the tests of a step that ran to its end
BROKE = "broke"  # an exception
DIED = "died"  # the process did
LATE = "late"  # the time limit came first
ABSENT = "absent"  # what it needs is not there
LEFT = "left"  # the budget was used up

JOURNAL = "journal.jsonl"
_BEGINNING = b'{"step": '
_GRACE = 20  # seconds from SIGTERM to SIGKILL


@dataclass(frozen=True)
class Entry:
    """What became of a step: a line of the journal.

    Attributes:
        step: its name.
        key: digest of what it was run with and on.
        status: one of those above.
        seconds: that it took.
        text: why it did not end well, in a line.
        tests, figures: of its outcome.
    """

    step: str
    key: str
    status: str
    seconds: float
    text: str = ""
    tests: tuple[dict[str, Any], ...] = ()
    figures: dict[str, Any] | None = None


def worker(processes: int) -> list[str]:
    """Returns the command that runs a step in so many processes, before the step's arguments."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else []), "-m", "qwen35.neuron"]


def run(
    settings: Settings,
    output: Path,
    machine: Machine,
    *,
    budget: float | None = None,
    say: Callable[[str], None],
    ended: Callable[[list[Entry]], None] = lambda entries: None,
) -> list[Entry]:
    """Runs the steps that have not passed, and returns an entry for each step.

    Args:
        settings: what is asked for.
        output: directory of the journal and of the steps' logs; made if it is not there.
        machine: what it runs on; another one, or other versions, begin anew.
        budget: seconds for all; None: each step has its own limit alone.
        say: told what starts and how it ended.
        ended: called with all entries so far, after every step.

    Raises:
        ValueError: another process has the journal, or the file is something else.
    """
    output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    key = _key(settings, machine)
    with opened(output / JOURNAL, _entry, _BEGINNING) as journal:
        entries = {e.step: e for _, e in journal.known if e.key == key}
        for number, step in enumerate(STEPS, 1):
            before = entries.get(step.name)
            if before is not None and before.status == PASSED:
                say(f"{number} of {len(STEPS)}: {step.title}: passed before")
                continue
            left = None if budget is None else budget - (time.monotonic() - start)
            say(f"{number} of {len(STEPS)}: {step.title}")
            entry = _run_step(step, settings, key, output, left)
            entries[step.name] = entry
            _note(journal, entry)
            say(f"    {entry.status} after {entry.seconds:,.0f} s{_because(entry)}")
            ended([entries[s.name] for s in STEPS if s.name in entries])
    return [entries[step.name] for step in STEPS]


def _run_step(step: Step, settings: Settings, key: str, output: Path, left: float | None) -> Entry:
    """Runs a step in a process, for as long as it may."""
    limit = _limit(step, left)
    if limit <= 0:
        return Entry(step.name, key, LEFT, 0.0, "the budget was used up")
    target = output / f"{step.name}.json"
    target.unlink(missing_ok=True)
    command = [
        *worker(settings.tp if step.ranks else 1),
        step.name,
        json.dumps(asdict(settings)),
        str(target),
    ]
    start = time.monotonic()
    code = _call(command, output / f"{step.name}.log", limit)
    seconds = time.monotonic() - start
    if code is None:
        return Entry(step.name, key, LATE, seconds, f"not done after {limit / 60:,.0f} minutes")
    if code or not target.exists():
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        how += ": out of memory?" if -code == signal.SIGKILL else ""
        return Entry(step.name, key, DIED, seconds, f"{how}; {step.name}.log has its last words")
    outcome = json.loads(target.read_text(encoding="utf-8"))
    target.unlink()
    return _judged(step, key, seconds, outcome)


def _limit(step: Step, left: float | None) -> float:
    """Returns how many seconds a step may take, of those that are left."""
    return 60 * step.minutes if left is None else min(60 * step.minutes, left)


def _judged(step: Step, key: str, seconds: float, outcome: dict[str, Any]) -> Entry:
    if "absent" in outcome:
        return Entry(step.name, key, ABSENT, seconds, outcome["absent"])
    if "error" in outcome:
        return Entry(step.name, key, BROKE, seconds, outcome["error"])
    tests = tuple(outcome["tests"])
    wrong = sum(not test["passed"] for test in tests)
    text = f"{wrong} of {len(tests)} tests" if wrong else ""
    status = FAILED if wrong else PASSED
    return Entry(step.name, key, status, seconds, text, tests, outcome["figures"])


def _call(command: Sequence[str], log: Path, limit: float) -> int | None:
    """Runs a command, its output in a file, and returns its exit code; None: it was too late.

    Its children end with it: a compiler that goes on would take the next step's cores.
    """
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _key(settings: Settings, machine: Machine) -> str:
    """Digests what a result depends on."""
    told = describe(machine)
    relevant = ("python", "packages", "driver", "instance", "logical_cores")
    content = {name: told[name] for name in relevant} | {"environment": _relevant(machine)}
    asked = asdict(replace(settings, output=""))
    content |= {"settings": asked, "version": __version__}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _relevant(machine: Machine) -> dict[str, str]:
    """Returns the variables that a result depends on: not those of where things go."""
    aside = ("NEURON_COMPILE_CACHE_URL", "NEURON_RT_INSPECT_ENABLE")
    variables = {n: v for n, v in machine.environment.items() if n not in aside}
    if "NEURON_CC_FLAGS" in variables:
        words = variables["NEURON_CC_FLAGS"].split()
        passing = ("--cache_dir=", "--retry_failed_compilation")
        variables["NEURON_CC_FLAGS"] = " ".join(w for w in words if not w.startswith(passing))
    return variables


def _entry(line: dict[str, Any]) -> Entry:
    try:
        return Entry(**line | {"tests": tuple(line["tests"])})
    except (KeyError, TypeError) as error:
        raise ValueError(f"no entry of a step: {error}") from None


def _note(journal: Journal[Entry], entry: Entry) -> None:
    journal.add(asdict(entry))


def _because(entry: Entry) -> str:
    return f": {entry.text}" if entry.text else ""


def good(entries: Sequence[Entry]) -> bool:
    """Tells whether no step failed; what was absent is no failure."""
    return all(entry.status in (PASSED, ABSENT) for entry in entries)


def logs(output: Path) -> Iterator[Path]:
    """Yields the logs of the steps."""
    return (path for step in STEPS if (path := output / f"{step.name}.log").exists())
