"""Errors and interrupts at lines that an engine runs, drawn at random for as long as is asked.

All lines of its requests, 45,000 with each kind, take some two hours on one core.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

import qwen35

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "qwen35" / "generation"))

from engine_faults import (
    ASKED,
    CONFIG,
    Failed,
    Injector,
    Interrupted,
    Letters,
    check_served,
    new_engine,
    serve,
)


@pytest.mark.slow
def test_exceptions_at_random_lines(request):
    minutes = request.config.getoption("--minutes", default=None)
    if not minutes:
        pytest.skip("--minutes says for how long")
    draw = random.Random(request.config.getoption("--seed", default=0))
    params = qwen35.init_params(CONFIG, device="xla")
    alone = [
        qwen35.generate(
            qwen35.init_params(CONFIG),
            Letters(),
            [one.prompt],
            max_new_tokens=one.new_tokens,
            sampling=one.sampling,
            capacity=48,
        )[0]
        for one in ASKED
    ]
    serve(new_engine(params))  # compiles
    injector = Injector()
    serve(new_engine(params), injector)
    lines, count, ended = len(injector.seen), 0, 0
    end = time.monotonic() + 60 * float(minutes)
    while time.monotonic() < end:
        kind, place = draw.choice((Failed, Interrupted)), draw.randrange(lines)
        injector = Injector(kind, place)
        try:
            ended += check_served(serve(new_engine(params), injector), alone, injector)
        except AssertionError as error:
            raise AssertionError(f"{kind.__name__} at line {place}: {injector.raised}") from error
        count += 1
    print(f"{count} exceptions at {lines} lines; {ended} of {count * len(ASKED)} requests ended")
