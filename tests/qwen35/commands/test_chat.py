"""`qwen35 chat` as a process: what it prints where, and how it ends."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import qwen35
from qwen35.commands import chat, cli

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


def test_one_line_does_not_end_a_chat(tmp_path):
    """Paths as a shell takes them; a line that is not UTF-8, a directory that is not there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen35", "chat", "--model", DEMO, "--device", "cpu",
         "--no-thinking"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    lines = [JAPAN, "/save ~/one", f"/save '{tmp_path}/two words'", "/save /nonexistent/x"]
    lines += ["/load ~/one", f'/load "{tmp_path}/two words"', "/image '~/nothing.png'"]
    typed = [line.encode() for line in lines] + [
        b"caf\xe9",
        b"/load ~/\xff",
        b"/reset",
        FRANCE.encode(),
    ]
    output, notes = process.communicate(b"\n".join(typed) + b"\n", timeout=120)
    output, notes = output.decode(), notes.decode()
    assert output.splitlines() == [TOKYO, PARIS] and process.returncode == 0
    assert {"one", "two words"} <= {file.name for file in tmp_path.iterdir()}
    assert notes.count("error:") == 4 and notes.count("not UTF-8") == 2
    assert notes.count("1 questions so far") == 2 and "Traceback" not in notes


class Failing:
    """A chat that fails as libraries do, with types of their own."""

    class LibraryError(Exception):
        pass

    def __init__(self, engine):
        self.engine, self.asked = engine, []

    def ask(self, line, images):
        self.asked.append(line)
        raise self.LibraryError("something inside")


def test_no_exception_of_a_line_ends_a_chat(monkeypatch, capsys):
    engine = qwen35.Engine(qwen35.load(DEMO), qwen35.Tokenizer.from_pretrained(DEMO), slots=1)
    failing = Failing(engine)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    chat._converse(failing)
    assert failing.asked == ["one", "two"]
    assert capsys.readouterr().err.count("error: LibraryError: something inside") == 2
