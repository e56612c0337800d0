"""Reports of evaluations: JSON for programs, Markdown with plots for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

# Draws onto matplotlib axes what a plot of this name is to show.
Plots = Mapping[str, Callable[[Any], None]]


def about(model: str, params: Any) -> dict[str, Any]:
    """What a result depends on besides its settings."""
    from . import __version__

    return {
        "model": model,
        "dtype": str(params.dtype).removeprefix("torch."),
        "device": params.device.type,
        "versions": {
            "qwen35": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def write_report(
    directory: str | Path, name: str, title: str, result: Mapping[str, Any], text: str, plots: Plots
) -> tuple[Path, bool]:
    """Writes NAME.json, NAME.md and a PNG for each plot, each aside and renamed.

    Args:
        directory: made if it is not there.
        name: of the files.
        title: the page's heading.
        result: plain values; its `model`, `dtype`, `device` and `versions` head the page.
        text: Markdown, the page's body.
        plots: by name; drawn if matplotlib can be imported. The page says so where it can't.

    Returns:
        the page's path, and whether it has its plots.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    content = json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    _write(directory / f"{name}.json", content.encode("utf-8"))
    drawn = _draw(directory, name, plots)
    lines = [f"# {title}", "", _heading(result), "", text, ""]
    if drawn is None:
        lines.append("No plots: they need matplotlib (`pip install 'qwen35[evals]'`).")
    else:
        lines += [f"![{plot}]({file})\n" for plot, file in drawn.items()]
    page = directory / f"{name}.md"
    _write(page, ("\n".join(lines).rstrip() + "\n").encode("utf-8"))
    return page, drawn is not None


def _heading(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{result['model']}`, {result['dtype']}, {result['device']}; {versions}"


def _draw(directory: Path, name: str, plots: Plots) -> dict[str, str] | None:
    try:
        # Not pyplot: it keeps figures, and a choice of window system, for the whole process.
        from matplotlib.figure import Figure
    except ImportError:
        return None
    files = {}
    for plot, draw in plots.items():
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(alpha=0.3)
        files[plot] = f"{name}-{plot.replace(' ', '-')}.png"
        target = directory / files[plot]
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            figure.savefig(aside, format="png", dpi=120)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    return files


def _write(target: Path, content: bytes) -> None:
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
