"""The public names: those of `public`, imported when the first is used, and then there for good."""

from __future__ import annotations

import doctest
import importlib
import pickle
import pydoc
import subprocess
import sys

import pytest

import qwen35
from qwen35 import public


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_every_name_is_that_of_its_module():
    for name in public.__all__:
        value = getattr(qwen35, name)
        home = getattr(value, "__module__", None)
        if callable(value):
            assert value is getattr(importlib.import_module(home), value.__name__)
        assert value is getattr(public, name)


def test_every_name_is_listed():
    assert set(public.__all__) <= set(dir(qwen35))
    assert qwen35.__all__ == public.__all__
    names: dict[str, object] = {}
    exec("from qwen35 import *", names)
    assert set(public.__all__) == set(names) - {"__builtins__"}


def test_what_is_listed_without_a_name_being_used():
    """In a new interpreter, whose first question this is."""
    assert set(public.__all__) <= set(fresh("import qwen35\nprint(*dir(qwen35))").split())
    names = fresh("from qwen35 import *\nprint(*globals())").split()
    assert set(public.__all__) <= set(names)


def test_importing_the_package_imports_nothing_else():
    code = "import sys\nbefore = set(sys.modules)\nimport qwen35\nprint(*set(sys.modules) - before)"
    assert set(fresh(code).split()) == {"qwen35", "qwen35.version"}


def test_names_that_python_asks_for_import_nothing():
    code = "import qwen35, sys\nprint(hasattr(qwen35, '__wrapped__'), 'torch' in sys.modules)"
    assert fresh(code) == "False False\n"


def test_packages_are_there_as_attributes():
    """Without an import of their own, and after one of something beside what is asked for."""
    assert "prefill" in fresh("import qwen35\nprint(qwen35.model.decoder.prefill)")
    code = "import qwen35.model.config\nqwen35.load\nprint(qwen35.model.rows, qwen35.kernels)"
    assert "qwen35.model.rows" in fresh(code)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(AttributeError, match="'qwen35' has no attribute 'laod'"):
        qwen35.laod  # noqa: B018
    with pytest.raises(ImportError, match="laod"):
        from qwen35 import laod  # noqa: F401


def test_help_has_the_names():
    text = pydoc.plain(pydoc.render_doc(qwen35))
    assert "gated DeltaNet" in text
    assert all(name in text for name in set(public.__all__) - {"__version__"})


def test_examples_in_its_text_would_be_run():
    assert doctest.testmod(qwen35).failed == 0


@pytest.mark.parametrize("value", [qwen35.load, qwen35.State, qwen35.Sampling(temperature=0.5)])
def test_pickles_come_back(value):
    assert pickle.loads(pickle.dumps(value)) == value
