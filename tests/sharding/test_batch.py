"""`qwen35 batch` over replicas: lines are shared out, and one that dies costs those that it had."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from starting import run, two_machines

DEMO = str(Path(__file__).parents[2] / "demo")
STARTS = ("Once upon a time", "The capital of France is", "The opposite of hot is", "What is")


def source_of(path, count):
    lines = [{"custom_id": f"x{n}", "prompt": STARTS[n % 4]} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def batch(source, target, *options):
    how = ["--model", DEMO, "--device", "cpu", "--slots", "2", "--capacity", "128", "--ignore-eos"]
    return ["-m", "qwen35", "batch", str(source), str(target), *how, *options]


def texts(path):
    return {line["custom_id"]: line["text"] for line in map(json.loads, path.open())}


@pytest.mark.slow
def test_replicas_on_two_machines_answer_as_one_process(tmp_path):
    """Each of two ranks; only the first of all writes, in the input's order."""
    source, options = source_of(tmp_path / "in", 13), ["--max-new-tokens", "20", "--json"]
    alone = run(sys.executable, *batch(source, tmp_path / "alone", *options))
    assert alone.returncode == 0, alone.stderr
    done = two_machines(2, *batch(source, tmp_path / "out", *options, "--tp", "2", "--dp", "2"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 13
    assert texts(tmp_path / "out") == texts(tmp_path / "alone")
    assert list(texts(tmp_path / "out")) == [f"x{n}" for n in range(13)]
    again = two_machines(1, *batch(source, tmp_path / "out", *options, "--dp", "2"))
    assert json.loads(again.stdout)["done"] == 0


@pytest.mark.slow
def test_replicas_in_one_process_answer_as_one_device(tmp_path):
    source, options = source_of(tmp_path / "in", 5), ["--max-new-tokens", "8"]
    for name, place in (("alone", ["--device", "cpu"]), ("out", ["--device", "xla", "--dp", "2"])):
        done = run(sys.executable, *batch(source, tmp_path / name, *options, *place))
        assert done.returncode == 0, done.stderr
    assert texts(tmp_path / "out") == texts(tmp_path / "alone")


@pytest.mark.slow
def test_a_replica_that_is_killed_costs_the_lines_that_it_had(tmp_path):
    """The other answers all the rest, and the next start those."""
    count, slots = 120, 2
    source, target = source_of(tmp_path / "in", count), tmp_path / "out"
    options = ["--max-new-tokens", "50", "--json"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, *batch(source, target, *options, "--dp", "2")]
    replicas = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | place
            | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0"},
        )
        for rank in range(2)
    ]
    start = time.monotonic()
    while not target.exists() or target.read_bytes().count(b"\n") < 20:
        assert all(replica.poll() is None for replica in replicas)
        assert time.monotonic() - start < 200
        time.sleep(0.02)
    replicas[1].send_signal(signal.SIGKILL)
    replicas[1].communicate(timeout=60)
    _, notes = replicas[0].communicate(timeout=300)
    assert replicas[0].returncode == 2 and "another replica has gone" in notes
    there = target.read_bytes()
    left = count - there.count(b"\n")
    assert 1 <= left <= slots + 2  # in its slots, one that it read, and one that waited
    again = run(sys.executable, *batch(source, target, *options))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["done"] == left
    found = texts(target)
    assert list(found) == [f"x{n}" for n in range(count)]
    assert set(there.splitlines()) <= set(target.read_bytes().splitlines())
    assert all(found[f"x{n}"] == found[f"x{n % 4}"] for n in range(count))
