"""Imports without passes of the collector, which leave it as it was."""

from __future__ import annotations

import gc
import weakref

import pytest

from qwen35.xla.importing import collection_paused


class Cycle:
    """An object that only the collector frees."""

    def __init__(self):
        self.self = self


@pytest.fixture(autouse=True)
def collecting():
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_inside_and_all_is_afterwards():
    before = [generation["collections"] for generation in gc.get_stats()]
    with pytest.raises(ImportError), collection_paused():
        lost = weakref.ref(Cycle())
        kept = [[] for _ in range(10_000)]  # enough for a pass of the youngest
        with collection_paused():
            pass
        assert not gc.isenabled() and lost() is not None
        assert [generation["collections"] for generation in gc.get_stats()] == before
        raise ImportError
    assert gc.isenabled() and gc.get_freeze_count() == 0
    # What was made inside is not looked at again with all that is young.
    assert any(old is kept for old in gc.get_objects(generation=2))
    gc.collect()
    assert lost() is None


def test_a_callers_settings_stay():
    gc.freeze()
    frozen = gc.get_freeze_count()
    with collection_paused():
        pass
    assert gc.get_freeze_count() == frozen > 0
    gc.disable()
    with collection_paused():
        pass
    assert not gc.isenabled()
