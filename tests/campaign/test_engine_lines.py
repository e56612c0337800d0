"""Errors and interrupts at lines that an engine runs, drawn at random.

All lines of its requests, 45,000 with each kind, take some two hours on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import qwen35

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "qwen35" / "generation"))

from engine_faults import (
    CONFIG,
    Failed,
    Injector,
    Interrupted,
    check_served,
    each_alone,
    new_engine,
    serve,
)


def test_exceptions_at_random_lines(campaign):
    if not campaign.full:
        pytest.skip("compiles; many lines have their turn in tests/qwen35/generation")
    params = qwen35.init_params(CONFIG, device="xla")
    alone = each_alone(qwen35.init_params(CONFIG))
    serve(new_engine(params))  # compiles
    injector = Injector()
    serve(new_engine(params), injector)
    lines = len(injector.seen)
    for number in campaign.numbers("exceptions at lines of an engine"):
        draw = campaign.random(number)
        kind, place = draw.choice((Failed, Interrupted)), draw.randrange(lines)
        injector = Injector(kind, place)
        try:
            check_served(serve(new_engine(params), injector), alone, injector)
        except AssertionError as error:
            raise AssertionError(f"{kind.__name__} at line {place}: {injector.raised}") from error
