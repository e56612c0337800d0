#!/usr/bin/env python
"""Runs notebooks/quickstart.ipynb in a fresh kernel and writes its outputs into it.

  scripts/run_notebook.py                  # needs pip install '.[notebook]'
  scripts/run_notebook.py --check          # writes nothing: do the outputs come out as they stand?

The file is written aside and renamed, and only if no cell fails. Text must come out as it stands in
the file, but for cells tagged "timing"; pictures are not compared.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from qwen35.files import aside

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "quickstart.ipynb"
TIMEOUT = 300  # seconds for a cell


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("notebook", nargs="?", type=Path, default=NOTEBOOK)
    options = parser.parse_args()
    try:
        old = nbformat.read(options.notebook, as_version=4)
        new = execute(old, options.notebook.parent)
    except CellExecutionError as error:
        print(f"run_notebook: {options.notebook}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"run_notebook: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrun_notebook: interrupted", file=sys.stderr)
        return 130
    if not options.check:
        aside.write(options.notebook, f"{nbformat.writes(new)}\n".encode())
        print(options.notebook)
        return 0
    found = differences(old, new)
    print("\n".join(found) or "every output came out as it stands in the file")
    return 1 if found else 0


def execute(notebook: nbformat.NotebookNode, directory: Path) -> nbformat.NotebookNode:
    """A copy with the outputs of a run from top to bottom, and nothing of when and where it ran.

    Raises:
        CellExecutionError: a cell raised.
    """
    new = nbformat.from_dict(notebook)
    for cell in new.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        new,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # else a cell's text is in as many outputs as the kernel sent it in
        resources={"metadata": {"path": str(directory)}},
    )
    # tqdm would like widgets, whose bars a file can't show, and warns where they are missing.
    client.execute(env=os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"})
    new.metadata.language_info = {"name": "python"}
    return new


def differences(old: nbformat.NotebookNode, new: nbformat.NotebookNode) -> list[str]:
    """Where the text that cells put out differs, as lines of a diff; timings may."""
    lines: list[str] = []
    for before, after in zip(old.cells, new.cells, strict=True):
        if before.cell_type == "code" and "timing" not in before.metadata.get("tags", ()):
            names = (f"cell {before.id}, as it stands", f"cell {before.id}, as it came out")
            texts = (text_of(before).splitlines(), text_of(after).splitlines())
            lines += difflib.unified_diff(*texts, *names, lineterm="")
    return lines


def text_of(cell: nbformat.NotebookNode) -> str:
    """Everything that a cell has put out as text."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "error":
            parts.append(f"{output.ename}: {output.evalue}")
        elif output.output_type == "stream":
            parts.append(output.text)
        else:
            parts.append(output.data.get("text/plain", ""))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
