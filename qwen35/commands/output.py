"""What commands with a report do at their end: write it, print the result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..reports.page import Plots


def make_output(options: argparse.Namespace) -> None:
    """Makes the directory of --output: that it can't be is found before the work, not after."""
    if options.output is not None:
        Path(options.output).mkdir(parents=True, exist_ok=True)


def write_output(
    options: argparse.Namespace,
    name: str,
    title: str,
    result: Mapping[str, Any],
    text: str,
    plots: Plots,
) -> None:
    """Writes the report, if asked for, and prints the result, whatever came of the report.

    Args:
        options: with `output` and `json`.
        name, title, result, text, plots: see `write_report`.
    """
    from ..reports.page import plain, write_report

    try:
        if options.output is not None:
            page, drawn = write_report(options.output, name, title, result, text, plots)
            missing = "" if drawn else " (without plots: matplotlib is not installed)"
            print(f"wrote {page} and {page.with_suffix('.json').name}{missing}", file=sys.stderr)
    finally:
        print(json.dumps(plain(result), ensure_ascii=False) if options.json else text)
