"""`qwen35 chat` as a process: what it prints where, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwen35.commands import cli

DEMO = Path(__file__).resolve().parents[3] / "demo"
JAPAN = "What is the capital of Japan?"
TOKYO = "The capital of Japan is Tokyo. People in Japan speak Japanese."
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris. People in France speak French."


def command(*options):
    arguments = ["--model", str(DEMO), "--device", "cpu", "--no-thinking", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "qwen35", "chat", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def test_command(tmp_path):
    """Answers alone on standard output; commands; a mistake is a sentence, not the end."""
    file = tmp_path / "kept"
    lines = [JAPAN, "/retry", f"/save {file}", "/reset", FRANCE, f"/load {file}", "/load nowhere"]
    lines += ["/image nowhere.png", "/edit " + FRANCE, "/sing", "/exit", JAPAN]
    output, notes = command().communicate("\n".join(lines) + "\n", timeout=120)
    assert output.splitlines() == [TOKYO, TOKYO, PARIS, PARIS]
    assert "saved to" in notes and "1 questions so far" in notes
    assert notes.count("error:") == 2 and "/retry" in notes and "Traceback" not in notes


def test_interrupting_an_answer_does_not_end_the_program():
    process = command("--temperature", "9", "--seed", "0", "--max-new-tokens", "800")  # all 800
    process.stdin.write(JAPAN + "\n")
    process.stdin.flush()
    assert process.stdout.read(1)  # the answer has begun
    process.send_signal(signal.SIGINT)
    _, notes = process.communicate("/exit\n", timeout=120)
    assert process.returncode == 0 and "cancelled" in notes and "Traceback" not in notes


def test_termination_ends_the_program():
    process = command("--temperature", "9", "--seed", "0", "--max-new-tokens", "800")  # all 800
    process.stdin.write(JAPAN + "\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.terminate()
    _, notes = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in notes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", "-1"], "temperature must be"),
        (["--load", "nowhere"], "nowhere"),
        (["--capacity", "0"], "--capacity"),
    ],
)
def test_bad_options(options, said, capsys):
    assert cli.main(["chat", "--model", str(DEMO), "--device", "cpu", *options]) == 2
    output, notes = capsys.readouterr()
    assert output == "" and said in notes.splitlines()[-1]
