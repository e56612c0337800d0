"""What the measurements of images come to: rows of figures, tables and plots of them."""

from __future__ import annotations

import itertools
from typing import Any

from ..reports.page import Plots
from ..reports.tables import gigabytes, markdown_table, milliseconds, percent, times
from .images import PicturesRun, TowerMemory
from .statistics import compared, median

_STEPS = {"processor": "processor", "tower": "tower", "ttft": "first token, end to end"}
# Sums of many products in another order: the norm of all of them agrees far better than each.
_SAME_NORM = 1e-3


def images(ours: list[PicturesRun], theirs: list[PicturesRun]) -> list[dict[str, Any]]:
    """Returns a row for each size and step: what it takes, and `compile`, what its first call took
    longer.

    Args:
        ours: the records of all rounds.
        theirs: transformers', or none.

    Raises:
        ValueError: the two did not compute the same: their figures can't be compared.
    """
    rows = []
    both = [zip(*(run.pictures for run in runs), strict=True) for runs in (ours, theirs)]
    for mine, other in itertools.zip_longest(*both, fillvalue=()):
        for step in _STEPS:
            times, reference = ([getattr(one, step) for one in side] for side in (mine, other))
            row = {"side": mine[0].side, "step": step}
            row |= compared([t.seconds for t in times], [t.seconds for t in reference])
            rows.append(row | {"compile": median(t.first_adds for t in times)})
        for one in other[:1]:
            if abs(mine[0].norm - one.norm) > _SAME_NORM * one.norm:
                raise ValueError(
                    f"at {one.side} pixels the tower's output has the norm {mine[0].norm}, "
                    f"transformers' {one.norm}"
                )
            rows[-1]["same_token"] = mine[0].token == one.token
    return rows


def memory(ours: TowerMemory, theirs: list[TowerMemory]) -> dict[str, Any]:
    """Returns bytes that the tower adds for the largest picture: compiled, compiling,
    transformers'."""
    return {
        "ours": ours.added,
        "with_compilation": ours.with_compilation,
        "reference": theirs[0].added if theirs else None,
    }


def render(
    rows: list[dict[str, Any]],
    memory: dict[str, Any] | None,
    compilation: list[dict[str, Any]] | None,
    side: int,
) -> str:
    """Renders a Markdown section; `side` is the picture's of `memory` and `compilation`, which are
    None of ranks."""
    head = ("picture", "step", "qwen35", "spread", "first call adds", "transformers", "ratio")
    cells = [
        (
            f"{row['side']} × {row['side']}",
            _STEPS[row["step"]],
            milliseconds(row["ours"]),
            percent(row["spread"]),
            milliseconds(row["compile"]),
            milliseconds(row["reference"]),
            times(row["ratio"]),
        )
        for row in rows
    ]
    section = ["## Images", "", markdown_table(head, cells)]
    if memory is None or compilation is None:
        return "\n".join(section)
    seconds = [size["seconds"] for size in compilation]
    sizes = ", ".join(f"{size['patches']}: {size['seconds']:.1f}" for size in compilation)
    return "\n".join(
        [
            *section,
            "",
            f"The tower adds {gigabytes(memory['ours'])} at {side} × {side} pixels "
            f"({gigabytes(memory['with_compilation'])} while it compiles), transformers' "
            f"{gigabytes(memory['reference'])}: the most at a time, beside weights and patches.",
            "",
            f"Seconds to compile the tower, by patches of a frame, padding included: {sizes}. "
            f"{len(seconds)} sizes, {median(seconds):.1f} s at the median, {sum(seconds):.0f} s "
            "for all.",
        ]
    )


def plots(rows: list[dict[str, Any]]) -> Plots:
    """Returns a plot of the tower and one of the first token, by the pictures' size."""
    if len({row["side"] for row in rows}) < 2:
        return {}
    return {
        f"picture to {name}": lambda axes, step=step: _bars(axes, rows, step)
        for step, name in (("tower", "vectors"), ("ttft", "first token"))
    }


def _bars(axes: Any, rows: list[dict], step: str) -> None:
    rows = [row for row in rows if row["step"] == step]
    positions = range(len(rows))
    both = rows[0]["reference"] is not None
    width = 0.4 if both else 0.8
    axes.bar(positions, [row["ours"] for row in rows], width, label="qwen35")
    if both:
        beside = [position + width for position in positions]
        axes.bar(beside, [row["reference"] for row in rows], width, label="transformers")
    axes.set_xticks([position + (width / 2 if both else 0) for position in positions],
                    labels=[f"{row['side']} px" for row in rows])  # fmt: skip
    axes.set(ylabel="seconds")
    axes.legend()
