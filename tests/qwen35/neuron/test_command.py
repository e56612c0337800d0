"""`qwen35 neuron run` from the command line to the archive, on a stand-in for the device."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import neuron_stand_in
import pytest

from qwen35.commands.cli import main
from qwen35.neuron import report, run
from qwen35.neuron.check import check
from qwen35.neuron.machine import Device, Machine
from qwen35.neuron.run import Entry
from qwen35.neuron.steps import STEPS, Settings

DEMO = Path(__file__).resolve().parents[3] / "demo"


def test_without_a_device_nothing_is_run(tmp_path, capsys):
    output = tmp_path / "report"
    assert main(["neuron", "run", "--output", str(output)]) == 2
    assert "needs a Neuron device" in capsys.readouterr().err and not output.exists()


@pytest.fixture
def pretended(monkeypatch):
    """A machine that passes for one with a device; steps run on the stand-in, unless said."""
    monkeypatch.setattr("qwen35.xla.environment.check_neuron", lambda: None)
    device = run.worker

    def worker(processes):
        *command, flag, package = device(processes)
        assert (flag, package) == ("-m", "qwen35.neuron")
        return [*command, neuron_stand_in.__file__]

    monkeypatch.setattr(run, "worker", worker)


def test_bad_input_is_found_before_the_first_step(pretended, tmp_path, capsys):
    assert main(["neuron", "run", "--preset", "1b", "--output", str(tmp_path / "new")]) == 2
    assert "no preset '1b'" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_what_failed_is_the_exit_code_and_on_the_page(pretended, tmp_path, monkeypatch, capsys):
    code = "import sys; print('last words'); sys.exit(9)"
    monkeypatch.setattr(run, "worker", lambda processes: [sys.executable, "-c", code])
    assert main(["neuron", "run", "--output", str(tmp_path)]) == 1
    assert "died    model: exit code 9" in capsys.readouterr().out
    assert "| died " in (tmp_path / "neuron.md").read_text()
    with tarfile.open(tmp_path / report.ARCHIVE) as archive:
        assert archive.extractfile("neuron-run/model.log").read() == b"last words\n"


RUN = ("arithmetic", "ranks", "speed", "segments", "buckets", "profile")


@pytest.mark.slow
def test_a_run_of_two_ranks(pretended, tmp_path, monkeypatch, capsys):
    """Steps in processes, those of a split model in one for each rank, to the archive."""
    monkeypatch.setattr(run, "STEPS", [step for step in STEPS if step.name in RUN])
    with neuron_stand_in.small():  # here for the preset's name
        command = ["neuron", "run", "--preset", neuron_stand_in.NARROW, "--tp", "2"]
        assert main([*command, "--output", str(tmp_path)]) == 0, capsys.readouterr()
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said] == [
        *(["passed", name] for name in RUN[:5]),
        ["absent", "profile:"],
    ]
    result = json.loads((tmp_path / "neuron.json").read_text())
    steps = {step["step"]: step for step in result["steps"]}
    assert steps["ranks"]["tests"][0]["name"] == "logits of 17 steps at tp 2"
    assert steps["speed"]["figures"]["tpot"] > 0
    assert [row["segments"] for row in steps["segments"]["figures"]["rows"]] == ["1", "auto"]
    assert [row["size"] for row in steps["buckets"]["figures"]["rows"]] == [4, 16]
    with tarfile.open(tmp_path / report.ARCHIVE) as archive:
        pictures = [name for name in archive.getnames() if name.endswith(".png")]
    assert len(pictures) == 3  # errors, time per token, sizes of a step


def entry(step: str, status: str, **more) -> Entry:
    return Entry(step, "key", status, 3.0, **more)


def test_a_page_of_all_that_can_become_of_steps(tmp_path):
    tests = (
        {"name": "a | b", "passed": True, "error": 1e-6, "bound": 1e-5, "text": ""},
        {"name": "c", "passed": False, "error": None, "bound": None, "text": "RuntimeError: X"},
    )
    entries = [
        entry("arithmetic", run.FAILED, text="1 of 2 tests", tests=tests, figures={}),
        entry(
            "speed",
            run.PASSED,
            figures={
                "ttft": 0.0837,
                "tpot": 0.0359,
                "published_by_others": [{"tpot": 48.5, "source": "they"}],
            },
        ),
        entry("buckets", run.PASSED, figures={"rows": [{"size": 32, "compile": 1, "seconds": 2}]}),
    ]
    machine = Machine(python=(3, 12), devices=(Device(4, 96 * 2**30, 2),), instance="trn2.3xlarge")
    report.write(tmp_path, Settings(), machine, check(machine), "xla", entries)
    page = (tmp_path / "neuron.md").read_text()
    assert "trn2.3xlarge, 4 logical cores" in page and "stand-in" not in page
    assert "1 of 2 tests" in page and "RuntimeError: X" in page and "not reached" in page
    assert (
        "0.0837" in page
        and "tpot 48.5, source they" in page
        and "size 32" in page
        and "a \\| b" in page
    )
    result = json.loads((tmp_path / "neuron.json").read_text())
    assert [step["step"] for step in result["steps"]] == ["arithmetic", "speed", "buckets"]
    assert len(list(tmp_path.glob("neuron-*.png"))) == 3
    assert result["published_by_others"] and "source" in result["published_by_others"][0]
