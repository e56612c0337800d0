"""Markdown tables, and figures as people read them."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns of equal width, everything but the first to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        return "| " + " | ".join(padded) + " |"

    rule = [("-" * widths[0]), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(head), "| " + " | ".join(rule) + " |", *map(line, rows)])


def milliseconds(seconds: float | None) -> str:
    """Seconds as "12.3 ms", or "-"."""
    return "-" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def times(ratio: float | None) -> str:
    """A ratio as "1.23×", or "-"."""
    return "-" if ratio is None else f"{ratio:.2f}×"


def gigabytes(value: float | None) -> str:
    """Bytes as "1.23 GB", or "-"."""
    return "-" if value is None else f"{value / 1e9:.2f} GB"
