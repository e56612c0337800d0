"""The quickstart notebook: it runs, says what it said, and what it says is so."""

from __future__ import annotations

import copy
import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "run_notebook.py"
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"

# Run after the imports: a plot that is shown has every text, and all of it, within the picture.
LOOK = """\
def show_whole(show=plt.show):
    from matplotlib.text import Annotation, Text

    for number in plt.get_fignums():
        figure = plt.figure(number)
        figure.canvas.draw()
        renderer, page = figure.canvas.get_renderer(), figure.bbox
        for ax in figure.axes:
            texts = [part for part in ax.get_children() if isinstance(part, Text)]
            parts = {repr(text): text for text in texts if text.get_text().strip()}
            for name, text in parts.items():
                if isinstance(text, Annotation) and not text._check_xy(renderer):
                    raise AssertionError(f"{name} is not drawn: it lies outside its axes")
            if ax.axison:
                parts |= {"x": ax.xaxis, "y": ax.yaxis}
            if ax.get_legend():
                parts["legend"] = ax.get_legend()
            assert parts
            for name, part in parts.items():
                box = part.get_tightbbox(renderer)
                if box is None:
                    continue
                wide = page.x0 <= box.x0 and box.x1 <= page.x1
                if not wide or box.y0 < page.y0 or page.y1 < box.y1:
                    raise AssertionError(f"{name} is clipped: {box} in {page}")
    show()


plt.show = show_whole
"""


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def looking(notebook) -> nbformat.NotebookNode:
    """A copy that looks at its plots: a cell more, behind the imports."""
    new = copy.deepcopy(notebook)
    [at] = [index for index, cell in enumerate(new.cells) if cell.id == "setup"]
    new.cells.insert(at + 1, nbformat.v4.new_code_cell(LOOK, id="look"))
    return new


@pytest.mark.slow
def test_a_clean_run_puts_out_what_stands_in_the_file(notebook, script):
    """In a fresh kernel, without an error in any cell; timings and pictures aside. No text of a
    plot is clipped."""
    new = script["execute"](looking(notebook), NOTEBOOK.parent)
    new.cells = [cell for cell in new.cells if cell.id != "look"]
    assert script["differences"](notebook, new) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plot", "said"),
    [
        ('ax.annotate("left out", (0.5, -9))\nax.set(ylim=(0, 1))', "outside its axes"),
        ('ax.set_title("long " * 60)', "is clipped"),
    ],
)
def test_a_clipped_text_is_noticed(notebook, script, plot, said):
    setup = next(cell for cell in notebook.cells if cell.id == "setup")
    cell = nbformat.v4.new_code_cell(f"figure, ax = plt.subplots()\n{plot}\nplt.show()")
    small = nbformat.v4.new_notebook(cells=[copy.deepcopy(setup), cell])
    with pytest.raises(Exception, match=said):
        script["execute"](looking(small), NOTEBOOK.parent)


def test_the_outputs_are_those_of_one_clean_run(notebook):
    """From top to bottom, each cell once; no error, no warning, no path of a machine."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")
    pictures = [output for output in outputs if "image/png" in output.get("data", ())]
    assert len(pictures) == 5
    assert not re.search(r"/home/|/root/|/usr/|/tmp/|/work/", nbformat.writes(notebook))
    assert NOTEBOOK.stat().st_size < 400_000


@pytest.mark.parametrize(
    ("cell", "facts"),
    [
        (
            "generate",
            ["The capital of France is| Paris", "stop", "Italy? The capital of Italy is Rome."],
        ),
        ("engine", [" Paris", " Rome", " Tokyo", "named Ruby", "came out of the cache"]),
        ("picture", ["circle.png: ", "circle", "square"]),
        ("score", ["The capital of France is Paris.", " cold", " Paris"]),
        ("state", ["DeltaNetState", "AttentionState", "[1, 4, 32, 32]"]),
        ("walk", ["log_decay in layers [0, 1, 2, 4, 5, 6]", "weights   in layers [3, 7]"]),
        ("attention", ["adds up to one: True"]),
        ("fork", ["France is| Paris", "Japan is| Tokyo", "bit for bit: True"]),
        ("signatures", ["compilations: 1"]),
        ("hlo", ["broken rules: []"]),
        ("kernel", ["modelled, not measured"]),
        ("kernel-check", ["output: ", "less than 1e-5: True", "state: "]),
        ("tp", ["one device: True", "1e-4: True", "'all-reduce': 17", "'all-gather': 1"]),
    ],
)
def test_what_cells_show(notebook, script, cell, facts):
    text = shown(notebook, script, cell)
    for fact in facts:
        assert fact in text
    assert "False" not in text


def shown(notebook, script, cell: str) -> str:
    [cell] = [other for other in notebook.cells if other.id == cell]
    return script["text_of"](cell)


def test_the_prefix_cache_is_hit(notebook, script):
    """More of each prompt is known than of the one before, whose beginning it repeats."""
    text = shown(notebook, script, "engine")
    known = [int(count) for count in re.findall(r"^ *(\d+) of \d+ tokens were known", text, re.M)]
    assert known[0] == 0 and known == sorted(set(known)) and len(known) == 3
    [rate] = re.findall(r"all prompt tokens (\d+)%", text)
    assert 0 < int(rate) < 100


def test_likelihoods_are_in_the_order_of_the_facts(notebook, script):
    text = shown(notebook, script, "score")
    values = [float(value) for value in re.findall(r"(-?\d+\.\d)$", text, re.MULTILINE)]
    paris, rome, cold, *others = values
    assert 0 >= paris > rome + 5 and 0 >= cold > max(others) + 5 and len(others) == 2


def test_samples_of_a_forked_state_differ(notebook, script):
    text = shown(notebook, script, "fork")
    samples = [line for line in text.splitlines() if line.startswith("Once upon a time")]
    assert len(samples) == 4 and len(set(samples)) > 1


def test_another_output_is_noticed_and_another_timing_is_not(notebook, script):
    changed = copy.deepcopy(notebook)
    for cell in changed.cells:
        if cell.id in ("fork", "compile"):
            cell.outputs[0].text = cell.outputs[0].text.replace("1", "2").replace("Tokyo", "Kyoto")
    assert changed != notebook
    lines = "\n".join(script["differences"](notebook, changed))
    assert "cell fork" in lines and "Kyoto" in lines and "compile" not in lines
    assert script["differences"](notebook, notebook) == []
