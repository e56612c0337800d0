"""Reports as files: whole or not there, readable by programs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

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
