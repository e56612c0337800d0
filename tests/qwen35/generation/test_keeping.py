"""Rows on their way into the prefix cache: nothing waits for them, and nothing misses them."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import qwen35
from qwen35 import Engine, Sampling
from qwen35.generation.keeping import Keeper
from qwen35.generation.prefix_cache import PrefixCache
from qwen35.xla import private

NAME = "value_heads_x2_tied"
CAPACITY = 48
SETTINGS = {"slots": 2, "capacity": CAPACITY, "prefill_chunk": 8, "prefill_sizes": 1}


@pytest.fixture(scope="module")
def params(load):
    return load(NAME)


def test_a_step_waits_for_the_device_in_one_place(load, letters, monkeypatch):
    """Once decoding of its tokens has been started: for the choice, and for what was copied before
    it. Prompts end, are cut and begin alike meanwhile, and requests end."""
    params = load(NAME, "xla")
    endless = dataclasses.replace(params.config, eos_token_id=None)
    params = dataclasses.replace(params, config=endless)
    engine = Engine(params, letters, **SETTINGS, snapshot_every=16)
    engine.warm_up()
    events: list[str] = []
    for name, event in (("_run_cached_graph", "run"), ("_xla_get_cpu_tensors", "read")):
        function = getattr(private, name)

        def spy(*arguments, function=function, event=event):
            events.append(event)
            return function(*arguments)

        monkeypatch.setattr(private, name, spy)
    prompts = [[number, *range(9 + number)] for number in range(1, 9)]
    requests = [engine.submit(p, max_new_tokens=3 + len(p) % 5) for p in prompts]
    kept = 0
    while not engine.idle:
        events.clear()
        engine.step()
        if engine.idle:  # what is left is fetched too
            break
        kinds = [event for event, _ in itertools.groupby(events)]
        assert kinds in (["run"], ["run", "read"], ["run", "read", "run"]), events
        kept += events.count("read") - 1
    assert kept >= 8, "snapshots were fetched on the way"
    assert [r.completion().finish_reason for r in requests] == ["length"] * 8
    assert engine.stats.snapshots >= 2 * 8


def test_a_prompt_finds_what_is_on_its_way(params, letters):
    """Three times the same prompt at once: the last two are not read, though nothing was fetched
    when they come."""
    engine = Engine(params, letters, **SETTINGS)
    free = Sampling(banned=params.config.eos_token_ids)
    first, *others = (engine.submit([5, 6, 7] * 4, max_new_tokens=4, sampling=free) for _ in "abc")
    list(engine.run())
    assert [first.cached_tokens, *(r.cached_tokens for r in others)] == [0, 12, 12]
    assert first.new_tokens == others[0].new_tokens == others[1].new_tokens


def test_what_fits_no_more_is_dropped_whole(params, letters):
    """Copies that go on from tokens which the cache drops before they come into it."""
    engine = Engine(params, letters, **SETTINGS)
    batch = engine.batch

    def read(*prompt):
        return qwen35.generation.steps.prefill_pieces(params, batch.blank(), [prompt], 8)

    start, other = [1, 2, 3, 4], [5, 6, 7, 8, 9]
    probe = PrefixCache(10**9)
    one = Keeper(batch, probe, most=2)
    one.keep(other, read(*other))
    one.settle()
    cache = PrefixCache(probe.stats.bytes)  # holds one of them
    keeper = Keeper(batch, cache, most=2)
    keeper.keep(start, read(*start))
    keeper.settle()
    keeper.keep(other, read(*other))
    keeper.keep([*start, 5], read(*start, 5))  # of which only the last token is copied
    keeper.settle()
    assert cache.stats.snapshots == 1 and cache.stats.evictions == 2
    assert keeper.lookup(other).length == 5
    assert keeper.lookup([*start, 5]).length == 0


def test_copies_that_wait_are_bounded(params, letters):
    engine = Engine(params, letters, **SETTINGS)
    cache = PrefixCache(10**9)
    keeper = Keeper(engine.batch, cache, most=2)
    for number in range(5):
        row = qwen35.generation.steps.prefill_pieces(params, engine.batch.blank(), [[number]], 8)
        keeper.keep([number], row)
        assert number + 1 - cache.stats.snapshots <= 2
    keeper.clear()
    assert keeper.lookup([4]).length == 0, "what was forgotten is not found"
    assert keeper.lookup([0]).length == 1
    assert torch.equal(keeper.recall([0])[1].state.position, torch.tensor([1], dtype=torch.int32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prompt_whose_numbers_break_leaves_nothing_to_others(load, letters, value):
    """Found by the campaign: of [8, 17, 77] the keys and values of 8, which is read together with
    17, an infinite embedding, are NaN; [8, 4, 60] was kept with those of them."""
    whole = load("equal_heads")
    assert whole.embed is not None
    [alone] = qwen35.generate(whole, letters, [[8, 4, 60]], max_new_tokens=6)
    assert 17 not in alone.tokens
    table = whole.embed.clone()
    table[17] = value
    engine = Engine(dataclasses.replace(whole, embed=table), letters, **SETTINGS)
    prompts = [[8, 17, 77], [8, 4, 60], [8, 4, 60]]
    requests = [engine.submit(prompt, max_new_tokens=6) for prompt in prompts]
    list(engine.run())
    assert [request.completion().tokens for request in requests[1:]] == [alone.tokens] * 2
    assert requests[2].cached_tokens == 3 and engine.stats.snapshots


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_may_wait_while_the_slots_grow(seed, load, letters):
    """What it holds of keys and values lies where it lay when it was made."""
    params = load("value_heads_x2_tied")
    draw = torch.Generator().manual_seed(seed)
    size = params.config.vocab_size
    first, long = (torch.randint(size, (n,), generator=draw).tolist() for n in (44, 60))
    free = {"sampling": Sampling(ignore_eos=True)}
    engine = Engine(
        *(params, letters),
        **{"slots": 1, "capacity": 64, "max_capacity": 96},
        **{"prefill_chunk": 32, "prefill_sizes": 1, "snapshot_every": 64},
    )
    said = engine.submit(first, max_new_tokens=20, **free)
    engine.submit(long, max_new_tokens=8, **free)  # grows them while a copy of the first waits
    list(engine.run())
    prompt = [*first, *said.new_tokens, 9]
    went_on = engine.submit(prompt, max_new_tokens=20, **free)
    list(engine.run())
    assert went_on.cached_tokens > 32
    [alone] = qwen35.generate(params, letters, [prompt], max_new_tokens=20, **free)
    assert went_on.completion().tokens == alone.tokens
