"""Reports as files: whole or not there, readable by programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwen35.reports import page

RESULT = page.about("a model", "float32", "cpu")


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(("where", "left"), [((Path, "write_bytes"), 0), ((os, "replace"), 3)])
def test_an_end_in_the_middle_leaves_all_files_or_none(end, where, left, tmp_path, monkeypatch):
    """Ctrl-C, and SIGTERM as the command line has it, at the second file: while it is written, or
    while they take their places, which is then finished."""
    function, asked = getattr(*where), []

    def interrupted(*arguments):
        asked.append(arguments)
        if len(asked) == 2:
            raise end
        return function(*arguments)

    monkeypatch.setattr(*where, interrupted)
    with pytest.raises(end):
        page.write_report(tmp_path, "x", "X", RESULT, "text", {"a plot": lambda axes: None})
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == ["x-a-plot.png", "x.json", "x.md"][:left]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    worse = {"a": [1.0, float("inf")], "b": {"c": (float("nan"), "nan")}, "d": True, "e": None}
    page.write_report(tmp_path, "x", "X", {**RESULT, **worse}, "text", {})
    written = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert written["a"] == [1.0, None] and written["b"] == {"c": [None, "nan"]}
    assert written["d"] is True and written["e"] is None


def curves(axes) -> None:
    for index in range(3):
        width = page.line_width(index, 3)
        axes.plot([0, 1, 2], [1, 3, 2], color=f"C{index}", linewidth=width)


def test_equal_curves_all_show_and_a_plot_has_a_title_within_the_picture(tmp_path):
    """Asked of the drawn picture: each curve's colour is in it, and its edges are blank."""
    pytest.importorskip("matplotlib")
    from matplotlib.colors import to_rgb

    page.write_report(tmp_path, "x", "Measured", RESULT, "text", {"a plot": curves})
    with Image.open(tmp_path / "x-a-plot.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for index in range(3):
        colour = np.array([round(255 * part) for part in to_rgb(f"C{index}")])
        assert (abs(pixels - colour).max(-1) <= 2).sum() > 300, f"curve {index} is hidden"
    edges = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    assert all((edge == 255).all() for edge in edges)
    above = pixels[: len(pixels) // 12]
    assert (above < 128).any(), "there is no title"
