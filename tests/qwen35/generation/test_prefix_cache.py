"""The tree against a plain list of prefixes; the engine's hits against prompts read whole."""

from __future__ import annotations

import collections
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import qwen35
from qwen35 import Engine, Sampling
from qwen35.generation.prefix_cache import PrefixCache, Snapshot
from qwen35.model.state import AttentionState, DeltaNetState

NAME = "value_heads_x2_tied"
CAPACITY = 160


def made_up(keys):
    """Keys and values that tell their token and place, and a snapshot that tells its prefix."""
    places = torch.arange(len(keys)) + 1000.0 * torch.tensor(keys)
    kv = (AttentionState(places.expand(1, 2, 3, -1), places[:, None].expand(1, 2, -1, 3)),)
    mark = torch.tensor([hash(tuple(keys)) % 10**6], dtype=torch.float32)
    layer = DeltaNetState(mark, mark)
    return kv, Snapshot(torch.tensor([0]), (layer,), mark)


SNAPSHOT_BYTES = 3 * 4 + 8
TOKEN_BYTES = 2 * 6 * 4


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 1), min_size=1, max_size=5)),
        max_size=40,
    ),
    st.integers(0, 6),
)
def test_tree_equals_a_list_of_prefixes(operations, room):
    """Any order of look-ups and insertions, at any size: what is found, held and dropped."""
    limit = room * (SNAPSHOT_BYTES + 3 * TOKEN_BYTES)
    cache = PrefixCache(limit)
    recent: list[tuple] = []  # prefixes with a snapshot, least recently used first

    def held():
        tokens = {prefix[:n] for prefix in recent for n in range(1, len(prefix) + 1)}
        return len(recent) * SNAPSHOT_BYTES + len(tokens) * TOKEN_BYTES

    for inserting, keys in operations:
        keys = tuple(keys)
        if inserting:
            kv, snapshot = made_up(keys)
            known = cache.known(keys)
            fresh = tuple(AttentionState(k[..., known:], v[:, :, known:]) for k, v in kv)
            cache.insert(keys, fresh, snapshot)
            fits = SNAPSHOT_BYTES + len(keys) * TOKEN_BYTES <= limit
            others = [prefix for prefix in recent if prefix != keys]
            recent = [*others, keys] if fits else [keys, *others]
            while held() > limit:
                recent.pop(0)
        else:
            match = cache.lookup(keys)
            best = max((p for p in recent if keys[: len(p)] == p), key=len, default=())
            assert match.length == len(best)
            if best:
                recent.remove(best)
                recent.append(best)
                kv, snapshot = made_up(best)
                assert all(map(torch.equal, pytree.tree_leaves(match.kv), pytree.tree_leaves(kv)))
                assert torch.equal(match.snapshot.logits, snapshot.logits)
            else:
                assert match.snapshot is None
        assert cache.stats.bytes == held() <= limit
        assert cache.stats.snapshots == len(recent)


class Letters:
    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, tokens, skip_special_tokens=False):
        return "".join(map(chr, tokens))


@pytest.fixture(scope="module")
def params(load):
    return load(NAME)


def engine_for(params, **options):
    options = {"slots": 2, "capacity": CAPACITY, "prefill_chunk": 16} | options
    return Engine(params, Letters(), **{"snapshot_every": 32, **options})


def first_logits(engine, prompt, **options):
    """The logits after a prompt, as the engine comes by them, and how many tokens it saved."""
    seen = []
    put = engine.batch.put

    def spy(slot, row, *rest):
        seen.append(copy.deepcopy(row) if row.logits.device.type == "cpu" else row)
        put(slot, row, *rest)

    engine.batch.put = spy
    request = engine.submit(prompt, max_new_tokens=4, **options)
    collections.deque(engine.run(), maxlen=0)
    engine.batch.put = put
    assert request.error is None
    return seen[0], request


def whole(params, prompt):
    """Logits and state of a prompt that `prefill` reads at once."""
    state = qwen35.init_state(params, batch=1, capacity=CAPACITY)
    return qwen35.prefill(params, state, torch.tensor([prompt]))


def check(params, engine, prompt, saved, **options):
    """A request is right, and has saved this many tokens."""
    row, request = first_logits(engine, prompt, **options)
    logits, state = whole(params, prompt)
    assert request.cached_tokens == saved
    scale = logits.abs().max()
    torch.testing.assert_close(row.logits, logits, rtol=0, atol=1e-5 * scale)
    length = len(prompt)
    for ours, theirs in zip(row.state.layers, state.layers, strict=True):
        if isinstance(ours, AttentionState):
            ours = AttentionState(ours.key[..., :length], ours.value[:, :, :length])
            theirs = AttentionState(theirs.key[..., :length], theirs.value[:, :, :length])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1, b.abs().max()))
    assert torch.equal(row.state.position, state.position)
    [alone] = qwen35.generate(params, Letters(), [prompt], max_new_tokens=4, capacity=CAPACITY)
    assert request.completion().tokens == alone.tokens
    return row


def tokens(count, seed):
    return torch.randint(97, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_cold_partial_and_total_hits(params):
    engine = engine_for(params)
    prompt = tokens(90, 0)
    cold = check(params, engine, prompt, 0)
    total = check(params, engine, prompt, 90)
    assert torch.equal(total.logits, cold.logits), "nothing was computed anew"
    check(params, engine, [*prompt, 1, 2, 3], 90)
    check(params, engine, prompt[:70], 64)
    check(params, engine, prompt[:50] + tokens(40, 1), 32)
    check(params, engine, tokens(30, 2), 0)
    stats = engine.stats
    assert (stats.lookups, stats.hits) == (6, 4)
    assert stats.saved_tokens == 90 + 90 + 64 + 32
    assert stats.hit_rate == stats.saved_tokens / (90 + 90 + 93 + 70 + 90 + 30)


def test_short_prompts_hit(params):
    """Well below the distance of snapshots: at a prompt's end, and where two prompts part."""
    engine = engine_for(params)
    system = tokens(11, 3)
    check(params, engine, [*system, 1, 2], 0)
    check(params, engine, [*system, 1, 2, 3], 13)
    check(params, engine, [*system, 4, 5, 6], 0)  # learns that prompts part after 11
    check(params, engine, [*system, 7], 11)


def test_a_continued_answer_is_not_read_again(params):
    """The next turn: prompt, answer and something new; all but the last token is in the state."""
    engine = engine_for(params)
    prompt = tokens(20, 4)
    answer = first_logits(engine, prompt)[1].new_tokens
    check(params, engine, [*prompt, *answer, 5, 6, 7], 20 + len(answer) - 1)


def test_a_prompt_that_fills_the_slot(params):
    """Keys and values up to the last of the capacity are kept and come back."""
    engine = engine_for(params, slots=1, capacity=75)
    prompt = tokens(74, 14)
    expected, _ = whole(params, prompt)
    for saved in (0, 74):
        request = engine.submit(prompt, max_new_tokens=1)
        collections.deque(engine.run(), maxlen=0)
        assert request.error is None and request.cached_tokens == saved
        assert request.new_tokens == [expected.argmax().item()]
    match = engine.cache.lookup(prompt)
    _, state = whole(params, prompt)
    layers = [layer for layer in state.layers if isinstance(layer, AttentionState)]
    for ours, theirs in zip(match.kv, layers, strict=True):
        torch.testing.assert_close(ours.key, theirs.key[..., :74], rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.value, theirs.value[:, :, :74], rtol=0, atol=1e-4)


def test_an_edited_turn_goes_on_from_its_boundary(params):
    """A prompt that leaves the earlier one behind a boundary is read from there."""
    engine = engine_for(params, snapshot_every=1000)
    history = tokens(45, 5)
    check(params, engine, [*history, *tokens(9, 6)], 0, boundaries=[45])
    check(params, engine, [*history, *tokens(9, 7)], 45, boundaries=[45])


@pytest.mark.parametrize("room", [0.6, 1.5])
def test_hits_after_eviction(params, room):
    """A cache too small for all: what was dropped is read again, what is left still fits."""
    prompts = [tokens(30, 8) + tokens(40, seed) for seed in (9, 10, 11)]
    one = engine_for(params)
    first_logits(one, prompts[0])
    limit = int(room * one.stats.bytes)
    engine = engine_for(params, cache_bytes=limit)
    for prompt in (*prompts, *prompts, prompts[-1]):
        row, request = first_logits(engine, prompt)
        logits, _ = whole(params, prompt)
        torch.testing.assert_close(row.logits, logits, rtol=0, atol=1e-5 * logits.abs().max())
        assert engine.stats.bytes <= limit
    assert engine.stats.evictions
    if room > 1:
        assert request.cached_tokens == len(prompt), "the last prompt's end is kept"


def test_a_prompt_too_long_for_the_cache_leaves_what_is_there(params):
    """Its own first snapshots too: asked again, it is read from the longest that fits."""
    one = engine_for(params, snapshot_every=1000)
    first_logits(one, tokens(64, 15))
    engine = engine_for(params, snapshot_every=32, cache_bytes=one.stats.bytes)
    long = tokens(120, 15)
    check(params, engine, long, 0)
    assert 0 < engine.stats.bytes <= one.stats.bytes
    check(params, engine, long, 64)


def test_a_hit_leaves_the_cache_as_it_was(params):
    """Going on twice from one snapshot gives the same twice."""
    engine = engine_for(params)
    prompt = tokens(40, 12)
    free = Sampling(1.5, seed=1, banned=params.config.eos_token_ids)
    runs = []
    for _ in range(3):
        request = engine.submit([*prompt, 3], max_new_tokens=20, sampling=free)
        collections.deque(engine.run(), maxlen=0)
        runs.append(request.completion().tokens)
    assert runs[0] == runs[1] == runs[2] and len(runs[0]) == 20


def test_on_xla(load):
    """The same through compiled graphs, with rows that go to the device and back."""
    params, on_device = load(NAME), load(NAME, "xla")
    engine = engine_for(on_device)
    prompt = tokens(60, 13)
    for asked, saved in ((prompt, 0), (prompt, 60), ([*prompt, 1, 2], 60), (prompt[:40], 32)):
        row, request = first_logits(engine, asked)
        logits, _ = whole(params, asked)
        assert request.cached_tokens == saved
        [alone] = qwen35.generate(params, Letters(), [asked], max_new_tokens=4, capacity=CAPACITY)
        assert request.completion().tokens == alone.tokens
        torch.testing.assert_close(
            qwen35.device_put(row.logits, "cpu"), logits, rtol=0, atol=1e-5 * logits.abs().max()
        )
