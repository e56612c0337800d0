"""What the measurements of text come to: rows of figures, tables and plots of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ..reports.page import Plots, line_width
from ..reports.tables import markdown_table, milliseconds, percent, times
from .statistics import compared, median
from .text import TextRun


def ttft(ours: list[TextRun], theirs: list[TextRun]) -> list[dict[str, Any]]:
    """Returns a row for each length of prompt.

    Args:
        ours: the records of all rounds.
        theirs: transformers', or none.
    """
    rows = []
    for mine, other in _side_by_side("prefill", ours, theirs):
        rows.append({"prompt": mine[0].tokens} | _compared(mine, other))
    return rows


def tpot(ours: list[TextRun], theirs: list[TextRun]) -> list[dict[str, Any]]:
    """Returns a row for each pair of context and batch.

    `read_share` is what a step reads of weights, keys and values, over its time, as a share of the
    rate at which the machine read memory just before it; `over_first`, the time over the first
    row's.
    """
    rows: list[dict[str, Any]] = []
    for mine, other in _side_by_side("decode", ours, theirs):
        row = {"context": mine[0].context, "batch": mine[0].batch} | _compared(mine, other)
        rows.append(
            row
            | {
                "host": median(one.host for one in mine),
                "tokens_per_second": row["batch"] / row["ours"],
                "read_share": median(one.read_share for one in mine),
                "over_first": row["ours"] / (rows or [row])[0]["ours"],
            }
        )
    return rows


def _side_by_side(
    step: str, ours: list[TextRun], theirs: list[TextRun]
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Yields for each thing that was timed its records of all rounds, ours and theirs."""
    both = [zip(*(getattr(run, step) for run in runs), strict=True) for runs in (ours, theirs)]
    return itertools.zip_longest(*both, fillvalue=())


def _compared(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    return compared([one.seconds for one in ours], [one.seconds for one in theirs])


def render_ttft(rows: list[dict[str, Any]]) -> str:
    """Renders a Markdown section."""
    head = ("prompt", "qwen35", "spread", "transformers", "ratio")
    cells = [
        (
            f"{row['prompt']:,}",
            milliseconds(row["ours"]),
            percent(row["spread"]),
            milliseconds(row["reference"]),
            times(row["ratio"]),
        )
        for row in rows
    ]
    return "\n".join(["## Time to first token", "", markdown_table(head, cells)])


def render_tpot(rows: list[dict[str, Any]]) -> str:
    """Renders a Markdown section."""
    head = ("context", "batch", "qwen35", "spread", "host", "tokens/s", "of read bandwidth",
            "× first row", "transformers", "ratio")  # fmt: skip
    cells = [
        (
            f"{row['context']:,}",
            f"{row['batch']}",
            milliseconds(row["ours"]),
            percent(row["spread"]),
            milliseconds(row["host"]),
            f"{row['tokens_per_second']:.1f}",
            f"{row['read_share']:.0%}",
            f"{row['over_first']:.2f}",
            milliseconds(row["reference"]),
            times(row["ratio"]),
        )
        for row in rows
    ]
    return "\n".join(["## Time per output token", "", markdown_table(head, cells)])


def render_compilation(rows: list[dict[str, Any]]) -> str:
    """Renders a Markdown section."""
    head = ("layers", "compile prefill", "compile decode", "call of a decode step")
    cells = [
        (
            f"{row['layers']}",
            f"{row['compile_prefill']:.1f} s",
            f"{row['compile_decode']:.1f} s",
            milliseconds(row["host"]),
        )
        for row in rows
    ]
    return "\n".join(["## Compilation of narrow layers", "", markdown_table(head, cells)])


def plots(parts: dict[str, Any]) -> Plots:
    """Returns plots of what was measured at more than one point."""
    drawn: dict[str, Any] = {}
    if len(parts.get("ttft") or []) > 1:
        drawn["time to first token"] = lambda axes: _lines(
            axes, parts["ttft"], "prompt", "tokens of the prompt", "s to the first token", 1
        )
    rows = parts.get("tpot") or []
    by_context = [row for row in rows if row["batch"] == 1]
    by_batch = [row for row in rows if row["context"] == rows[0]["context"]]
    if len(by_context) > 1:
        drawn["time per token by context"] = lambda axes: _lines(
            axes, by_context, "context", "tokens of context", "ms per token", 1e3
        )
    if len(by_batch) > 1:
        drawn["time per step by batch"] = lambda axes: _lines(
            axes, by_batch, "batch", "rows", "ms per step", 1e3
        )
    return drawn


def _lines(axes: Any, rows: list[dict], key: str, xlabel: str, ylabel: str, scale: float) -> None:
    at = [row[key] for row in rows]
    for number, (name, field) in enumerate((("qwen35", "ours"), ("transformers", "reference"))):
        if rows[0][field] is not None:
            values = [scale * row[field] for row in rows]
            axes.plot(at, values, "o-", label=name, linewidth=line_width(number, 2))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, labels=[f"{value:,}" for value in at])
    axes.set_ylim(bottom=0)
    axes.legend()
