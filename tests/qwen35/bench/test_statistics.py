"""Statistics against closed forms and numpy, arrivals against what makes them Poisson."""

import math
import random
import statistics

import numpy as np
import pytest

import qwen35
from qwen35.bench import serving
from qwen35.bench.serving import SlotRate, _prompts
from qwen35.bench.statistics import median, poisson_arrivals, ratio, spread


def test_a_slow_spell_that_meets_both_cancels_in_the_ratio():
    """Runs of 1 s and 3 s, on a machine that is 1, 10 and 2 times slower: 3, whatever it does."""
    slow = [1, 10, 2]
    ours, theirs = [1.0 * s for s in slow], [3.0 * s for s in slow]
    assert ratio(ours, theirs) == 3
    # One pair that was disturbed in between does not move it either.
    theirs[1] = 1000.0
    assert ratio(ours, theirs) == 3


def test_median_and_spread():
    assert median([4, 1]) == 2.5
    assert spread([9.0, 11.0, 10.0]) == pytest.approx(0.2)
    assert spread([5.0]) is None  # not 0: nobody knows


def test_arrivals_are_poissons():
    """Gaps are exponential: mean and deviation 1/rate, memoryless. Counts in windows have their
    mean as their variance."""
    rate, count = 4.0, 40_000
    times = poisson_arrivals(rate, count, seed=3)
    gaps = np.diff([0.0, *times])
    assert (gaps >= 0).all()
    error = 5 / math.sqrt(count)  # five standard errors
    assert gaps.mean() * rate == pytest.approx(1, abs=error)
    assert gaps.std() * rate == pytest.approx(1, abs=2 * error)
    # Of those that last one mean, as many last another: e^-1.
    assert (gaps > 2 / rate).sum() / (gaps > 1 / rate).sum() == pytest.approx(1 / math.e, abs=0.02)
    counts = np.bincount(np.floor(times).astype(int))[:-1]
    assert statistics.variance(counts.tolist()) == pytest.approx(counts.mean(), rel=0.05)


def test_arrivals_are_seeded():
    assert poisson_arrivals(2.0, 9, seed=1) == poisson_arrivals(2.0, 9, seed=1)
    assert poisson_arrivals(2.0, 9, seed=1) != poisson_arrivals(2.0, 9, seed=2)
    # A rate is nothing but another clock.
    twice = [2 * time for time in poisson_arrivals(2.0, 9, seed=1)]
    assert poisson_arrivals(1.0, 9, seed=1) == pytest.approx(twice)


@pytest.mark.parametrize("rate", [0, -1.0, math.inf, math.nan])
def test_a_rate_must_be_positive(rate):
    with pytest.raises(ValueError, match="rate must be positive"):
        poisson_arrivals(rate, 3, seed=0)


def test_engines_take_turns(monkeypatch):
    """On a machine that gets slower with every turn, three slots give twice what one gives."""
    turns = []

    def rate(slots: int, steps: int) -> float:
        turns.append((slots, steps))
        return {1: 10.0, 3: 20.0}[slots] / (1 + (len(turns) - 1) // 2)

    monkeypatch.setattr(serving, "load_endless", lambda *_: (None, None))
    monkeypatch.setattr(serving, "busy_engine", lambda params, tokenizer, slots, *_: slots)
    monkeypatch.setattr(serving, "_rate", rate)
    result = serving.measure_slots("", slots=(1, 3), prompt=32, steps=20)
    assert turns == [(1, 8), (3, 8), (1, 8), (3, 8), (1, 4), (3, 4)]
    assert result.engines == (SlotRate(1, 5.0, 1.0), SlotRate(3, 10.0, 2.0))


def test_random_prompts_have_words_only():
    """All of a small vocabulary, but not the two ids that are places for pictures."""
    config = qwen35.Config(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        image_token_id=3,
        video_token_id=7,
    )
    params = qwen35.init_params(config)
    prompts = _prompts(params, 2, 200)
    assert [len(prompt) for prompt in prompts] == [200, 200]
    assert {token for prompt in prompts for token in prompt} == {0, 1, 2, 4, 5, 6}
    assert prompts == _prompts(params, 2, 200) != _prompts(params, 2, 200, random.Random(1))
