"""Measurements take turns, each in a process of its own; here the processes are stand-ins."""

import json
import os
import signal
import subprocess
import sys

import pytest

from qwen35.bench import processes, text
from qwen35.bench.processes import Job, alternate
from qwen35.bench.text import NarrowModels

JOBS = {
    "ours": Job(text.measure_compilation, {"layers": [1]}),
    "theirs": Job(text.measure_compilation, {"layers": [2]}),
    "compiling": Job(text.measure_compilation, {"layers": [3]}, once=True),
}


@pytest.fixture
def ran(monkeypatch):
    """What was run: the job's layers, its threads and the cores that it may use."""
    calls = []

    def run(command, *, env, stdout):
        assert command[:4] == [sys.executable, "-m", "qwen35.bench", "text.measure_compilation"]
        [layers] = json.loads(command[4])["layers"]
        calls.append((layers, env["OMP_NUM_THREADS"], env["NPROC"], len(os.sched_getaffinity(0))))
        return subprocess.CompletedProcess(command, 0, b'a warning\n{"models": []}\n')

    monkeypatch.setattr(processes.subprocess, "run", run)
    return calls


def test_jobs_alternate_and_those_of_one_round_run_once(ran):
    said, cores = [], os.sched_getaffinity(0)
    results = alternate(JOBS, rounds=3, threads=1, say=said.append)
    assert [layers for layers, *_ in ran] == [1, 2, 3, 1, 2, 1, 2]
    assert {tuple(rest) for _, *rest in ran} == {("1", "1", 1)}
    assert os.sched_getaffinity(0) == cores
    assert {name: len(records) for name, records in results.items()} == {
        "ours": 3,
        "theirs": 3,
        "compiling": 1,
    }
    assert results["ours"][0] == NarrowModels(())
    assert said[2] == "round 1 of 1: compiling" and said[-1] == "round 3 of 3: theirs"


@pytest.mark.parametrize(
    ("code", "output", "said"),
    [
        (3, b"", "theirs failed.*exit code 3"),
        (-signal.SIGKILL, b"", "theirs failed.*signal 9: out of memory"),
        (0, b'{"error": "no such model"}\n', "^no such model$"),
    ],
)
def test_nothing_runs_on_after_a_failure(monkeypatch, code, output, said):
    calls = []

    def run(command, **_):
        calls.append(json.loads(command[4])["layers"])
        if calls[-1] == [1]:
            return subprocess.CompletedProcess(command, 0, b'{"models": []}\n')
        return subprocess.CompletedProcess(command, code, output)

    monkeypatch.setattr(processes.subprocess, "run", run)
    with pytest.raises(ValueError, match=said):
        alternate(JOBS, rounds=2, threads=1, say=lambda line: None)
    assert calls == [[1], [2]]


@pytest.mark.parametrize(("rank", "layers"), [(0, [1, 2]), (1, [1])])
def test_a_rank_starts_what_all_ranks_measure_and_the_first_the_rest(monkeypatch, rank, layers):
    """The processes of all ranks meet apart from those that start them; one alone is no rank."""
    calls = {}

    def run(command, *, env, stdout):
        [number] = json.loads(command[4])["layers"]
        calls[number] = env
        return subprocess.CompletedProcess(command, 0, b'{"models": []}\n')

    monkeypatch.setattr(processes.subprocess, "run", run)
    monkeypatch.setattr(processes.process, "from_rank_0", lambda value: value)
    monkeypatch.setattr(processes.process, "call_on_all_ranks", lambda work, *how: work(*how))
    for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    jobs = {"ours": JOBS["ours"]._replace(split=True), "theirs": JOBS["theirs"]}
    results = alternate(jobs, rounds=1, threads=1, say=lambda line: None, rank=rank)
    assert list(calls) == layers and results["ours"] == [NarrowModels(())]
    assert calls[1]["RANK"] == str(rank) and calls[1]["MASTER_PORT"] != "1"
    assert calls[1]["TORCHELASTIC_USE_AGENT_STORE"] == "False"
    assert rank or not {"RANK", "WORLD_SIZE"} & calls[2].keys()
