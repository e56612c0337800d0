"""Who may import whom: the packages stand on floors, and every import points down.

Imports inside functions and those for type checkers count too: they are knowledge as well. The
files are parsed, not imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the roof down. A package imports from lower floors only, and never from one beside it.
FLOORS = (
    ("qwen35", "__main__"),  # qwen35/__init__.py, and `python -m qwen35`
    ("public",),
    ("commands",),
    ("neuron",),
    ("bench",),
    ("evaluation",),
    ("graphs",),
    ("generation",),
    ("prompts", "reports"),
    ("files", "vision"),
    ("model",),
    ("forms",),
    ("kernels", "sharding"),
    ("xla", "checks", "ending", "version"),
)
# Of use without the rest: these import the packages named here and nothing else of qwen35.
LEAVES = {"kernels": {"xla"}, "sharding": {"xla"}, "xla": set(), "checks": set()} | {
    module: set() for module in ("ending", "version")
}

# (importing module, imported module): why. It only shrinks: one that no longer occurs fails.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def sources() -> dict[str, str]:
    """The text of every module by its name; a package's is that of its __init__.py."""
    found = {}
    for folder, name in (("qwen35", "qwen35"), *((leaf, f"qwen35.{leaf}") for leaf in
                                                 ("kernels", "sharding"))):  # fmt: skip
        top = ROOT / folder
        for file in sorted(top.rglob("*.py")):
            parts = file.relative_to(top).with_suffix("").parts
            if folder == "qwen35" and parts[0] in ("kernels", "sharding"):
                continue  # links to the folders at the top
            module = ".".join((name, *parts)).removesuffix(".__init__")
            found[module] = file.read_text(encoding="utf-8")
    return found


def base_of(name: str, node: ast.ImportFrom) -> str:
    """The module that an import in module `name` takes names from."""
    package = name if name in PACKAGES else name.rpartition(".")[0]
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join((*(above if node.level else ()), *filter(None, [node.module])))


def imports(modules: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(importing module, imported module) for every import of one of `modules`, wherever it is."""
    for name, text in modules.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = base_of(name, node)
                # `from .package import name`: the module of that name if there is one.
                full = [f"{base}.{alias.name}" for alias in node.names]
                targets = [target if target in modules else base for target in full]
            else:
                continue
            yield from ((name, target) for target in targets if target in modules)


PACKAGES = {name.rpartition(".")[0] for name in sources()} | {"qwen35"}
EDGES = list(imports(sources()))


def package_of(module: str) -> str:
    """qwen35.model.state → model; qwen35 → qwen35."""
    return module.split(".")[1] if "." in module else module


def upward(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Imports that point up, or to a package on the same floor."""
    level = {package: number for number, floor in enumerate(FLOORS) for package in floor}
    pairs = [(edge, *map(package_of, edge)) for edge in edges]
    return sorted({edge for edge, a, b in pairs if a != b and level[b] <= level[a]})


def beyond_leaves(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Imports of a leaf that it may not have."""
    pairs = [(edge, *map(package_of, edge)) for edge in edges]
    return sorted({e for e, a, b in pairs if a in LEAVES and b not in LEAVES[a] | {a}})


def circles(edges: list[tuple[str, str]]) -> list[list[str]]:
    """Modules that import each other, around any number of corners."""
    above: dict[str, set[str]] = {}
    for importing, imported in edges:
        above.setdefault(importing, set()).add(imported)
    reached: dict[str, set[str]] = {}
    for start in above:
        seen, todo = set(), list(above[start])
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += above.get(module, ())
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in seen if start in reached.get(other, ())))
        for start, seen in reached.items()
        if start in seen
    }
    return sorted(map(list, groups))


def test_every_package_has_a_floor():
    packages = {package_of(module) for module in sources()}
    assert packages == {package for floor in FLOORS for package in floor}


def test_the_architecture_page_lists_the_floors():
    """docs/architecture.md says what each folder does, from top to bottom."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", page, re.MULTILINE)
    floors = FLOORS[1:]
    assert sorted(listed) == sorted(package for floor in floors for package in floor)
    levels = [number for folder in listed for number, floor in enumerate(floors) if folder in floor]
    assert levels == sorted(levels)


def test_imports_point_down():
    assert [edge for edge in upward(EDGES) if edge not in EXCEPTIONS] == []


def test_leaves_import_xla_at_most():
    assert beyond_leaves(EDGES) == []


def test_nobody_inside_imports_names_of_the_root():
    """`from .. import forms` asks qwen35 for a name, which imports all public ones first."""
    root = [
        (name, ast.unparse(node))
        for name, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and base_of(name, node) == "qwen35"
    ]
    assert root == []


def test_no_module_imports_itself_around_corners():
    assert circles([edge for edge in EDGES if edge not in EXCEPTIONS]) == []


def test_no_exception_is_left_over():
    for edge in EXCEPTIONS:
        inside = any(set(edge) <= set(circle) for circle in circles(EDGES))
        assert edge in EDGES and (inside or edge in upward(EDGES)), f"remove the exception {edge}"


@pytest.mark.parametrize(
    ("where", "line", "target", "finder"),
    [
        ("model.state", "from ..generation.engine import Engine", "generation.engine", upward),
        ("files.checkpoint", "from ..vision import tower", "vision.tower", upward),
        ("xla.jit", "import qwen35.model.config", "model.config", upward),
        ("bench.text", "from .. import load", "", upward),
        ("kernels.portable", "from ..forms import plain", "forms.plain", upward),
        ("sharding.mesh", "from ..kernels import loop", "kernels.loop", beyond_leaves),
    ],
)
def test_a_planted_import_is_found(where, line, target, finder):
    """Wherever it stands: here in a function."""
    where, target = f"qwen35.{where}", f"qwen35.{target}".rstrip(".")
    modules = sources()
    modules[where] += f"\n\ndef planted():\n    {line}\n"
    edge = (where, target)
    assert edge in finder(list(imports(modules))) and edge not in finder(EDGES)


def test_a_planted_circle_is_found():
    """Of three modules of a package, one import of them for type checkers."""
    modules = {
        "qwen35.graphs": "",
        "qwen35.graphs.a": "from . import b",
        "qwen35.graphs.b": "def f():\n    from .c import g",
        "qwen35.graphs.c": "if TYPE_CHECKING:\n    from qwen35.graphs.a import h",
        "qwen35.graphs.d": "from . import a",
    }
    assert circles(list(imports(modules))) == [[f"qwen35.graphs.{name}" for name in "abc"]]
