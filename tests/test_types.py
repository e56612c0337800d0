"""The type checker sees the whole public surface. It runs by itself: `python -m mypy`."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_mypy_checks_every_module_that_public_names_come_from():
    tree = ast.parse((ROOT / "qwen35/public.py").read_text(encoding="utf-8"))
    exported = {
        f"qwen35/{node.module.replace('.', '/')}.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    checked = settings["tool"]["mypy"]["files"]
    assert set(checked) == exported | {"qwen35/__init__.py", "qwen35/public.py"}
    assert all((ROOT / file).is_file() for file in checked)
