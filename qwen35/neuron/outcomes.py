"""What steps find: tests that passed or failed, each made to stand alone."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Test:
    """A comparison.

    Attributes:
        name: what was compared.
        passed: whether it is as it should be.
        error: how far it is off, relative where the text says no other; None: equal or not.
        bound: what the error must stay below.
        text: what was seen, where that is not the error.
    """

    __test__ = False  # pytest: no test of its own

    name: str
    passed: bool
    error: float | None = None
    bound: float | None = None
    text: str = ""


class Tests:
    """The tests of a step, as they are made."""

    def __init__(self) -> None:
        self._made: list[Test] = []

    def within(self, name: str, bound: float, error: Callable[[], float]) -> None:
        """Adds a test that an error is below a bound; one that can't be computed fails."""

        def compare() -> Test:
            found = error()
            passed = math.isfinite(found) and found < bound
            return Test(name, passed, found, bound)

        self._add(name, compare)

    def equal(self, name: str, compare: Callable[[], str]) -> None:
        """Adds a test that passes where `compare` returns "", and else says what differs."""

        def run() -> Test:
            text = compare()
            return Test(name, not text, text=text)

        self._add(name, run)

    def _add(self, name: str, make: Callable[[], Test]) -> None:
        # A kernel that does not compile must not take the others' tests with it.
        try:
            self._made.append(make())
        except Exception as error:
            traceback.print_exc()  # into the step's log
            self._made.append(Test(name, False, text=f"{type(error).__name__}: {error}"))

    def outcome(self, **figures: Any) -> dict[str, Any]:
        """Returns tests and figures as plain values."""
        return {"tests": [asdict(test) for test in self._made], "figures": figures}
