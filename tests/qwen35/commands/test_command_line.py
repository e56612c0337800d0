"""The `qwen35` command as a process: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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
