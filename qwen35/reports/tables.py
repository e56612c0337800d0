"""Markdown tables, and figures as people read them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)
) -> str:
    """Formats a Markdown table whose columns are as wide in the text as on the page.

    Args:
        head: the columns' names.
        rows: a cell for each column.
        left: the columns whose cells stand to the left, as words do; figures stand to the right.
    """
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(2, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = [
        "-" * width if number in left else "-" * (width - 1) + ":"
        for number, width in enumerate(widths)
    ]
    lines = [
        [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def milliseconds(seconds: float | None) -> str:
    """Formats seconds as "12.3 ms", or "-"."""
    return "-" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def times(ratio: float | None) -> str:
    """Formats a ratio as "1.23×", or "-"."""
    return "-" if ratio is None else f"{ratio:.2f}×"


def gigabytes(value: float | None) -> str:
    """Formats bytes as "1.23 GB", or "-"."""
    return "-" if value is None else f"{value / 1e9:.2f} GB"


def percent(share: float | None) -> str:
    """Formats a share as "12%", or "-"."""
    return "-" if share is None else f"{share:.0%}"
