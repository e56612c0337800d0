"""`qwen35 chat` as a process: what it prints where, and how it ends."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qwen35
from qwen35.commands import chat, cli
from qwen35.commands.chat_screen import Screen
from qwen35.generation.answers import Part

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
    chat._converse(failing, Screen(thoughts=True), lambda: None)
    assert failing.asked == ["one", "two"]
    assert capsys.readouterr().err.count("error: LibraryError: something inside") == 2


THOUGHT = [("thought", "Well, "), ("thought", "hm."), ("text", "Yes"), ("text", "!")]
CALLS = [("text", "Let me see."), ("call", "look"), ("arguments", '{"at": '), ("arguments", "1}")]
CALLS += [("call", "run"), ("arguments", "{}"), ("text", "Done.")]


@pytest.mark.parametrize(
    ("parts", "terminal", "thoughts", "shown"),
    [
        (THOUGHT, True, True, "\x1b[2mWell, hm.\x1b[0m\n\nYes!\n"),
        (THOUGHT, True, False, "\x1b[2mthinking …\x1b[0m\r\x1b[KYes!\n"),
        (THOUGHT[:2], True, True, "\x1b[2mWell, hm.\x1b[0m\n\n\n"),
        (THOUGHT, False, True, "Yes!\n"),
        (CALLS, False, True, 'Let me see.\nlook {"at": 1}\nrun {}\nDone.\n'),
        ([THOUGHT[0], *CALLS[1:4]], True, True, '\x1b[2mWell, \x1b[0m\n\nlook {"at": 1}\n'),
    ],
)
def test_thoughts_are_dimmed_or_hidden_and_calls_stand_alone(
    monkeypatch, capsys, parts, terminal, thoughts, shown
):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    screen = Screen(thoughts)
    for _ in range(2):
        for part in parts:
            screen.show(Part(*part))
        screen.end()
    assert capsys.readouterr().out == 2 * shown


def test_thoughts_go_to_no_pipe_and_unknown_commands_are_said(tmp_path):
    """The demo thinks before it answers, by its own template."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen35", "chat", "--model", str(DEMO), "--device", "cpu"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = [JAPAN, "/thoughts", "/sing a song", "/save", f"/save {tmp_path / 'kept'}"]
    output, notes = process.communicate("\n".join(lines) + "\n", timeout=120)
    assert output.splitlines() == [TOKYO] and "Traceback" not in notes
    assert "thoughts are hidden" in notes and "/sing is no command" in notes
    assert "/save needs more than that" in notes
    saved = qwen35.load_state(tmp_path / "kept", qwen35.load(DEMO)).metadata["chat"]
    assert JAPAN in json.loads(saved)["messages"][-1]["reasoning_content"]


class Terminal:
    """A chat on a terminal of its own, in which somebody types."""

    def __init__(self, *options):
        ours, theirs = pty.openpty()
        command = ["-m", "qwen35", "chat", "--model", str(DEMO), "--device", "cpu", *options]
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=theirs, stdout=subprocess.PIPE, stderr=theirs,
            env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._terminal, self.shown = ours, ""

    def type(self, text):
        os.write(self._terminal, text.encode())

    def wait_for(self, text, seconds=60):
        """Reads what is shown up to a text."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self._terminal], [], [], 0.2)[0]:
                self.shown += os.read(self._terminal, 4096).decode("utf-8", "replace")
        self.shown = self.shown.partition(text)[2]

    def answers(self):
        """What came on standard output, of a chat that has ended."""
        output, _ = self.process.communicate(timeout=60)
        return output.decode()


def test_a_message_of_several_lines_is_typed_or_pasted(tmp_path):
    """As one question each; Ctrl-C at the prompt and a long conversation end nothing."""
    kept = tmp_path / "kept"
    terminal = Terminal("--no-thinking", "--max-new-tokens", "8", "--capacity", "230")
    terminal.wait_for("/help lists commands")
    terminal.wait_for(">")  # it listens
    terminal.type("\x03")
    terminal.wait_for("Ctrl-D or /exit ends")
    terminal.wait_for(">")
    terminal.type(f"\x1b[200~{JAPAN}\nAnd then?\r\n\x1b[201~\r")
    terminal.wait_for("first token after")
    terminal.wait_for(">")
    terminal.type("one\\\rtwo\x1b\rthree\r")
    terminal.wait_for("first token after")
    terminal.wait_for(">")
    terminal.type(f"/save {kept}\r")
    terminal.wait_for("saved to")
    terminal.wait_for(">")
    terminal.type(f"\x1b[200~{'word ' * 200}\x1b[201~\r")
    terminal.wait_for("/reset begins anew")
    terminal.wait_for(">")
    terminal.type("\x04")
    assert len(terminal.answers().splitlines()) == 2 and terminal.process.returncode == 0
    saved = json.loads(qwen35.load_state(kept, qwen35.load(DEMO)).metadata["chat"])["messages"]
    asked = [message["content"] for message in saved if message["role"] == "user"]
    assert asked == [f"{JAPAN}\nAnd then?", "one\ntwo\nthree"]


@pytest.mark.slow
def test_it_compiles_while_somebody_types():
    """The prompt comes first. Who waits is told, and not on standard output."""
    terminal = Terminal("--no-thinking", "--device", "xla")
    terminal.wait_for(">")
    terminal.type(f"{JAPAN}\r")
    terminal.wait_for("compiling what is left")
    terminal.wait_for("first token after", 240)
    terminal.wait_for(">")
    terminal.type("\x04")
    assert terminal.answers().splitlines() == [TOKYO] and terminal.process.returncode == 0


@pytest.mark.slow
def test_leaving_waits_for_no_more_than_a_graph():
    terminal = Terminal("--device", "xla")
    terminal.wait_for(">")
    terminal.type("\x04")
    assert terminal.answers() == "" and terminal.process.returncode == 0
