"""Steps in processes of their own: what becomes of those that fail, die or take too long.

The processes here are a few lines of Python each: what a step measures is for test_steps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from qwen35.files.journal import opened
from qwen35.neuron import run
from qwen35.neuron.machine import Machine, Package
from qwen35.neuron.steps import STEPS, Settings

HERE = Machine(python=(3, 12))
GOOD = {"tests": [{"name": "t", "passed": True, "error": None, "bound": None, "text": ""}],
        "figures": {"seconds": 1.5}}  # fmt: skip
WRONG = {"name": "t", "passed": False, "error": 2.0, "bound": 1.0, "text": ""}
BAD = {"tests": [WRONG, *GOOD["tests"]], "figures": {}}
WRITE = "import json, sys, pathlib; pathlib.Path(sys.argv[3]).write_text(json.dumps({}))"


@pytest.fixture
def steps(monkeypatch):
    """steps(name=code, ...): what the processes of some steps do; the others end well."""

    def set_up(**codes):
        plan = {step.name: codes.get(step.name, WRITE.format(GOOD)) for step in STEPS}
        code = f"import sys; exec({plan!r}[sys.argv[1]])"
        monkeypatch.setattr(run, "worker", lambda processes: [sys.executable, "-c", code])

    set_up()
    return set_up


def go(output, machine=HERE, settings=None, **options):
    said = []
    entries = run.run(settings or Settings(), output, machine, say=said.append, **options)
    return {entry.step: entry for entry in entries}, said


def test_all_steps_in_order(steps, tmp_path):
    seen = []
    entries, said = go(tmp_path / "new", ended=lambda found: seen.append(len(found)))
    assert list(entries) == [step.name for step in STEPS] and run.good(list(entries.values()))
    assert {entry.status for entry in entries.values()} == {run.PASSED}
    assert seen == list(range(1, len(STEPS) + 1))
    assert entries["model"].figures == {"seconds": 1.5}
    assert sum(line.startswith("    passed after") for line in said) == len(STEPS)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        (WRITE.format(BAD), run.FAILED, "1 of 2 tests"),
        (
            WRITE.format({"error": "RuntimeError: NCC_EVRF007"}),
            run.BROKE,
            "RuntimeError: NCC_EVRF0",
        ),
        (WRITE.format({"absent": "no nki"}), run.ABSENT, "no nki"),
        ("print('last words'); sys.exit(70)", run.DIED, "exit code 70; nki_kernels.log has its"),
        ("import os; os.kill(os.getpid(), 9)", run.DIED, "signal 9: out of memory?"),
        ("pass", run.DIED, "exit code 0"),  # it ended, and wrote nothing
    ],
)
def test_a_step_that_does_not_end_well_is_reported_and_the_others_go_on(
    code, status, said, steps, tmp_path
):
    steps(nki_kernels=code)
    entries, lines = go(tmp_path)
    assert entries["nki_kernels"].status == status and said in entries["nki_kernels"].text
    others = [entry.status for name, entry in entries.items() if name != "nki_kernels"]
    assert others == [run.PASSED] * (len(STEPS) - 1)
    assert any(status in line and said in line for line in lines)
    assert run.good(list(entries.values())) == (status == run.ABSENT)
    if "last words" in code:
        assert (tmp_path / "nki_kernels.log").read_text() == "last words\n"


def test_a_step_that_takes_too_long_is_ended_with_what_it_started(steps, tmp_path, monkeypatch):
    child = tmp_path / "child"
    steps(
        portable="import subprocess, pathlib, time; p = subprocess.Popen(['sleep', '600']); "
        f"pathlib.Path({str(child)!r}).write_text(str(p.pid)); time.sleep(600)"
    )
    monkeypatch.setattr(run, "_limit", lambda step, left: 3.0 if step.name == "portable" else 60.0)
    start = time.monotonic()
    entries, _ = go(tmp_path)
    assert entries["portable"].status == run.LATE and time.monotonic() - start < 60
    assert entries["model"].status == run.PASSED
    state = Path(f"/proc/{child.read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_nothing_starts_after_the_budget(steps, tmp_path):
    entries, _ = go(tmp_path, budget=-1.0)
    assert {entry.status for entry in entries.values()} == {run.LEFT}
    assert {entry.status for entry in go(tmp_path)[0].values()} == {run.PASSED}


def test_it_goes_on_where_it_ended(steps, tmp_path):
    """What passed is not run again; what failed is; another machine begins anew."""
    steps(portable="sys.exit(1)")
    go(tmp_path)
    steps(**{step.name: "sys.exit(3)" for step in STEPS if step.name != "portable"})
    entries, said = go(tmp_path)
    assert {entry.status for entry in entries.values()} == {run.PASSED}
    assert sum(line.endswith("passed before") for line in said) == len(STEPS) - 1
    other = Machine(python=(3, 12), packages={"nki": Package("0.6.0")})
    entries, _ = go(tmp_path, other)
    assert entries["model"].status == run.DIED and entries["portable"].status == run.PASSED
    entries, _ = go(tmp_path, settings=Settings(tp=2))
    assert entries["model"].status == run.DIED


def test_trying_failed_compilations_again_is_no_other_machine(steps, tmp_path):
    go(tmp_path, Machine(python=(3, 12), environment={"NEURON_CC_FLAGS": ""}))
    flags = {"NEURON_CC_FLAGS": "--retry_failed_compilation --cache_dir=/big"}
    for environment in (flags | {"NEURON_COMPILE_CACHE_URL": "/big"},):
        steps(**{step.name: "sys.exit(3)" for step in STEPS})
        base, _ = go(
            tmp_path / "flags", Machine(python=(3, 12), environment={"NEURON_CC_FLAGS": ""})
        )
        assert {entry.status for entry in base.values()} == {run.DIED}
        steps()
        go(tmp_path / "flags", Machine(python=(3, 12), environment={"NEURON_CC_FLAGS": ""}))
        steps(**{step.name: "sys.exit(3)" for step in STEPS})
        again, _ = go(tmp_path / "flags", Machine(python=(3, 12), environment=environment))
        assert {entry.status for entry in again.values()} == {run.PASSED}


def test_a_killed_run_keeps_what_it_had(steps, tmp_path):
    """Half a line at the journal's end is what a writer leaves that dies over it."""
    go(tmp_path)
    journal = tmp_path / run.JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    steps(**{step.name: "sys.exit(3)" for step in STEPS[:-1]})
    entries, _ = go(tmp_path)
    assert {entry.status for entry in entries.values()} == {run.PASSED}


def test_one_run_at_a_time(steps, tmp_path):
    with opened(tmp_path / run.JOURNAL, dict, b"{"):
        with pytest.raises(ValueError, match="is being written by another process"):
            go(tmp_path)
    (tmp_path / run.JOURNAL).write_text(json.dumps({"step": "model"}) + "\n")
    with pytest.raises(ValueError, match="line 1: not one of this command's"):
        go(tmp_path)


def test_a_worker_that_is_there_by_default():
    assert run.worker(1) == [sys.executable, "-m", "qwen35.neuron"]
    assert run.worker(4)[1:] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4",
        "-m", "qwen35.neuron",
    ]  # fmt: skip
    assert os.path.exists(Path(run.__file__).parent / "__main__.py")
