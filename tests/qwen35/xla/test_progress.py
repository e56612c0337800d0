"""Progress bars: of compilations, and what a process that forks and is killed leaves of them."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen35.xla.observers import CompileEvent, announce, on_compile
from qwen35.xla.progress import compile_all, count_compilations, progress_bar

DEMO = Path(__file__).resolve().parents[3] / "demo"

PROGRAM = """
import os, signal, sys
from tqdm import tqdm
import qwen35
from qwen35.checks.hub import _silent
from qwen35.xla.progress import progress_bar

lock = tqdm.get_lock()
if not os.fork():
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
params = qwen35.load(sys.argv[1])
sys.stderr.isatty = lambda: True
qwen35.load(sys.argv[1], progress=True)
with progress_bar("count", 2, "token", True) as bar:
    bar.update(2)
_silent()(total=1).close()
print(params.config.num_hidden_layers, bar.n)
"""


def test_a_killed_child_that_held_tqdms_lock_stops_no_load():
    """tqdm's lock is shared over forks: with it, the load waits until the timeout."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, DEMO], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    layers, counted = done.stdout.split()
    assert int(layers) > 0 and counted == "2"
    assert "load: " in done.stderr and "count: 100%" in done.stderr


class Step:
    """Stands for a function of `compiled`: compiling takes a moment, once."""

    def __init__(self):
        self.arguments = set()

    def compile(self, *arguments):
        if arguments in self.arguments:
            return
        for phase in ("trace", "compile", "done"):
            announce(CompileEvent("_step", "", phase, 0.5))
            time.sleep(0.05)
        self.arguments.add(arguments)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_compiled_shows_as_a_bar_or_a_line_each(terminal, capsys, monkeypatch):
    """And as nothing where all is there; whoever else looks on sees all the same."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    step, others = Step(), []
    graphs = [(name, step, (name,)) for name in ("small", "large")]
    with on_compile(others.append):
        seen = compile_all(graphs, show=True)
    assert (seen.count, seen.seconds) == (2, 1.0) and len(others) == 6
    said = capsys.readouterr().err
    if terminal:
        assert "compile:  50%" in said and "compile: 100%" in said and "2/2" in said
        assert "small" in said and "large" in said and "compiling" not in said
    else:
        assert said == "compiling step ... done in 0.5 s\n" * 2
    assert compile_all(graphs, show=True).count == 0 and compile_all(graphs, False).count == 0
    assert capsys.readouterr().err == ""
    step.arguments.clear()
    assert compile_all(graphs, show=False).count == 2
    assert capsys.readouterr().err == ""


def test_under_another_bar_that_of_compilations_does_not_stay(capsys, monkeypatch):
    """The last thing written is the other bar: what was below it has been wiped off."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar("compare", 2, "prompt", True) as bar:
        compile_all([("read", Step(), ()), ("logits", Step(), (1,))], show=True)
        bar.update(2)
    below, _, after = capsys.readouterr().err.rpartition("read")
    assert "compile: " in below + after and "compile" not in after.rpartition("\r")[2]
    wiped = after[after.index("compile: 100%") :]
    assert "\r" + " " * 20 in wiped or "\x1b[2K" in wiped, repr(wiped)


@pytest.mark.parametrize("terminal", [True, False])
def test_compilations_of_an_unknown_number_are_counted_in_a_terminal(terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    step, seen = Step(), []
    with count_compilations(True):
        for number in range(3):
            step.compile(number)
            seen.append(capsys.readouterr().err)
    seen.append(capsys.readouterr().err)
    if not terminal:
        assert seen == [""] * 4
        return
    for number, said in enumerate(seen[:-1]):
        assert f"compile: {number} graphs done, now step" in said
        assert not said.rpartition("\r")[0].rpartition("\r")[2].strip()  # it is wiped off
    with count_compilations(False):
        Step().compile()
    assert capsys.readouterr().err == ""


class OutStream(io.StringIO):
    """Stands for what a notebook's kernel puts in the place of standard error: no terminal."""

    __module__ = "ipykernel.iostream"


def test_a_notebook_draws_bars_and_a_log_does_not_where_its_package_is_merely_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    for stream, drawn in ((OutStream(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar("count", 2, "token", show=True) as bar:
            bar.update(2)
        assert ("count" in stream.getvalue()) == drawn
