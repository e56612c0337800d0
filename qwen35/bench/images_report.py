"""What the measurements of images come to: rows of figures, tables and plots of them."""

from __future__ import annotations

from typing import Any

from ..reports.page import Plots
from ..reports.tables import gigabytes, markdown_table, milliseconds, times
from .processes import Runs
from .statistics import median, ratio, spread

_STEPS = {"cut": "processor", "tower": "tower", "ttft": "first token, end to end"}
# Sums of many products in another order: the norm of all of them agrees far better than each.
_SAME_NORM = 1e-3


def images(sides: list[int], ours: Runs, theirs: Runs) -> list[dict[str, Any]]:
    """A row for each size and step: what it takes, and `compile`, what its first call took longer.

    Raises:
        ValueError: the two did not compute the same: their figures can't be compared.
    """
    rows = []
    for side in sides:
        for step in _STEPS:
            values = [run[f"{step}_{side}"] for run in ours]
            row = {
                "side": side,
                "step": step,
                "ours": median(values),
                "spread": spread(values),
                "compile": median(run[f"first_{step}_{side}"] for run in ours),
                "reference": None,
                "ratio": None,
            }
            if theirs:
                row["reference"] = median(run[f"{step}_{side}"] for run in theirs)
                row["ratio"] = ratio(ours, theirs, f"{step}_{side}")
            rows.append(row)
        for run in theirs[:1]:
            norm, token = (f"{name}_{side}" for name in ("norm", "token"))
            if abs(ours[0][norm] - run[norm]) > _SAME_NORM * run[norm]:
                raise ValueError(
                    f"at {side} pixels the tower's output has the norm {ours[0][norm]}, "
                    f"transformers' {run[norm]}"
                )
            rows[-1]["same_token"] = ours[0][token] == run[token]
    return rows


def memory(ours: dict[str, int], theirs: Runs) -> dict[str, Any]:
    """Bytes that the tower adds for the largest picture: compiled, compiling, transformers'."""
    return {
        "ours": ours["memory"],
        "with_compilation": ours["memory_with_compilation"],
        "reference": theirs[0]["memory"] if theirs else None,
    }


def render(
    rows: list[dict[str, Any]], memory: dict[str, Any], ladder: dict[str, float], side: int
) -> str:
    """A Markdown section; `ladder` has the seconds to compile by padded patches, up to `side`."""
    head = ("picture", "step", "qwen35", "spread", "first call adds", "transformers", "ratio")
    cells = [
        (
            f"{row['side']} × {row['side']}",
            _STEPS[row["step"]],
            milliseconds(row["ours"]),
            f"{row['spread']:.0%}",
            milliseconds(row["compile"]),
            milliseconds(row["reference"]),
            times(row["ratio"]),
        )
        for row in rows
    ]
    seconds = list(ladder.values())
    steps = ", ".join(f"{length}: {value:.1f}" for length, value in ladder.items())
    return "\n".join(
        [
            "## Images",
            "",
            markdown_table(head, cells),
            "",
            f"The tower adds {gigabytes(memory['ours'])} at {side} × {side} pixels "
            f"({gigabytes(memory['with_compilation'])} while it compiles), transformers' "
            f"{gigabytes(memory['reference'])}: the most at a time, beside weights and patches.",
            "",
            f"Seconds to compile a step of the ladder, by padded patches: {steps}. "
            f"{len(seconds)} steps, {median(seconds):.1f} s at the median, {sum(seconds):.0f} s "
            "for all.",
        ]
    )


def plots(rows: list[dict[str, Any]]) -> Plots:
    """One for the tower and one for the first token."""
    return {
        f"picture to {name}": lambda axes, step=step: _bars(axes, rows, step)
        for step, name in (("tower", "vectors"), ("ttft", "first token"))
    }


def _bars(axes: Any, rows: list[dict], step: str) -> None:
    rows = [row for row in rows if row["step"] == step]
    places = range(len(rows))
    both = rows[0]["reference"] is not None
    width = 0.4 if both else 0.8
    axes.bar(places, [row["ours"] for row in rows], width, label="qwen35")
    if both:
        beside = [place + width for place in places]
        axes.bar(beside, [row["reference"] for row in rows], width, label="transformers")
    axes.set_xticks([place + (width / 2 if both else 0) for place in places],
                    labels=[f"{row['side']} px" for row in rows])  # fmt: skip
    axes.set(ylabel="seconds")
    axes.legend()
