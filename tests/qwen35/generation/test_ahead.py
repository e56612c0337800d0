"""A step is started before the last one's tokens are read, and leaves no trace of that.

The reference is the same loop that reads first: what runs eagerly on the CPU. There both orders can
be run, to the bit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import qwen35
from qwen35 import Engine, Sampling
from qwen35.generation import steps
from qwen35.generation.thinking import ThinkingBudget
from qwen35.xla import private

NAME = "value_heads_x2_tied"
VOCABULARY = 131
CAPACITY = 48
TOKENS = st.integers(0, VOCABULARY - 1)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.0, 1.5]),
    seed=st.integers(0, 3),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7]),
    # Of these many tokens stop at once, few after some steps, none as far as there is room.
    stop=st.sampled_from([(), (), tuple(range(0, 131, 9)), tuple(range(0, 131, 2))]),
    logprobs=st.sampled_from([None, None, 2]),
)


@pytest.fixture(scope="module")
def params(load):
    return load(NAME)


@dataclass(frozen=True)
class Asked:
    """A request: when it comes, and after how many steps from the start it is cancelled."""

    prompt: list[int]
    new_tokens: int
    sampling: Sampling
    thinking: ThinkingBudget | None
    arrival: int
    cancelled: int | None


@st.composite
def requests(draw):
    """Prompts begin alike; some have just so much room that they end where the capacity does."""
    shared = [5, 9, 2, 7, 7, 1, 30, 8, 4, 4, 60, 3]
    prompt = shared[: draw(st.integers(0, 12))] + draw(st.lists(TOKENS, min_size=1, max_size=20))
    room = CAPACITY - len(prompt)
    sampling, thinking = draw(SAMPLINGS), None
    if sampling.logprobs is None:
        closes = st.sampled_from([(41, 40, 42), (40,), ()])
        begins = st.lists(TOKENS, max_size=2).map(tuple)
        budgets = st.builds(ThinkingBudget, st.integers(0, 4), st.just(40), closes, begins)
        thinking = draw(st.none() | budgets)
    return Asked(
        prompt,
        draw(st.sampled_from([1, 2, min(9, room), room])),
        sampling,
        thinking,
        draw(st.integers(0, 6)),
        draw(st.none() | st.integers(0, 20)),
    )


def serve(params, letters, asked, ahead):
    """What an engine of two slots does with these requests: everything that can be seen of it
    after each step, and at the end."""
    engine = Engine(
        *(params, letters),
        **{"slots": 2, "capacity": CAPACITY, "prefill_chunk": 8, "snapshot_every": 16},
        top_logprobs=2,
    )
    engine.batch.ahead = ahead
    submitted: dict[int, qwen35.generation.request.Request] = {}
    seen, number = [], 0
    while len(submitted) < len(asked) or not engine.idle:
        for index, one in enumerate(asked):
            if one.arrival == number:
                submitted[index] = engine.submit(
                    one.prompt,
                    max_new_tokens=one.new_tokens,
                    sampling=one.sampling,
                    thinking=one.thinking,
                )
        pieces = engine.step()
        for index, one in enumerate(asked):
            if one.cancelled == number and index in submitted:
                engine.cancel(submitted[index])
        states = [
            engine.batch.take(slot).state if request else None
            for slot, request in enumerate(engine.running)
        ]
        seen.append((pieces, states, engine.stats))
        number += 1
    ended = [
        (r.text, r.new_tokens, r.logprobs, r.finish_reason, r.error, r.cached_tokens)
        for r in (submitted[index] for index in range(len(asked)))
    ]
    kept = [
        engine.recall([*r.keys, *r.new_tokens][:length])
        for r in submitted.values()
        for length in range(1, len(r.keys) + len(r.new_tokens) + 1)
    ]
    return seen, ended, kept


def assert_same(ours, theirs):
    """Two trees are the same, their tensors to the bit."""
    leaves, others = pytree.tree_leaves(ours), pytree.tree_leaves(theirs)
    assert len(leaves) == len(others)
    for one, other in zip(leaves, others, strict=True):
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, (one, other)


def ending(prompt, new_tokens, **sampling):
    """A request that comes at once, for tokens that are drawn."""
    return Asked(prompt, new_tokens, Sampling(1.5, **sampling), None, 0, None)


@settings(max_examples=60)
@example(asked=[ending([1, 2, 3], 1), ending([4, 5], 1), ending([6], 1)])  # one-token answers
@example(asked=[ending([7] * 40, 8), ending([8] * 47, 1), ending([9], 47)])  # full to capacity
@example(asked=[ending([seed], 20, seed=seed, stop=range(0, 131, 5)) for seed in range(5)])
@given(asked=st.lists(requests(), min_size=1, max_size=5))
def test_an_engine_that_runs_ahead_shows_no_trace_of_it(params, letters, asked):
    """Pieces, states and the cache after each step; texts, log probabilities, ends."""
    assert_same(serve(params, letters, asked, True), serve(params, letters, asked, False))


@pytest.mark.parametrize("step", range(12))
def test_a_request_can_be_cancelled_after_every_step(params, letters, step):
    free = Sampling(banned=params.config.eos_token_ids)
    asked = [
        Asked([1, 2, 3] * 5, 9, free, None, 0, step),
        Asked([4, 5], 20, free, None, 0, None),
    ]
    ahead = serve(params, letters, asked, True)
    assert_same(ahead, serve(params, letters, asked, False))
    assert [end[3] for end in ahead[1]] == ["cancelled" if step < 8 else "length", "length"]


@settings(max_examples=40)
@given(
    prompts=st.lists(st.lists(TOKENS, min_size=1, max_size=20), min_size=1, max_size=3),
    new_tokens=st.integers(1, 12),
    sampling=SAMPLINGS,
    data=st.data(),
)
def test_a_stream_that_runs_ahead_shows_no_trace_of_it(
    params, letters, prompts, new_tokens, sampling, data
):
    """Pieces and completions; capacity ends with the longest row, or lies beyond."""
    longest = max(map(len, prompts)) + new_tokens
    capacity = longest + data.draw(st.integers(0, 2))

    def run(ahead):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(steps, "run_ahead", lambda params: ahead)
            pieces = qwen35.stream(
                *(params, letters, prompts),
                **{"max_new_tokens": new_tokens, "sampling": sampling, "capacity": capacity},
            )
            seen = []
            while True:
                try:
                    seen.append(next(pieces))
                except StopIteration as stop:
                    rows = stop.value
                    return seen, [(r.text, r.tokens, r.finish_reason, r.logprobs) for r in rows]

    assert_same(run(True), run(False))


@pytest.fixture
def device(load, monkeypatch):
    """Parameters on XLA, and a list that gets what the device is told: "run" a graph, "upload",
    "read" (which waits)."""
    told = []
    names = {
        "_run_cached_graph": "run",
        "_xla_tensors_from_aten": "upload",
        "_xla_get_cpu_tensors": "read",
    }
    for name, event in names.items():
        function = getattr(private, name)

        def spy(*arguments, function=function, event=event):
            told.append(event)
            return function(*arguments)

        monkeypatch.setattr(private, name, spy)
    return load(NAME, "xla"), told


@pytest.mark.parametrize("rows", [1, 2])
def test_a_stream_starts_a_step_before_it_reads_the_last_token(device, letters, rows):
    """A token is yielded when it has been read; nothing is uploaded once decoding goes on."""
    params, told = device
    sampling = Sampling(1.0, frequency_penalty=0.5, banned=params.config.eos_token_ids)
    prompts = [[1, 2, 3], [4, 5]][:rows]
    pieces = qwen35.stream(params, letters, prompts, max_new_tokens=5, sampling=sampling)
    seen = []
    for number, _ in enumerate(pieces):
        if number % rows == 0:
            seen.append([event for event in told if event != "upload" or number])
            told.clear()
    step = ["run", "read"]
    assert seen[0][-2:] == step and seen[0].count("read") == 1
    assert seen[1:] == [step, step, step, ["read"]]


def test_an_engine_starts_decoding_before_it_reads_the_token(device, letters):
    """The steps of requests that go on, the likeliest tokens and drawn ones."""
    params, told = device
    endless = dataclasses.replace(params.config, eos_token_id=None)
    params = dataclasses.replace(params, config=endless)
    small = {"slots": 2, "capacity": CAPACITY, "prefill_chunk": 8, "prefill_sizes": 1}
    engine = Engine(params, letters, **small, cache_bytes=0)
    engine.warm_up()
    for sampling in (Sampling(), Sampling(1.0, frequency_penalty=0.5)):
        request = engine.submit([1, 2, 3], max_new_tokens=8, sampling=sampling)
        while len(request.new_tokens) < 2:
            engine.step()
        while len(request.new_tokens) < 7:
            told.clear()
            engine.step()
            assert told == ["run", "run", "read"]  # choose and decode
        told.clear()
        engine.step()
        assert told == ["run", "read"], "the last token is not decoded"
        assert engine.idle and request.finish_reason == "length"


def test_tokens_on_the_device_end_and_are_replaced_where_they_must(load):
    """On XLA as eagerly: a token that ends its row leaves it as it was, a forced one is read."""
    results = []
    for kind in ("cpu", "xla"):
        params = load(NAME, kind)

        def put(*values, kind=kind):
            return qwen35.device_put(torch.tensor(values), kind)

        rows = steps.prefill_pieces(
            params, steps.blank(params, 4, 16), [[1, 2], [3, 4], [5], [6]], 4
        )
        before = qwen35.device_put(pytree.tree_map(torch.clone, rows), "cpu")
        token = steps.force(put(7, 8, 9, 1), put(-1, 6, 5, 0), put(-1, -1, 9, 2))
        assert token.cpu().tolist() == [7, 6, 9, 0]
        ends = torch.zeros(4, VOCABULARY, dtype=torch.bool)
        ends[0, 7] = ends[1, 8] = True
        after = steps.decode(
            params, rows, token, put(True, True, False, True), qwen35.device_put(ends, kind)
        )
        after = qwen35.device_put(after, "cpu")
        assert after.state.position.tolist() == [2, 3, 1, 2]
        for one, other in zip(pytree.tree_leaves(before), pytree.tree_leaves(after), strict=True):
            assert torch.equal(one[[0, 2]], other[[0, 2]])
        results.append(after.logits)
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)
