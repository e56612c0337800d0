"""Signals at random moments of commands."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "qwen35" / "commands"))

from test_streams import CODES, COMMANDS, interrupt


def test_signals_at_random_moments(campaign, tmp_path):
    if not campaign.full:
        pytest.skip("takes seconds for each; some have their turn in tests/qwen35/commands")
    for number in campaign.numbers("signals"):
        draw = campaign.random(number)
        name, signal = draw.choice(sorted(COMMANDS)), draw.choice(sorted(CODES))
        after = draw.uniform(0.1, 4)
        try:
            interrupt(name, signal, after, tmp_path)
        except AssertionError as error:
            raise AssertionError(f"{name}, {signal!r} after {after:.3f} s") from error
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
