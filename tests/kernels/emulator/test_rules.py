"""Every rule of the table has kernels that pass it and kernels that break exactly it.

The kernels are in `rules/`, one file per rule (`rule_name.py`, or `rule_name__variant.py`).
Functions whose name starts with "accept" must run; those that start with "reject" must fail with
that rule. A suffix chooses the version (`_v0_3`) or two cores (`_lnc2`).
"""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from qwen35.kernels import emulator
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


def options(name):
    version = re.search(r"_v(\d)_(\d)$", name)
    return {
        "version": f"{version[1]}.{version[2]}" if version else "0.5",
        "lnc": 2 if name.endswith("_lnc2") else 1,
    }


def host_input():
    return np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)


@pytest.mark.parametrize("kind", ["accept", "reject"])
def test_every_rule_has_both_kinds_of_kernels(kind):
    have = {rule_of(parameter.values[0]) for parameter in kernels(kind)}
    assert have == set(RULES), f"{kind}: without {set(RULES) - have}, unknown {have - set(RULES)}"


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_names_its_source_and_check(rule):
    assert all(RULES[rule]), RULES[rule]


@pytest.mark.parametrize(("path", "name"), kernels("accept"))
def test_accepted(path, name):
    emulator.simulate(emulator.load(path, name), host_input(), **options(name))


@pytest.mark.parametrize(("path", "name"), kernels("reject"))
def test_rejected(path, name):
    with pytest.raises(emulator.EmulatorError) as caught:
        emulator.simulate(emulator.load(path, name), host_input(), **options(name))
    assert getattr(caught.value, "rule", None) == rule_of(path), caught.value


@pytest.mark.skipif(emulator.nki_unavailable() is not None, reason=str(emulator.nki_unavailable()))
@pytest.mark.parametrize(("path", "name"), kernels("accept"))
def test_accepted_by_the_real_simulator(path, name):
    chosen = options(name)
    ours = emulator.simulate(emulator.load(path, name), host_input(), **chosen).outputs
    theirs = emulator.simulate_with_nki(path, name, host_input(), lnc=chosen["lnc"])
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
