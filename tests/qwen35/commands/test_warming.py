"""Compiling while somebody types: what waits, what ends it, what fails."""

import contextlib
import threading

import pytest

from qwen35.commands.warming import warming
from qwen35.xla.observers import CompileEvent, announce


class Engine:
    """Compiles three graphs, each when it is told to."""

    def __init__(self, error=None):
        self.error, self.compiled, self.told = error, [], threading.Semaphore(0)

    def warm_up(self):
        for name in "abc":
            announce(CompileEvent(name, name, "trace", 0.0))
            assert self.told.acquire(timeout=20)
            if self.error is not None:
                raise self.error
            self.compiled.append(name)


def test_it_is_done_when_somebody_waited():
    engine = Engine()
    with warming(engine, aside=True) as warm:
        assert engine.compiled == []  # the block runs beside it
        engine.told.release(3)
        warm()
        assert engine.compiled == ["a", "b", "c"]
        warm()


def test_not_aside_it_is_done_at_once():
    engine = Engine()
    engine.told.release(3)
    with warming(engine, aside=False) as warm:
        assert engine.compiled == ["a", "b", "c"]
        warm()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ValueError("typed")])
def test_who_leaves_waits_for_one_graph_at_most(error):
    engine = Engine()
    leaving = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with leaving, warming(engine, aside=True):
        threading.Timer(0.2, engine.told.release, [3]).start()
        if error is not None:
            raise error
    assert engine.compiled == ["a"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("warm-up")]


def test_an_error_comes_to_who_waits():
    engine = Engine(RuntimeError("NCC_EOOM001"))
    engine.told.release(1)
    with pytest.raises(RuntimeError, match="NCC_EOOM001"), warming(engine, aside=True) as warm:
        warm()
