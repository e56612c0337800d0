"""What the pages say about the repository is so: links lead somewhere, named files exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "kernels", "sharding", "demo", "demo_vision")
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))]
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    """A path in backticks that begins with a folder's name, from the root or beside the page."""
    bases = (ROOT, ROOT / "qwen35", (ROOT / page).parent)
    for span in re.findall(r"`([^`\n]+)`", text_of(page)):
        path = re.match(r"([\w.-]+)/[\w./*-]*(?=$|\s)", span)
        if path and any((base / path[1]).is_dir() for base in bases):
            assert any(any(base.glob(path[0].rstrip("/"))) for base in bases), span


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_exist(page):
    for path, name in re.findall(r"`(tests/[\w./]+\.py)::(\w+)", text_of(page)):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), (path, name)


def test_every_decision_is_listed():
    pages = {path.name for path in (ROOT / "docs" / "decisions").glob("*.md")} - {"README.md"}
    listed = re.findall(r"^\| \[([\w-]+\.md)\]", text_of("docs/decisions/README.md"), re.MULTILINE)
    assert sorted(listed) == sorted(pages)


def table_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the tables in a page's section, without their headings' rows."""
    section = re.split(r"^## ", text_of(page), flags=re.MULTILINE)
    [section] = [part for part in section if part.startswith(heading + "\n")]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("|")]
    breaks = [number for number, row in enumerate(rows) if set("".join(row)) <= set("- ")]
    return [
        [cell.strip().strip("`") for cell in row]
        for number, row in enumerate(rows)
        if number not in breaks and number + 1 not in breaks
    ]


def test_the_evenings_read():
    """From configuration to logits in at most 1,500 lines, and no module of model/ unmentioned."""
    rows = table_of("docs/architecture.md", "The evening's read")
    read = {row[1]: int(row[2]) for row in rows if row[0].isdigit()}
    later = [row[0] for row in rows if not row[0].isdigit()]
    modules = (ROOT / "qwen35" / "model").glob("[!_]*.py")
    assert sorted([*read, *later]) == sorted(str(path.relative_to(ROOT)) for path in modules)
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in read}
    assert sum(lines.values()) <= 1500
    wrong = {p: n for p, n in lines.items() if abs(n - read[p]) > max(10, n / 10)}
    assert not wrong, f"the page gives other numbers of lines than {wrong}"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
def test_the_layout_names_every_folder():
    """README's table has each folder of the repository, and each package of qwen35, once."""
    cells = [cell for cell, _ in table_of("README.md", "Layout")]
    named = [path for cell in cells for path in re.findall(r"[\w/]+(?=/)", cell)]
    there = {file.partition("/")[0] for file in tracked() if "/" in file and file[0] != "."}
    packages = (ROOT / "qwen35").glob("*/__init__.py")
    there |= {f"qwen35/{path.parent.name}" for path in packages}
    assert sorted(named) == sorted(there - {"qwen35", "qwen35/kernels", "qwen35/sharding"})


def tracked() -> list[str]:
    """The repository's files."""
    command = ["git", "-C", str(ROOT), "ls-files"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
