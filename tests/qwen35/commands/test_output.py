"""The end of a command with a report: the result is printed, whatever comes of the report."""

import argparse
import json

import pytest

from qwen35.commands.output import make_output, write_output
from qwen35.reports.page import about

RESULT = about("m", "float32", "cpu") | {"value": 0.5}


def end(output, as_json=False):
    options = argparse.Namespace(output=str(output), json=as_json)
    write_output(options, "measured", "Measured", RESULT, "a table", {})


def test_the_report_and_the_result(tmp_path, capsys):
    end(tmp_path)
    out, err = capsys.readouterr()
    assert out == "a table\n" and err.startswith(f"wrote {tmp_path / 'measured.md'}")
    assert json.loads((tmp_path / "measured.json").read_text())["value"] == 0.5


@pytest.mark.parametrize("as_json", [False, True])
def test_a_report_that_fails_does_not_cost_the_result(tmp_path, capsys, as_json):
    """What took hours to measure is on standard output when the disk is full."""
    (tmp_path / "measured.md").mkdir()  # in the way of the page
    with pytest.raises(OSError, match=r"measured\.md"):
        end(tmp_path, as_json)
    out = capsys.readouterr().out
    assert json.loads(out) == RESULT if as_json else out == "a table\n"


def test_a_directory_that_cannot_be_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make_output(argparse.Namespace(output=str(tmp_path / "file" / "report")))
