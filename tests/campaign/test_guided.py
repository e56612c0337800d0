"""Headers and configurations that a coverage-guided fuzzer makes, where atheris is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from oracle import Fault

GUIDED = Path(__file__).parent / "guided.py"


@pytest.mark.parametrize("kind", ["headers", "configurations"])
def test_what_a_guided_fuzzer_makes(campaign, kind, tmp_path):
    if not campaign.full:
        pytest.skip("takes seconds to start")
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install atheris")
    seconds = str(max(1, int(campaign.seconds)))
    done = subprocess.run(
        [sys.executable, str(GUIDED), kind, str(tmp_path), seconds, str(campaign.seed)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        timeout=campaign.seconds + 300,
    )
    found = re.search(r"stat::number_of_executed_units: +(\d+)", done.stderr)
    campaign.count(f"guided {kind}", int(found[1]) if found else 0)
    if done.returncode != 0 or found is None:
        inputs = [path.read_bytes()[:500] for path in tmp_path.iterdir() if path.is_file()
                  and path.name != "words"]  # fmt: skip
        campaign.findings.add(Fault(done.stderr[-3000:]), lambda: repr(inputs))
