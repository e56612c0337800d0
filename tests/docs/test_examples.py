"""The pages' examples run as printed, from the repository's root."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from qwen35.commands import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "sharding/README.md", *(f"docs/{name}.md" for name in (
    "batch", "checkpoints", "engine", "evaluation", "images"
)))  # fmt: skip


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str, launcher: str = "") -> list[list[str]]:
    """The arguments of a page's `qwen35` commands that are started so, a regular expression."""
    lines = (line for block in blocks(page, "sh") for line in block.splitlines())
    found = (re.match(rf"{launcher}qwen35 (.*)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


COMMANDS = [(page, line) for page in PAGES for line in commands(page)]
LAUNCHED = [(page, line) for page in PAGES for line in commands(page, "torchrun .*-m ")]


def run(arguments: list[str], **settings) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, **settings
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_readme():
    lines = run(["-c", *blocks("README.md", "python")]).splitlines()
    answer, first, second, written, *scored = lines
    assert answer.startswith(" Paris")
    assert "cold" in first and first != second
    assert written.startswith("' cold")
    likelihoods = {line.split()[0]: float(line.split()[1]) for line in scored}
    assert likelihoods["Rome"] > -1 > likelihoods["Oslo"]


def test_images():
    shapes, shape = run(["-c", "".join(blocks("docs/images.md", "python"))]).splitlines()
    assert "triangle" in shapes and "circle" in shape


def test_engine():
    text = run(["-c", "".join(blocks("docs/engine.md", "python"))])
    assert " Rome" in text and "named Ruby" in text
    *_, rate, answer = text.splitlines()
    [said] = re.findall(r"# of all prompt tokens: (\S+)", blocks("docs/engine.md", "python")[0])
    assert rate == said and "Tokyo" in answer


def test_evaluation():
    right, wrong = run(["-c", *blocks("docs/evaluation.md", "python")]).splitlines()
    assert float(right.split()[1]) > -0.1 and float(wrong.split()[1]) < -5


@pytest.mark.parametrize(("page", "arguments"), [*COMMANDS, *LAUNCHED])
def test_options_exist(page, arguments):
    cli._parser().parse_args(arguments)


# A published model, what has never been loaded here, an adapter, minutes of measuring.
NOT_HERE = {"Qwen/Qwen3.5-0.8B", "neuron", "LORA", "bench"}
HERE = [(page, line) for page, line in COMMANDS if not NOT_HERE & set(line)]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "arguments"), HERE)
def test_commands_run(page, arguments, tmp_path):
    """As printed, but for files that are the reader's own."""
    (tmp_path / "in.jsonl").write_text('"The capital of France is"\n')
    (tmp_path / "city.json").write_text('{"enum": ["Paris", "Rome"]}')
    own = {"DIR": "demo_vision" if "--image" in arguments or "--video" in arguments else "demo"}
    own |= {name: str(tmp_path / name) for name in ("in.jsonl", "out.jsonl", "city.json", "OUT")}
    own |= {"a.png": "demo_vision/circle.png", "b.jpg": "demo_vision/square.png"}
    own |= {"clip.mp4": clip(tmp_path), "report": str(tmp_path / "report")}
    own |= {"TASK": "evals/demo_facts.yaml"}
    asked = "What is the capital of Japan?\n" if arguments[0] == "chat" else ""
    words = [own.get(word, word) for word in arguments]
    if "demo" in words and "--tp" in words:
        words[words.index("--tp") + 1] = "2"  # of as many key heads
    shown = run(["-m", "qwen35", *words], input=asked)
    assert shown or (tmp_path / "OUT").exists() or (tmp_path / "out.jsonl").read_text()


def clip(directory: Path) -> str:
    """A short video."""
    path = directory / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for _ in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((128, 128, 3), 200, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)
