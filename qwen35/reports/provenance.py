"""Where figures come from: when, of which commit, by what command, on which processor."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


def provenance() -> dict[str, Any]:
    """Returns `date` (UTC), `commit` (None outside a clone), `command` and `processor`."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
        "commit": commit_of(_ROOT),
        "command": command_of(sys.argv),
        "processor": processor_name(),
    }


def render(found: dict[str, Any]) -> str:
    """Renders it as a line of Markdown."""
    commit = f", commit {found['commit']}" if found["commit"] else ""
    ticks = "``" if "`" in found["command"] else "`"
    return f"{found['date']}{commit}, {found['processor']}: {ticks}{found['command']}{ticks}"


def command_of(arguments: list[str]) -> str:
    """Returns the command of a process with these `sys.argv`, on one line, without the folders that
    programs are installed in."""
    program, *rest = arguments
    path = Path(program)
    if path.name == "__main__.py":
        words = ["python", "-m", path.parent.name]
    else:
        words = [path.name if path.is_absolute() else program]
    return " ".join(shlex.join([*words, *rest]).split("\n"))


def commit_of(folder: Path) -> str | None:
    """Returns the commit of a clone's files, and whether they were changed since; None elsewhere.

    A folder inside another project's clone is no clone.
    """
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short=10", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):  # without git, or without a commit
        return None
    return f"{commit}, changed since" if changed else commit


def processor_name() -> str:
    """Returns the processor's name, where Linux tells it."""
    facts = Path("/proc/cpuinfo")
    for line in facts.read_text().splitlines() if facts.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
