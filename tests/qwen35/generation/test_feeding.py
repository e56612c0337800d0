"""Any number of prompts through an engine: `Engine.map`, and what it is made of."""

from __future__ import annotations

import itertools
import random

import pytest

import qwen35
from qwen35.generation.feeding import feed

NAME = "value_heads_x2_tied"


@pytest.fixture(scope="module")
def engine(load, letters):
    return qwen35.Engine(load(NAME), letters, slots=3, capacity=64, prefill_chunk=8, queue=4)


def prompts_of(count, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(4, 131) for _ in range(rng.randrange(1, 30))] for _ in range(count)]


def test_completions_come_in_the_order_of_the_prompts(engine, letters):
    """Of more than may wait, of an iterator, and sampled as the rows of one `generate`."""
    prompts, sampling = prompts_of(20), qwen35.Sampling(1.5, seed=4)
    said = list(engine.map(iter(prompts), max_new_tokens=9, sampling=sampling))
    wanted = qwen35.generate(
        engine.batch.params, letters, prompts, max_new_tokens=9, sampling=sampling, capacity=64
    )
    assert [one.tokens for one in said] == [one.tokens for one in wanted]
    assert len({len(one.tokens) for one in said}) > 1 and engine.idle


def test_prompts_are_taken_as_slots_come_free(engine):
    """Beside the three that run one waits."""
    taken = 0

    def endless():
        nonlocal taken
        for taken in itertools.count(1):
            yield [5, 6, taken % 100]

    results = engine.map(endless(), max_new_tokens=10, sampling=qwen35.Sampling(ignore_eos=True))
    for count in range(1, 15):
        next(results)
        assert taken <= count + 3 + 3
    results.close()
    while not engine.idle:
        engine.step()


def test_closing_cancels_what_runs(engine):
    results = engine.map(prompts_of(9), max_new_tokens=20)
    next(results)
    requests = [request for request in engine.running if request] + list(engine.waiting)
    results.close()
    assert engine.idle and requests
    assert {request.finish_reason for request in requests} <= {"cancelled", "stop", "length"}


def test_a_prompt_that_is_refused_raises_in_its_place(engine):
    prompts = prompts_of(5)
    prompts[3] = [5] * 60
    said = engine.map(prompts, max_new_tokens=9)
    for _ in range(3):
        next(said)
    with pytest.raises(ValueError, match="the prompt has 60 tokens and 9 more are asked for"):
        next(said)
    assert engine.idle
    with pytest.raises(ValueError, match="prompts is one prompt"):
        engine.map("Once upon a time")


def test_a_refused_job_leaves_the_others(engine):
    """And a request that ends in an error."""
    prompts = prompts_of(8)
    prompts[0], prompts[4] = [], [5, 500]

    def job(prompt):
        return lambda: engine.submit(prompt, max_new_tokens=3)

    ended = {}
    for some in feed(engine, enumerate(map(job, prompts))):
        ended |= some
    assert sorted(ended) == list(range(8))
    failed = {number for number, outcome in ended.items() if isinstance(outcome, ValueError)}
    assert failed == {0, 4}
    assert all(ended[number].completion().tokens for number in set(ended) - failed)
