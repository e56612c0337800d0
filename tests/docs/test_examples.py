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
PAGES = ("README.md", "docs/images.md", "docs/engine.md", "docs/evaluation.md")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The arguments of a page's `qwen35` commands."""
    lines = (line for block in blocks(page, "sh") for line in block.splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("qwen35 ")]


COMMANDS = [(page, line) for page in PAGES for line in commands(page)]


def run(arguments: list[str], **settings) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, **settings
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_readme():
    answer, first, second, written = run(["-c", *blocks("README.md", "python")]).splitlines()
    assert answer.startswith(" Paris")
    assert "cold" in first and first != second
    assert written.startswith("' cold")


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


@pytest.mark.parametrize(("page", "arguments"), COMMANDS)
def test_options_exist(page, arguments):
    cli._parser().parse_args(arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "arguments"),
    [(page, line) for page, line in COMMANDS if line[0] not in ("chat", "bench")],
)
def test_commands_run(page, arguments, tmp_path):
    """As printed, but for files that are the reader's own."""
    own = {"DIR": "demo_vision" if "--image" in arguments or "--video" in arguments else "demo"}
    own |= {"a.png": "demo_vision/circle.png", "b.jpg": "demo_vision/square.png"}
    own |= {"clip.mp4": clip(tmp_path), "report": str(tmp_path / "report")}
    assert run(["-m", "qwen35", *(own.get(argument, argument) for argument in arguments)])


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
