"""The campaign: damaged inputs and deaths in numbers, and what it counts.

In the usual run each test has its short form, of a second or less. With `--minutes N` they share
that time, with other inputs for each `--seed S`; `scripts/test --campaign` runs that.
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
DEATHS = ("kill points", "interrupts", "broken disks", "full disks", "power failures")
COUNTS: collections.Counter[str] = collections.Counter()


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
        findings: faults, to be told at the end of the test.
    """

    def __init__(self, minutes: float | None, seed: int, share: float, name: str) -> None:
        self.minutes, self.seed = minutes, seed
        self._seconds = share * (SHORT if minutes is None else 60 * minutes)
        self._name = name
        self.findings = Findings()

    @property
    def full(self) -> bool:
        """Whether this is more than the short form."""
        return self.minutes is not None

    def random(self, number: int) -> random.Random:
        """What draws input `number` of this test, and is the same whatever came before it."""
        return random.Random(f"{self._name} {self.seed} {number}")

    def numbers(self, kind: str, at_least: int = 1) -> Iterator[int]:
        """Numbers of inputs, each counted as one of `kind`, until the test's time is over."""
        end, number = time.monotonic() + self._seconds, 0
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


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    """The test's `Campaign`; what it found fails the test."""
    minutes = request.config.getoption("--minutes", None)
    items = [item for item in request.session.items if "campaign" in item.fixturenames]
    made = Campaign(
        minutes, request.config.getoption("--seed", 0), 1 / len(items), request.node.name
    )
    yield made
    made.findings.tell()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNTS:
        terminalreporter.section("campaign")
        for kind, count in sorted(COUNTS.items()):
            terminalreporter.write_line(f"{count:9,} {kind}")
        deaths = sum(COUNTS[kind] for kind in DEATHS)
        inputs = COUNTS.total() - deaths
        terminalreporter.write_line(f"{inputs:9,} inputs and {deaths:,} deaths in all")
