"""The table of planted faults still fits the tree, and the script tells what is caught from what
is not. That the tests catch them all takes an hour: `python scripts/plant_faults.py`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "plant_faults.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("plant_faults", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_fault_can_be_planted(script):
    """Who changes the text of one moves it there, or chooses another as bad."""
    faults = script.read_faults()
    assert [(fault.name, why) for fault in faults if (why := script.problem(fault))] == []
    assert len({fault.name for fault in faults}) == len(faults)
    assert all(fault.before != fault.after for fault in faults)


def test_every_package_has_some(script):
    faults = script.read_faults()
    packages = {path.parent.name for path in (ROOT / "qwen35").glob("*/__init__.py")}
    for package in packages:
        own = [fault for fault in faults if fault.name.startswith(package + ": ")]
        assert own, package
        assert all(package in Path(fault.file).parts for fault in own)


CODE = "def double(x):\n    return x + x\n\n\ndef half(x):\n    return x / 2\n"
TESTS = """\
import code_under_test as code


def test_double():
    assert code.double(3) == 6


def test_of_its_own():
    assert code.double(1) == 3
"""
TABLE = """\
[[fault]]
name = "caught"
file = "code_under_test.py"
before = "x + x"
after = "x - x"
tests = ["test_code.py::test_double"]

[[fault]]
name = "unnoticed"
file = "code_under_test.py"
before = "x / 2"
after = "x / 3"
tests = ["test_code.py::test_double"]

[[fault]]
name = "fails anyway"
file = "code_under_test.py"
before = "x / 2"
after = "x / 4"
tests = ["test_code.py::test_of_its_own"]

[[fault]]
name = "no program"
file = "code_under_test.py"
before = "return x + x"
after = "return ("
tests = ["test_code.py"]

[[fault]]
name = "gone"
file = "code_under_test.py"
before = "x * 2"
after = "x * 3"
tests = ["test_code.py"]
"""


def test_the_script_tells_caught_from_not_caught(script, tmp_path, monkeypatch, capsys):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name, text in (("code_under_test.py", CODE), ("test_code.py", TESTS), ("t.toml", TABLE)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "TABLE", tmp_path / "t.toml")
    monkeypatch.setattr(sys, "argv", ["plant_faults.py"])
    assert script.main() == 1
    said = capsys.readouterr().out
    assert "caught\n    caught by test_code.py::test_double (" in said
    assert "unnoticed\n    NOT CAUGHT: pytest ended with 0: 1 passed" in said
    assert "test_code.py::test_of_its_own fails without a fault too" in said
    assert "no program\n    NOT CAUGHT: pytest ended with 2" in said
    assert "gone: its text stands 0 times in code_under_test.py" in said
    assert said.endswith("\n1 of 5 faults caught\n")
    assert (tmp_path / "code_under_test.py").read_text() == CODE

    monkeypatch.setattr(sys, "argv", ["plant_faults.py", "--only", "caught"])
    assert script.main() == 0
    assert capsys.readouterr().out.endswith("\n1 of 1 faults caught\n")
