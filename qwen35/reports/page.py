"""Reports of measurements: JSON for programs, a Markdown page with plots for people."""

from __future__ import annotations

import importlib.metadata
import io
import json
import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..files.aside import make_directory, switched
from ..version import __version__
from .provenance import provenance, render

# Draws onto matplotlib axes what a plot of this name is to show.
Plots = Mapping[str, Callable[[Any], None]]


def about(model: str, dtype: str, device: str, *packages: str) -> dict[str, Any]:
    """Returns what a result depends on besides its settings.

    Args:
        model: what to call it.
        dtype: of its weights.
        device: where it ran.
        packages: whose versions matter besides those of this one, torch and Python.
    """
    others = {name: importlib.metadata.version(name) for name in packages}
    return {
        "model": model,
        "dtype": dtype,
        "device": device,
        "versions": {
            "qwen35": __version__,
            "torch": torch.__version__,
            **others,
            "python": platform.python_version(),
        },
        "provenance": provenance(),
    }


def line_width(index: int, count: int) -> float:
    """Returns how wide to draw the index-th of so many curves, in this order: of equal ones each
    lies within the one before, and all show."""
    return 1.5 + 2.0 * (count - 1 - index)


def plain(value: Any) -> Any:
    """Returns a result as JSON can have it: with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(
    directory: str | Path, name: str, title: str, result: Mapping[str, Any], text: str, plots: Plots
) -> tuple[Path, bool]:
    """Writes NAME.json, NAME.md and a PNG for each plot, as one switch (`aside`).

    Args:
        directory: made if it is not there.
        name: of the files.
        title: the page's heading.
        result: plain values; its `model`, `dtype`, `device`, `versions` and `provenance` head the
            page.
        text: Markdown, the page's body.
        plots: by name; drawn if matplotlib can be imported. The page says so where it can't.

    Returns:
        the page's path, and whether it has its plots.
    """
    directory = Path(directory)
    make_directory(directory)
    content = json.dumps(plain(result), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    drawn = _draw(title, plots)
    lines = [f"# {title}", "", _heading(result), "", text, ""]
    if drawn is None:
        lines.append("No plots: they need matplotlib (`pip install 'qwen35[evals]'`).")
    files = {}
    for plot, picture in (drawn or {}).items():
        file = f"{name}-{plot.replace(' ', '-')}.png"
        files[file] = picture
        lines.append(f"![{plot}]({file})\n")
    files[f"{name}.json"] = content.encode("utf-8")
    files[f"{name}.md"] = ("\n".join(lines).rstrip() + "\n").encode("utf-8")
    with switched(directory, f"{name}.md") as new:
        for file, data in files.items():
            (new / file).write_bytes(data)
    return directory / f"{name}.md", drawn is not None


def _heading(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    what = f"`{result['model']}`, {result['dtype']}, {result['device']}; {versions}"
    return f"{what}\n\n{render(result['provenance'])}"


def _draw(title: str, plots: Plots) -> dict[str, bytes] | None:
    """Draws a PNG for each plot; None without matplotlib."""
    try:
        # Not pyplot: it keeps figures, and a choice of window system, for the whole process.
        from matplotlib.figure import Figure
    except ImportError:
        return None
    pictures = {}
    for plot, draw in plots.items():
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(f"{title}: {plot}", loc="left", fontsize="medium")
        axes.grid(alpha=0.3)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        pictures[plot] = picture.getvalue()
    return pictures
