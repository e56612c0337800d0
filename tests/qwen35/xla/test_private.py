"""The table of torch-xla's private names: complete, true, and the only way to them."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from qwen35.xla import private

ROOT = Path(__file__).parents[3]
PLACES = {name: place for place, names in private.TABLE.items() for name in names}

# What torch-xla documents, as imports of ours may name it.
PUBLIC = {
    "torch_xla",
    "torch_xla.runtime",
    "torch_xla.distributed.spmd",
    "torch_xla.distributed.xla_backend",
}


def sources():
    """Each module of the package, by its name below `qwen35`, as syntax tree."""
    for folder, prefix in (("qwen35", ""), ("kernels", "kernels."), ("sharding", "sharding.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT / folder)
            linked = folder == "qwen35" and relative.parts[0] in ("kernels", "sharding")
            if not linked and path != Path(private.__file__):
                yield prefix + ".".join(relative.with_suffix("").parts), ast.parse(path.read_text())


def private_uses(tree):
    """Yield all in a module that reaches past torch-xla's public names, as it is written there."""
    ours = {"torch_xla"}  # local names of torch-xla and of modules in it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                full = f"{module}.{alias.name}".strip(".")
                if full.partition(".")[0] == "torch_xla":
                    ours.add(alias.asname or alias.name)
                    if full not in PUBLIC and (module not in PUBLIC or alias.name[0] == "_"):
                        yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr[0] == "_" and node.attr[1] != "_":
            root = node.value
            while isinstance(root, ast.Attribute | ast.Call):
                root = root.value if isinstance(root, ast.Attribute) else root.func
            if isinstance(root, ast.Name) and root.id in ours | {"xla"}:
                yield ast.unparse(node)
        if isinstance(node, ast.Constant) and node.value in PLACES | {"_XLAC": ""}:
            yield repr(node.value)


@pytest.mark.parametrize("name", PLACES)
def test_the_installed_torch_xla_has_every_name(name):
    assert callable(getattr(private, name))


def test_a_name_outside_the_table_is_refused():
    with pytest.raises(AttributeError, match="_xla_custom_call is not in the table"):
        private._xla_custom_call  # noqa: B018  torch-xla has it


def test_a_name_that_torch_xla_has_lost_is_named_with_its_purpose(monkeypatch):
    monkeypatch.setitem(private.TABLE["torch_xla._XLAC"], "_gone", ("fetch the moon", "xla.jit"))
    with pytest.raises(AttributeError, match=r"torch-xla 2.* no torch_xla._XLAC._gone.*the moon"):
        private._gone  # noqa: B018


def test_every_name_is_used_by_the_modules_that_the_table_says():
    users = defaultdict(set)
    for module, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "private":
                    users[node.attr].add(module)
    said = {
        name: set(entry[1:]) for names in private.TABLE.values() for name, entry in names.items()
    }
    assert users == said


def test_no_other_module_reaches_a_private_name():
    found = {module: uses for module, tree in sources() if (uses := list(private_uses(tree)))}
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "import torch_xla\ntorch_xla._XLAC._run_cached_graph",
        "import torch_xla as t\nt._XLAC",
        "xla()._XLAC",
        "from torch_xla import _XLAC",
        "from torch_xla import runtime as r\nr._worker()",
        "from torch_xla.runtime import _hidden",
        "import torch_xla.core.xla_model",
        "from torch_xla.core import xla_builder",
        "from torch_xla.experimental.scan import scan",
        "import _XLAC_of_another\ngetattr(xla(), '_XLAC')",
        "getattr(core, '_run_cached_graph')",
    ],
)
def test_a_way_around_the_table_is_noticed(code):
    assert list(private_uses(ast.parse(code)))


def test_public_names_of_torch_xla_pass():
    code = (
        "import torch_xla.runtime\nfrom torch_xla.distributed import spmd\nimport torch_xla\n"
        "torch_xla.runtime.is_spmd()\nxla().device()\nself._held.x\nspmd.Mesh\ntorch_xla.__version__"
    )
    assert not list(private_uses(ast.parse(code)))


def test_torch_xla_is_not_imported_before_a_name_is_used():
    code = (
        "import sys; sys.modules['torch_xla'] = None\n"  # importing it is an ImportError from here
        "from qwen35.xla import private\n"
        "from qwen35.kernels import binding, emulator, host, neuron\n"
        "from qwen35.sharding import collectives, spmd\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
