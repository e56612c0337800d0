"""The README's Python example runs as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_runs_as_printed():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [example] = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import" in block
    ]
    result = subprocess.run(
        [sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    answer, *continuations = result.stdout.splitlines()
    assert answer.startswith(" Paris")
    assert len(continuations) == 2 and continuations[0] != continuations[1]
    assert "cold" in continuations[0]
