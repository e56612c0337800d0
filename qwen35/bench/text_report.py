"""What the measurements of text come to: rows of figures, tables and plots of them."""

from __future__ import annotations

from typing import Any

from ..reports.page import Plots
from ..reports.tables import markdown_table, milliseconds, times
from .processes import Runs
from .statistics import median, ratio, spread
from .text import decode_name


def ttft(lengths: list[int], ours: Runs, theirs: Runs) -> list[dict[str, Any]]:
    """A row for each length of prompt."""
    return [{"prompt": n} | _compared(f"prefill_{n}", ours, theirs) for n in lengths]


def tpot(contexts: list[list[int]], ours: Runs, theirs: Runs) -> list[dict[str, Any]]:
    """A row for each pair of context and batch.

    `read_share` is what a step reads of weights, keys and values, over its time, as a share of the
    rate at which the machine read memory just before it; `over_first`, the time over the first
    row's.
    """
    rows = []
    for context, batch in contexts:
        name = decode_name(context, batch)
        row = {"context": context, "batch": batch} | _compared(f"decode_{name}", ours, theirs)
        rows.append(
            row
            | {
                "host": median(run[f"host_{name}"] for run in ours),
                "tokens_per_second": batch / row["ours"],
                "read_share": median(run[f"read_share_{name}"] for run in ours),
                "over_first": row["ours"] / (rows or [row])[0]["ours"],
            }
        )
    return rows


def _compared(key: str, ours: Runs, theirs: Runs) -> dict[str, Any]:
    values = [run[key] for run in ours]
    row = {"ours": median(values), "spread": spread(values), "reference": None, "ratio": None}
    if theirs:
        row["reference"] = median(run[key] for run in theirs)
        row["ratio"] = ratio(ours, theirs, key)
    return row


def render_ttft(rows: list[dict[str, Any]]) -> str:
    """A Markdown section."""
    head = ("prompt", "qwen35", "spread", "transformers", "ratio")
    cells = [
        (
            f"{row['prompt']:,}",
            milliseconds(row["ours"]),
            f"{row['spread']:.0%}",
            milliseconds(row["reference"]),
            times(row["ratio"]),
        )
        for row in rows
    ]
    return "\n".join(["## Time to first token", "", markdown_table(head, cells)])


def render_tpot(rows: list[dict[str, Any]]) -> str:
    """A Markdown section."""
    head = ("context", "batch", "qwen35", "spread", "host", "tokens/s", "of read bandwidth",
            "× first row", "transformers", "ratio")  # fmt: skip
    cells = [
        (
            f"{row['context']:,}",
            f"{row['batch']}",
            milliseconds(row["ours"]),
            f"{row['spread']:.0%}",
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


def plots(parts: dict[str, Any]) -> Plots:
    """Those of the parts that were measured."""
    drawn: dict[str, Any] = {}
    if parts.get("ttft"):
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
    for name, field in (("qwen35", "ours"), ("transformers", "reference")):
        if rows[0][field] is not None:
            axes.plot(at, [scale * row[field] for row in rows], "o-", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, labels=[f"{value:,}" for value in at])
    axes.set_ylim(bottom=0)
    axes.legend()
