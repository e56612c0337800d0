"""Signals at random moments of commands, for as long as is asked."""

from __future__ import annotations

import collections
import random
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "qwen35" / "commands"))

from test_streams import CODES, COMMANDS, interrupt


@pytest.mark.slow
def test_signals_at_random_moments(request, tmp_path):
    minutes = request.config.getoption("--minutes", default=None)
    if not minutes:
        pytest.skip("--minutes says for how long")
    draw = random.Random(request.config.getoption("--seed", default=0))
    codes: collections.Counter[int] = collections.Counter()
    end = time.monotonic() + 60 * float(minutes)
    while time.monotonic() < end:
        name, number = draw.choice(sorted(COMMANDS)), draw.choice(sorted(CODES))
        after = draw.uniform(0.1, 4)
        try:
            codes[interrupt(name, number, after, tmp_path)] += 1
        except AssertionError as error:
            raise AssertionError(f"{name}, {number!r} after {after:.3f} s") from error
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    print(dict(codes))
