"""The campaign: damaged inputs and deaths in numbers, and what it counts.

In the usual run each test has its short form, of a second or less. With `--minutes N` they share
that time, with other inputs for each `--seed S`; `scripts/test --campaign` runs that. At its end
stands a table of what was tried, and what was found; a run of `FULL` minutes that tried less than
`FLOORS` fails.
"""

from __future__ import annotations

import collections
import functools
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # lets tests import the modules beside them

from oracle import Fault, Findings

SHORT = 15.0  # seconds of all tests in the usual run, but for what takes longer once
FULL = 20.0  # minutes
FLOORS = {"inputs": 100_000, "kill points": 2_000}
# What is counted beside inputs, and beside kills of processes, which begin with "kills".
OTHERS = (
    *("interrupts", "broken disks", "full disks", "power failures", "signals"),
    *("exceptions at lines of an engine", "exceptions at each line of an engine"),
    *("successions of writers", "sizes of files"),
    *("traced writers", "writers at once", "readers", "batches", "ranks"),
)
COUNTS: collections.Counter[str] = collections.Counter()
FAULTS: collections.Counter[str] = collections.Counter()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "weight(n): a campaign's test takes n times another's share")


def pytest_addoption(parser: pytest.Parser) -> None:
    option = parser.addoption
    option("--minutes", type=float, default=None, metavar="N",
           help="of the campaign, in all; default: less than a second of each kind")  # fmt: skip
    option("--seed", type=int, default=0, metavar="S", help="of the campaign's inputs")


class Campaign:
    """What a test may spend, where its inputs come from, and what it found.

    Attributes:
        minutes: of all tests together, or None in the short form.
        seed: of all inputs.
        seconds: that the test may take.
        findings: faults, to be told at the end of the test.
        kind: what the test counted first.
    """

    def __init__(self, minutes: float | None, seed: int, share: float, name: str) -> None:
        self.minutes, self.seed = minutes, seed
        self.seconds = share * (SHORT if minutes is None else 60 * minutes)
        self._name = name
        self.findings = Findings()
        self.kind = name

    @property
    def full(self) -> bool:
        """Whether this is more than the short form."""
        return self.minutes is not None

    def random(self, number: int) -> random.Random:
        """What draws input `number` of this test, and is the same whatever came before it."""
        return random.Random(f"{self._name} {self.seed} {number}")

    def numbers(self, kind: str, at_least: int = 1) -> Iterator[int]:
        """Numbers of inputs, each counted as one of `kind`, until the test's time is over."""
        end, number = time.monotonic() + self.seconds, 0
        while number < at_least or time.monotonic() < end:
            yield number
            self.count(kind)
            number += 1

    def try_all(
        self,
        kind: str,
        make: Callable[[random.Random], Any],
        check: Callable[[Any], Any],
        show: Callable[[Any], str] = repr,
    ) -> None:
        """Makes inputs and checks each, until the test's time is over; notes what is wrong.

        Args:
            kind: what the inputs are, for the summary.
            make: draws one.
            check: raises `Fault` where something happens that must not.
            show: writes an input for people, in its smallest form.
        """
        for number in self.numbers(kind):
            made = make(self.random(number))
            try:
                check(made)
            except Fault as fault:
                self.findings.add(fault, functools.partial(show, made))

    def count(self, kind: str, number: int = 1) -> None:
        """Counts inputs, or whatever a test takes, for the summary."""
        COUNTS[kind] += number
        if self.kind == self._name:
            self.kind = kind


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """The test's `Campaign`; what it found fails the test."""
    minutes = request.config.getoption("--minutes", None)
    share = weight(request.node) / len(alike(request.node))
    share /= sum(map(weight, {item.function: item for item in items(request.session)}.values()))
    made = Campaign(minutes, request.config.getoption("--seed", 0), share, request.node.name)
    yield made
    made.findings.tell()


def items(session: pytest.Session) -> list[pytest.Function]:
    """The campaign's tests."""
    return [item for item in session.items if "campaign" in getattr(item, "fixturenames", ())]


def alike(node: pytest.Function) -> list[pytest.Function]:
    """A test with all its parameters, which share a function's time."""
    return [item for item in items(node.session) if item.function is node.function]


def weight(node: pytest.Function) -> float:
    """How many times another function's share a test's function has."""
    mark = node.get_closest_marker("weight")
    return 1.0 if mark is None else mark.args[0]


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
    """Counts faults: those that a test noted, or the one that ended it."""
    made = (getattr(item, "funcargs", None) or {}).get("campaign")
    if made is not None and call.excinfo is not None:
        if not call.excinfo.errisinstance(pytest.skip.Exception):
            FAULTS[made.kind] += max(1, len(made.findings)) if call.when == "teardown" else 1


def totals() -> dict[str, int]:
    """How much was tried, in the terms of `FLOORS`."""
    kills = sum(count for kind, count in COUNTS.items() if kind.startswith("kills"))
    others = sum(COUNTS[kind] for kind in OTHERS)
    return {"inputs": COUNTS.total() - kills - others, "kill points": kills}


def missing(config: pytest.Config) -> list[str]:
    """What a full run has tried too little of."""
    if (config.getoption("--minutes", None) or 0) < FULL:
        return []
    found = totals()
    return [
        f"{found[name]:,} {name}, fewer than the {floor:,} of a full run"
        for name, floor in FLOORS.items()
        if found[name] < floor
    ]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if COUNTS and missing(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not COUNTS:
        return
    write = terminalreporter.write_line
    terminalreporter.section("campaign")
    write(f"{'kind':36}{'tried':>10}{'faults':>8}")
    for kind in sorted(COUNTS.keys() | FAULTS.keys()):
        write(f"{kind:36}{COUNTS[kind]:10,}{FAULTS[kind]:8,}")
    said = ", ".join(f"{count:,} {name}" for name, count in totals().items())
    floors = ", ".join(f"{floor:,} {name}" for name, floor in FLOORS.items())
    write(f"{said}, {FAULTS.total():,} faults (a full run of {FULL:g} minutes: at least {floors})")
    for line in missing(config):
        write(f"too little: {line}")
