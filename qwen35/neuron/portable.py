"""Step: the delta rule as torch operations, compiled, against the float64 loop."""

from __future__ import annotations

import functools

from ..xla.jit import jit
from . import delta_rule
from .outcomes import Tests
from .steps import Settings

BOUND = 2e-4  # in float32: 1e-5 on XLA:CPU, and room for the device's own exp


def measure(settings: Settings) -> dict:
    """Runs the step."""
    tests = Tests()
    rule = jit(delta_rule.call("portable"))
    delta_rule.compare(tests, rule, functools.partial(_bound))
    return tests.outcome()


def _bound(tokens: int) -> float:
    return BOUND
