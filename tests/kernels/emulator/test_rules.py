"""Every rule of the table has kernels that pass it and kernels that break exactly it.

The kernels are in `rules/`, one file per rule (`rule_name.py`, or `rule_name__variant.py`).
Functions whose name starts with "accept" must run; those that start with "reject" must fail with
that rule. A suffix chooses the version (`_v0_3`) or two cores (`_lnc2`).
"""

import ast
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from qwen35.kernels import emulator
from qwen35.kernels.emulator import rules as rule_table
from qwen35.kernels.emulator.rules import RULES

FILES = sorted((Path(__file__).parent / "rules").glob("*.py"))


def rule_of(path):
    return path.stem.split("__")[0].replace("_", "-")


def kernels(kind):
    return [
        pytest.param(path, node.name, id=f"{rule_of(path)}-{node.name}")
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(kind)
    ]


def options(path, name):
    version = re.search(r"_v(\d)_(\d)$", name)
    return {
        "version": f"{version[1]}.{version[2]}" if version else "0.5",
        "lnc": 2 if name.endswith("_lnc2") else 1,
        "strictness": "isa" if rule_of(path).startswith("isa-") else "documented",
    }


def static(path, name):
    """Compile-time arguments of a kernel: the entry of the file's STATIC, if there is one."""
    match = re.search(r"^STATIC = (.*)$", path.read_text(), re.MULTILINE)
    return ast.literal_eval(match[1]).get(name, {}) if match else {}


def simulate(path, name):
    kernel = emulator.load(path, name)
    return emulator.simulate(kernel, host_input(), **options(path, name), **static(path, name))


def host_input():
    return np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)


@pytest.mark.parametrize("kind", ["accept", "reject"])
def test_every_rule_has_both_kinds_of_kernels(kind):
    have = {rule_of(parameter.values[0]) for parameter in kernels(kind)}
    assert have == set(RULES), f"{kind}: without {set(RULES) - have}, unknown {have - set(RULES)}"


@pytest.mark.parametrize(("path", "name"), kernels("accept"))
def test_accepted(path, name):
    simulate(path, name)


@pytest.mark.parametrize(("path", "name"), kernels("reject"))
def test_rejected(path, name):
    with pytest.raises(emulator.EmulatorError) as caught:
        simulate(path, name)
    assert getattr(caught.value, "rule", None) == rule_of(path), caught.value


def modules_with_checks():
    for info in pkgutil.iter_modules(emulator.__path__, emulator.__name__ + "."):
        module = importlib.import_module(info.name)
        if getattr(module, "fail", None) is rule_table.fail and module is not rule_table:
            yield module


def test_every_check_has_a_kernel_that_it_rejects(monkeypatch):
    """Each call of `rules.fail` in the emulator is reached by one of the rejected kernels."""
    reached = set()

    def fail(rule, message):
        caller = sys._getframe(1)
        reached.add((caller.f_globals["__name__"], caller.f_lineno))
        rule_table.fail(rule, message)

    checks = {}
    for module in list(modules_with_checks()):
        tree = ast.parse(Path(module.__file__).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "fail":
                checks[module.__name__, node.lineno] = node.end_lineno
        monkeypatch.setattr(module, "fail", fail)
    assert len(checks) > 90
    for parameter in kernels("reject"):
        with pytest.raises(emulator.EmulatorError):
            simulate(*parameter.values)
    missed = [
        f"{name}:{first}"
        for (name, first), last in checks.items()
        if not any(module == name and first <= line <= last for module, line in reached)
    ]
    assert not missed


@pytest.mark.skipif(emulator.nki_unavailable() is not None, reason=str(emulator.nki_unavailable()))
@pytest.mark.parametrize(("path", "name"), kernels("accept"))
def test_accepted_by_the_real_simulator(path, name):
    ours = simulate(path, name).outputs
    theirs = emulator.simulate_with_nki(path, name, host_input(), lnc=options(path, name)["lnc"])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_table_can_be_printed():
    text = rule_table.table()
    assert all(key in text for key in RULES)
