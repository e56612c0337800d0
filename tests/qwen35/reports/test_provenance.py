"""Where figures come from, held to git, the clock and a process's own arguments."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwen35.reports import provenance

ROOT = Path(__file__).resolve().parents[3]
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]


def git(folder, *words):
    command = [*GIT, "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_clone_names_its_commit_and_that_files_changed_since(tmp_path):
    assert provenance.commit_of(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert provenance.commit_of(tmp_path) is None  # there is none yet
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    found = provenance.commit_of(tmp_path)
    assert len(found) >= 10 and commit.startswith(found)
    (tmp_path / "other").write_text("not the project's")
    assert provenance.commit_of(tmp_path) == found
    (tmp_path / "file").write_text("two")
    assert provenance.commit_of(tmp_path) == f"{found}, changed since"
    (tmp_path / "inside").mkdir()
    assert provenance.commit_of(tmp_path / "inside") is None  # of another project


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["/a/venv/bin/qwen35", "info", "27b"], "qwen35 info 27b"),
        (["/a/clone/qwen35/__main__.py", "bench"], "python -m qwen35 bench"),
        (["scripts/flagship.py", "DIR"], "scripts/flagship.py DIR"),
        (["qwen35", "eval", "two words", "a\nb"], "qwen35 eval 'two words' 'a b'"),
    ],
)
def test_the_command_is_what_was_typed(arguments, shown):
    assert provenance.command_of(arguments) == shown


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells the processor there")
def test_a_report_says_when_from_what_and_how_it_was_made(tmp_path):
    command = ["eval", "perplexity", "--model", "demo", "--text", "evals/story.txt"]
    command += ["--device", "cpu", "--output", str(tmp_path)]
    before = datetime.datetime.now(datetime.UTC).replace(second=0, microsecond=0)
    subprocess.run([sys.executable, "-m", "qwen35", *command], cwd=ROOT, check=True)
    after = datetime.datetime.now(datetime.UTC)
    found = json.loads((tmp_path / "perplexity.json").read_text())["provenance"]
    date = datetime.datetime.strptime(found["date"], "%Y-%m-%d %H:%M UTC")
    assert before <= date.replace(tzinfo=datetime.UTC) <= after
    assert found["command"] == f"python -m qwen35 {' '.join(command)}"
    [name] = set(re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M))
    assert found["processor"] == name.strip()
    if (ROOT / ".git").exists():
        assert git(ROOT, "rev-parse", "HEAD").startswith(found["commit"].partition(",")[0])
    page = (tmp_path / "perplexity.md").read_text()
    assert provenance.render(found) in page.splitlines()
