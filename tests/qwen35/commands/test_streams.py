"""Standard streams that are closed, full or read by nobody; signals at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen35.ending import exit_code

ROOT = Path(__file__).resolve().parents[3]
DEMO = str(ROOT / "demo")
SEES = str(ROOT / "demo_vision")
SECONDS = 120  # after which a command hangs
ANSWER = ["--max-new-tokens", "8", "--device", "cpu"]
COMMANDS = {
    "info": ["info", DEMO],
    "chat": ["chat", "--model", DEMO, "--no-thinking", *ANSWER],
    "generate": ["generate", "--model", DEMO, "--prompt", "a", *ANSWER],
    "perplexity": ["eval", "perplexity", "--model", DEMO, "--text", "LICENSE", "--device", "cpu"],
    "convert": ["convert", "--tp", "2", DEMO, "{}/out"],
    "batch": ["batch", "{}/in", "{}/out", "--model", DEMO, *ANSWER, "--slots", "2"],
    "image": ["generate", "--model", SEES, "--image", f"{SEES}/circle.png", "--prompt", "a",
              *ANSWER],
    "export": ["export", "--model", DEMO, "--phase", "decode", "--capacity", "64", "{}/out"],
    "agreement": ["eval", "agreement", "--model", DEMO, "--device", "cpu", "--max-new-tokens", "8",
                  "--output", "{}/out"],
    "tp 2": ["generate", "--model", DEMO, "--prompt", "a", "--tp", "2", "--max-new-tokens", "8"],
}  # fmt: skip


def words_of(name: str, folder: Path) -> list[str]:
    """A command, of files in a folder."""
    lines = [json.dumps({"custom_id": f"x{n}", "prompt": "a" * (n + 1)}) for n in range(20)]
    (folder / "in").write_text("\n".join(lines))
    words = (word.replace("{}", str(folder)) for word in COMMANDS[name])
    return [sys.executable, "-m", "qwen35", *words]


def run(name: str, redirections: str, folder: Path) -> subprocess.CompletedProcess:
    """A command in a shell of its own, with `redirections`; "hi" comes through standard input."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$@" {redirections}', "bash", *words_of(name, folder)],
        input="hi\n",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=ROOT,
    )


# What is redirected, what the exit code is, and what standard error has to say.
STREAMS = [
    ("info", ">/dev/full", 2, "No space left"),
    ("info", "2>&-", 0, ""),
    ("chat", ">/dev/full", 2, "No space left"),
    ("chat", "| head -c 1", 141, ""),
]
MORE_STREAMS = [
    ("chat", "<&-", 0, ""),
    ("chat", "2>&-", 0, ""),
    ("chat", "2>/dev/full", 0, ""),
    ("chat", ">&- 2>&- <&-", 0, ""),
    ("info", ">&-", 0, ""),
    ("info", "2>/dev/full >/dev/full", 2, ""),
    ("generate", "<&-", 0, ""),
    ("generate", ">/dev/full", 2, "No space left"),
    ("generate", "2>&-", 0, ""),
    ("generate", "2>/dev/full", 0, ""),
    ("generate", "| true", 141, ""),
    ("perplexity", ">/dev/full", 2, "No space left"),
    ("perplexity", "2>&-", 0, ""),
    ("convert", ">&- 2>&-", 0, ""),
    ("convert", "2>/dev/full", 0, ""),
    ("batch", ">&- 2>&- <&-", 0, ""),
    ("batch", ">/dev/full 2>/dev/full", 0, ""),
    ("tp 2", ">/dev/full", 2, "No space left"),
    ("tp 2", "| true", 141, ""),
]


def check_streams(name, redirections, code, words, folder):
    done = run(name, redirections, folder)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and words in done.stderr
    if not words:
        assert "error" not in done.stderr
    if name == "chat" and code == 0 and "<&-" not in redirections:
        assert done.stdout.strip() and "tokens read" not in done.stdout, "notes are no answers"


@pytest.mark.parametrize(("name", "redirections", "code", "words"), STREAMS)
def test_streams_that_do_not_work(name, redirections, code, words, tmp_path):
    check_streams(name, redirections, code, words, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "redirections", "code", "words"), MORE_STREAMS)
def test_more_streams_that_do_not_work(name, redirections, code, words, tmp_path):
    check_streams(name, redirections, code, words, tmp_path)


def test_what_a_command_cannot_read_is_no_fault_of_standard_output(monkeypatch, capfd):
    """Which is said to be unwritable only where it is."""

    def missing():
        raise FileNotFoundError(2, "No such file or directory", "task.yaml")

    with pytest.raises(FileNotFoundError, match=r"task\.yaml"):
        exit_code(missing)
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert exit_code(lambda: print("a result") or 0) == 2
    told = "qwen35: error: standard output can't be written: [Errno 28] No space left on device\n"
    assert capfd.readouterr() == ("", told)


CODES = {
    signal.SIGINT: {130, -signal.SIGINT},  # the latter once the command is over
    signal.SIGTERM: {143, -signal.SIGTERM},
    signal.SIGHUP: {129, -signal.SIGHUP},
    signal.SIGPIPE: set(),
}


def interrupt(name: str, number: int, after: float, folder: Path) -> int:
    """Sends a signal so many seconds after a command's start; checks its end and returns its code.

    What comes before Python runs the command's first line, some hundredths of a second after the
    start, ends Python itself: at Ctrl-C with a traceback.
    """
    process = subprocess.Popen(
        words_of(name, folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        time.sleep(after)
        process.send_signal(number)
        _, errors = process.communicate("hi\n" * 3, timeout=SECONDS)
    except BrokenPipeError:
        errors = process.stderr.read()
        process.wait(SECONDS)
    finally:
        process.kill()
    assert process.returncode in CODES[number] | {0}, (process.returncode, errors)
    assert "Traceback" not in errors, errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left of its session
    return process.returncode


@pytest.fixture
def hangups():
    """SIGHUP as a terminal's commands have it: nohup has it ignored, by all that it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


# Early, while it imports, loads and computes.
MOMENTS = {"chat": (0.3, 0.9, 1.8), "convert": (0.3, 0.9, 1.8), "batch": (2.2,), "tp 2": (4.0,)}


@pytest.mark.slow
@pytest.mark.parametrize("number", list(CODES))
@pytest.mark.parametrize("name", MOMENTS)
def test_a_signal_ends_a_command_with_its_code(name, number, tmp_path, hangups):
    """What ends before has succeeded."""
    codes = {interrupt(name, number, after, tmp_path) for after in MOMENTS[name]}
    assert codes & (CODES[number] or {0})
