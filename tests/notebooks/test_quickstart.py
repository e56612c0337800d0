"""The quickstart notebook: it runs, says what it said, and what it says is so."""

from __future__ import annotations

import copy
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "run_notebook.py"
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.slow
def test_a_clean_run_puts_out_what_stands_in_the_file():
    """In a fresh kernel, without an error in any cell; timings and pictures aside."""
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_outputs_are_those_of_one_clean_run(notebook):
    """From top to bottom, each cell once; no error, no warning, no path of a machine."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")
    pictures = [output for output in outputs if "image/png" in output.get("data", ())]
    assert len(pictures) == 3
    assert not re.search(r"/home/|/root/|/usr/|/tmp/|/work/", nbformat.writes(notebook))
    assert NOTEBOOK.stat().st_size < 400_000


@pytest.mark.parametrize(
    ("cell", "facts"),
    [
        ("generate", ["The capital of France is| Paris", "stop"]),
        ("state", ["DeltaNetState", "AttentionState", "[1, 4, 32, 32]"]),
        ("fork", ["France is| Paris", "Japan is| Tokyo", "bit for bit: True"]),
        ("signatures", ["compilations: 1"]),
        ("hlo", ["broken rules: []"]),
        ("kernel", ["modelled, not measured"]),
        ("kernel-check", ["output: ", "less than 1e-5: True", "state: "]),
        ("tp", ["one device: True", "1e-4: True", "'all-reduce': 17", "'all-gather': 1"]),
    ],
)
def test_what_cells_show(notebook, script, cell, facts):
    [cell] = [other for other in notebook.cells if other.id == cell]
    text = script["text_of"](cell)
    for fact in facts:
        assert fact in text
    assert "False" not in text


def test_another_output_is_noticed_and_another_timing_is_not(notebook, script):
    changed = copy.deepcopy(notebook)
    for cell in changed.cells:
        if cell.id in ("fork", "compile"):
            cell.outputs[0].text = cell.outputs[0].text.replace("1", "2").replace("Tokyo", "Kyoto")
    assert changed != notebook
    lines = "\n".join(script["differences"](notebook, changed))
    assert "cell fork" in lines and "Kyoto" in lines and "compile" not in lines
    assert script["differences"](notebook, notebook) == []
