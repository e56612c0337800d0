"""An engine in which anything may raise anywhere loses no request, and mixes none up."""

from __future__ import annotations

import collections
import gc
import itertools
import weakref

import pytest
import torch
from engine_faults import (
    ASKED,
    CONFIG,
    Failed,
    Injector,
    Interrupted,
    check_cache,
    check_served,
    check_whole,
    each_alone,
    new_engine,
    serve,
)

import qwen35
from qwen35.generation import prefix_cache, reading, schedule
from qwen35.xla import trees
from qwen35.xla.turns import turn

# Where requests change their places, and what all of them share changes hands.
CRITICAL = {f"generation/{name}.py" for name in ("schedule", "keeping")}


@pytest.fixture(scope="module")
def params():
    return qwen35.init_params(CONFIG)


@pytest.fixture(scope="module")
def alone(params):
    return each_alone(params)


def once(monkeypatch, owner, name, error, after=0):
    """Lets a function raise once, when it has been called so many times."""
    function, calls = getattr(owner, name), itertools.count()

    def run(*args, **kwargs):
        if next(calls) == after:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, run)


def drain(engine):
    """Steps until nothing is left, which must not take for ever."""
    for _ in range(60):
        if engine.idle:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")


def test_an_interrupt_while_a_request_starts_loses_nothing(params, alone, monkeypatch):
    """It waits as before, and is started by the next step."""
    engine = new_engine(params)
    request = engine.submit(ASKED[0].prompt, max_new_tokens=6, sampling=ASKED[0].sampling)
    once(monkeypatch, reading, "start", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    check_whole(engine, [request])
    assert not request.done and list(engine.waiting) == [request]
    drain(engine)
    assert request.completion().tokens == alone[0].tokens


def test_a_second_interrupt_while_the_first_is_cleared_up(params, alone, monkeypatch):
    engine = new_engine(params)
    lost = engine.submit([8, 9], max_new_tokens=9)
    engine.step()
    once(monkeypatch, engine.batch, "choose", KeyboardInterrupt())
    once(monkeypatch, engine.batch, "reset", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    request = engine.submit(ASKED[0].prompt, max_new_tokens=6, sampling=ASKED[0].sampling)
    check_whole(engine, [lost, request])
    drain(engine)
    assert lost.finish_reason == "error" and "interrupted" in str(lost.error)
    assert request.completion().tokens == alone[0].tokens


@pytest.mark.parametrize("where", ["decode", "next_piece"])
def test_an_error_that_is_kept_keeps_no_tensors(params, monkeypatch, where):
    """Of the frames that it went through: a failed request would hold a state."""
    held = []

    def fail(*arguments):
        try:
            raise RuntimeError("first")
        except RuntimeError:
            tensor = torch.ones(3)
            held.append(weakref.ref(tensor))
            raise RuntimeError("injected") from None

    engine = new_engine(params)
    request = engine.submit([8, 9], max_new_tokens=9)
    monkeypatch.setattr(*((engine.batch, where) if where == "decode" else (reading, where)), fail)
    states = [weakref.ref(leaf) for leaf in trees.tensors(engine.batch.rows)]
    drain(engine)
    assert str(request.error) == "injected" and request.error.__traceback__ is not None
    monkeypatch.undo()
    engine.batch.reset()
    gc.collect()
    assert held and not any(tensor() is not None for tensor in held)
    assert not any(state() is not None for state in states)


def test_slots_grow_all_at_once_or_not_at_all(params, monkeypatch):
    """With the row whose prompt is being read, when a saved conversation asks for room."""
    state = qwen35.init_state(params, batch=1, capacity=30)
    logits = qwen35.generation.steps.blank(params, 1, 30).logits
    engine = new_engine(params)
    request = engine.submit([4] * 20, max_new_tokens=2)
    engine.step()
    once(monkeypatch, schedule, "grow", MemoryError("no room"), after=1)
    with pytest.raises(MemoryError):
        engine.adopt([1] * 30, state, logits)
    check_whole(engine, [request])
    assert engine.batch.capacity == 24
    drain(engine)
    assert request.finish_reason == "length"


@pytest.mark.parametrize("after", range(4))
def test_a_snapshot_that_is_put_in_by_half_leaves_no_trace(params, monkeypatch, after):
    """A prefix cache that fails while it changes its tree is empty, and goes on."""
    engine = new_engine(params)
    kept = [engine.submit([1, 2, 3, last], max_new_tokens=1) for last in (4, 5)]
    drain(engine)
    rows = [engine.recall([*request.keys])[1] for request in kept]
    once(monkeypatch, prefix_cache, "_bytes", KeyboardInterrupt(), after)
    with pytest.raises(KeyboardInterrupt):
        for number in range(4):
            engine.keep([1, 2, 9, number], rows[0])
    check_cache(engine.cache)
    assert engine.stats.snapshots == 0
    engine.keep([1, 2, 9, 9], rows[0])
    check_cache(engine.cache)
    assert engine.stats.snapshots == 1


def test_the_requests_meet_what_they_are_for(params, alone):
    """The requests of the tests below: a hit, evictions, room that grows, all kinds of ends."""
    engine = new_engine(params)
    served = serve(engine)
    assert check_served(served, alone, Injector()) == 0
    assert {request.finish_reason for request in served} == {
        "length",
        "stop",
        "cancelled",
        "timeout",
    }
    assert engine.stats.hits and engine.stats.evictions and engine.batch.capacity > 24


@pytest.fixture(scope="module")
def on_xla(alone):
    """Parameters on XLA; file and line of all that serving the requests runs there, in order."""
    params = qwen35.init_params(CONFIG, device="xla")
    serve(new_engine(params))  # compiles
    injector = Injector()
    check_served(serve(new_engine(params), injector), alone, injector)
    return params, injector.seen


def sweep(on_xla, alone, places):
    """Raises at lines, each in an engine of its own, and returns what has become of requests.

    Args:
        places: what to raise, and how many lines are run before.
    """
    params, seen = on_xla
    outcomes = collections.Counter()
    for kind, place in places:
        injector = Injector(kind, place)
        served = serve(new_engine(params), injector)
        assert injector.raised == [seen[place]]
        outcomes["ended"] += check_served(served, alone, injector)
        outcomes["whole"] += len(served)
    return outcomes


def lines(seen, files):
    """For each line of some files (all if None), the places where it is run."""
    places = collections.defaultdict(list)
    for place, line in enumerate(seen):
        if files is None or line[0] in files:
            places[line].append(place)
    return [places[line] for line in sorted(places)]


def test_what_raises_between_two_steps_of_a_request_ends_no_other(on_xla, alone):
    """Every third line of what moves requests, in turn an error and an interrupt; and some
    elsewhere. Of all lines half are the slow test's, and the campaign's any."""
    kinds = itertools.cycle((Failed, Interrupted))
    critical = [places[len(places) // 2] for places in lines(on_xla[1], CRITICAL)[::3]]
    others = range(0, len(on_xla[1]), 9973)
    outcomes = sweep(on_xla, alone, list(zip(kinds, [*critical, *others], strict=False)))
    assert outcomes["whole"] > 300 and 0 < outcomes["ended"] < outcomes["whole"] / 2


@pytest.mark.slow
def test_what_raises_at_any_line_ends_what_it_has_to(on_xla, alone):
    """Half of the lines of generation, and some of the others', as an error or an interrupt."""
    places = []
    for number, found in enumerate(lines(on_xla[1], None)):
        place = found[number * 7919 % len(found)]
        if number % (2 if on_xla[1][place][0].startswith("generation/") else 8) == 0:
            places.append(((Failed, Interrupted)[number // 8 % 2], place))
    outcomes = sweep(on_xla, alone, places)
    assert outcomes["whole"] > 1500 and outcomes["ended"] > 100


def test_an_exception_at_any_line_of_a_compiled_call_gives_the_turn_back():
    """Else the next thread would wait for ever, and the one that raised would not notice."""
    double = qwen35.jit(lambda x: x + x)
    x = qwen35.device_put(torch.ones(3), "xla")
    double(x)
    calls = Injector()
    with calls:
        double(x)
    for place in range(len(calls.seen)):
        injector = Injector(Failed, place)
        with injector:
            double(x)
        assert injector.raised and not turn._is_owned(), injector.raised
