"""Errors and interrupts at the lines that an engine runs: at each of ours, and at random moments.

All moments, some 60,000 with each kind, would take many hours.
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


def test_exceptions_at_every_line(campaign):
    """Each line of ours that a step runs, on the CPU: with one kind when it is first run, with the
    other when it is last run, and then the other way round, as far as the time goes. The first
    2,622 engines take 11 minutes of a core."""
    if not campaign.full:
        pytest.skip("takes long; many lines have their turn in tests/qwen35/generation")
    params = qwen35.init_params(CONFIG)
    alone, injector = each_alone(params), Injector()
    serve(new_engine(params), injector)
    last = {place: number for number, place in enumerate(injector.seen)}
    first = {place: number for number, place in reversed(list(enumerate(injector.seen)))}
    lines = campaign.random(0).sample(sorted(first), len(first))
    cases = [
        (kind, when[line])
        for when, turned in ((first, 0), (last, 1), (first, 1), (last, 0))
        for number, line in enumerate(lines)
        for kind in [(Failed, Interrupted)[(number + turned) % 2]]
    ]
    for (kind, place), _ in zip(
        cases, campaign.numbers("exceptions at each line of an engine"), strict=False
    ):
        check(params, alone, kind, place)


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
        check(params, alone, draw.choice((Failed, Interrupted)), draw.randrange(lines))


def check(params, alone, kind, place):
    """Raises at a place, and holds what the others give to what each gives alone."""
    injector = Injector(kind, place)
    try:
        check_served(serve(new_engine(params), injector), alone, injector)
    except AssertionError as error:
        raise AssertionError(f"{kind.__name__} at line {place}: {injector.raised}") from error
