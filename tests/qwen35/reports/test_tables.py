"""Markdown tables, read by a Markdown parser."""

from __future__ import annotations

import re

import pytest

from qwen35.reports.tables import gigabytes, markdown_table, milliseconds, times

markdown_it = pytest.importorskip("markdown_it")


def parsed(text: str) -> list[list[tuple[str, str]]]:
    """For each row its cells: what they show, and where they stand."""
    rows: list[list[tuple[str, str]]] = []
    where = ""
    for token in markdown_it.MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            where = (token.attrs.get("style") or "text-align:left").partition(":")[2]
        elif token.type == "inline":
            rows[-1].append((token.content, where))
    return rows


def test_a_parser_finds_the_cells_and_their_sides():
    head = ("file", "bytes", "what")
    rows = [("a|b.txt", "12", "plain"), ("ü", "1,234,567", "")]
    text = markdown_table(head, rows, left=(0, 2))
    sides = ("left", "right", "left")
    assert parsed(text) == [list(zip(row, sides, strict=True)) for row in (head, *rows)]
    # In a terminal the columns stand under each other.
    assert len({len(line) for line in text.splitlines()}) == 1
    bars = [[found.start() for found in re.finditer(r"(?<!\\)\|", line)] for line in
            text.splitlines()]  # fmt: skip
    assert all(line == bars[0] for line in bars)


def test_a_table_may_have_no_rows_and_short_names():
    assert parsed(markdown_table(("a", "b"), [])) == [[("a", "left"), ("b", "right")]]


def test_figures_as_people_read_them():
    assert (milliseconds(0.0123), milliseconds(1.5), milliseconds(None)) == (
        "12.3 ms", "1,500.0 ms", "-",
    )  # fmt: skip
    assert (times(1.234), times(None)) == ("1.23×", "-")
    assert (gigabytes(1.5e9), gigabytes(None)) == ("1.50 GB", "-")
