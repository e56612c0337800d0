"""What the pages say about the repository is so: links lead somewhere, named files exist."""

from __future__ import annotations

import re
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
