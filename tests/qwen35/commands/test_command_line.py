"""The `qwen35` command as a process: what it prints where, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from qwen35.commands import cli

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "demo"
PROMPT = "The capital of France is"


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "qwen35", *arguments],
        capture_output=True,
        timeout=300,
        **options,
    )


def test_standard_output_holds_the_continuation_and_one_newline():
    result = command("generate", "--model", str(DEMO), "--prompt", PROMPT, "--device", "cpu")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.startswith(b" Paris") and result.stdout.endswith(b"\n")
    assert not result.stdout.endswith(b"\n\n")
    assert b"time to first token" in result.stderr


def test_a_prompt_from_standard_input_as_json():
    result = command(
        "generate", "--model", str(DEMO), "--prompt", "-", "--json", "--device", "cpu",
        input=PROMPT.encode(),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode()
    parsed = json.loads(result.stdout)
    assert set(parsed) == {"model", "prompt", "text", "tokens", "finish_reason", "timings"}
    assert parsed["prompt"] == PROMPT and parsed["text"].startswith(" Paris")
    assert parsed["finish_reason"] == "stop"


def test_a_seed_repeats_a_sample_and_another_seed_does_not(capsys):
    def sample(seed: int) -> str:
        arguments = ["--model", str(DEMO), "--prompt", PROMPT, "--device", "cpu"]
        arguments += ["--temperature", "3", "--seed", str(seed), "--max-new-tokens", "12"]
        assert cli.main(["generate", *arguments]) == 0
        return capsys.readouterr().out

    assert sample(1) == sample(1) != sample(2)


def test_info_as_json():
    result = command("info", "27b", "--json")
    assert result.returncode == 0, result.stderr.decode()
    summary = json.loads(result.stdout)
    # 26.9 B parameters beside the vision tower, in bfloat16; 48 layers x 48 heads x 64 KiB and
    # their convolutions' windows; 16 layers x 4 heads x 256 x 2 x 2 bytes.
    total, vision = (summary["parameters"][part] for part in ("total", "vision"))
    assert total - vision == pytest.approx(26.9e9, rel=1e-3)
    assert summary["weight_bytes"] == pytest.approx(2 * total, rel=1e-3)
    assert summary["state_bytes_per_sequence"] == 48 * (48 * 65536 + 3 * 10240 * 2)
    assert summary["kv_bytes_per_token"] == 65536
    assert summary["layers"] == {"deltanet": 48, "attention": 16}


def test_bad_input_ends_with_code_2_and_no_traceback():
    result = command("info", "nowhere")
    assert result.returncode == 2
    assert result.stdout == b""
    assert b"Traceback" not in result.stderr and result.stderr


def test_interrupt_ends_with_code_130():
    arguments = ["--model", str(DEMO), "--device", "cpu", "--prompt", PROMPT]
    arguments += ["--temperature", "9", "--seed", "0", "--max-new-tokens", "900"]  # all 900
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen35", "generate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout.read(1)  # the first character: it is at work
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in errors and b"Traceback" not in errors


def test_alone_it_shows_its_help(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: qwen35") and "qwen35 chat --model DIR" in shown


@pytest.mark.parametrize(("name", "stored"), [("bf16", "bfloat16"), ("fp32", "float32")])
def test_dtypes_have_short_names(name, stored, capsys):
    assert cli.main(["info", "0.8b", "--json", "--dtype", name]) == 0
    short = capsys.readouterr().out
    assert cli.main(["info", "0.8b", "--json", "--dtype", stored]) == 0
    assert capsys.readouterr().out == short
    assert cli.main(["info", "0.8b", "--dtype", "float16"]) == 2
    assert "bfloat16" in capsys.readouterr().err


def test_bars_are_for_terminals_only():
    """A bar redraws its line: in a terminal one is there, in a pipe each stage of it would stay."""
    script = (
        "import sys, torch, qwen35\n"
        f"qwen35.load({str(DEMO)!r}, progress=True)\n"
        f"qwen35.score(qwen35.load({str(DEMO)!r}), [[5] * 9], progress=True)\n"
    )
    command = [sys.executable, "-c", script]
    piped = subprocess.run(command, capture_output=True, timeout=300)
    assert piped.returncode == 0 and b"load" not in piped.stderr and b"\r" not in piped.stderr
    main, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with os.fdopen(main, "rb", buffering=0) as screen:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal)
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's end of a terminal that nobody has open
            while part := screen.read(4096):
                shown += part
    assert process.wait(timeout=300) == 0 and b"load" in shown and b"score" in shown


def test_the_harness_own_command_line_without_its_extra(tmp_path):
    """The sentence of `qwen35 eval tasks`, no traceback."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['lm_eval'] = None\n")
    result = subprocess.run(
        [sys.executable, "-m", "qwen35.evaluation.harness", "run", "--model", "qwen35"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
    )
    assert result.returncode == 2 and not result.stdout
    assert result.stderr == (
        "qwen35: error: lm-eval is not installed: pip install 'qwen35[evals]'\n"
    )
