"""Packages that only some of the work needs, and extras of this one bring."""

from __future__ import annotations

import importlib.util
import sys


def check_installed(module: str, name: str, extra: str) -> None:
    """Checks that a module can be imported.

    Args:
        module: its name.
        name: what to call its package.
        extra: the one of this package that brings it.

    Raises:
        ValueError: it can't.
    """
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{name} is not installed: pip install 'qwen35[{extra}]'")


def exit_unless_installed(module: str, name: str, extra: str) -> None:
    """Ends the process as the command line ends at bad input, where `check_installed` raises."""
    try:
        check_installed(module, name, extra)
    except ValueError as error:
        print(f"qwen35: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
