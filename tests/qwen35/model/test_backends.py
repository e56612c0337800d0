"""Prefill and decode by torch.compile: what eager torch computes, in graphs that no call changes.

aot_eager runs the captured graph's operations one by one, so that results are those of eager torch
bit for bit. What inductor makes of the graphs is for tests/qwen35/generation/test_backends.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._dynamo.utils import counters

import qwen35
from qwen35.xla.unusable import Donated

CASE = "value_heads_x2_tied"


@pytest.fixture(scope="module")
def small(two_layers):
    return qwen35.load(two_layers.directory)


def assert_steps_are_eager_ones(params, backend, tolerance, length=9, steps=3):
    """Two ragged prefills and some decodes, one row idle in the last: logits and every state."""
    read, step = (
        qwen35.jit(function, donate=("state",), backend=backend)
        for function in (qwen35.prefill, qwen35.decode)
    )
    generator = torch.Generator().manual_seed(0)
    eager, compiled = (qwen35.init_state(params, 2, 64) for _ in range(2))
    counters.clear()
    for number in range(2 + steps):
        shape = (2, length) if number < 2 else (2,)
        tokens = torch.randint(params.config.vocab_size, shape, generator=generator)
        rest = torch.tensor([length, 4]) if number < 2 else torch.tensor([True, number % 2 == 0])
        plain, function = (qwen35.prefill, read) if number < 2 else (qwen35.decode, step)
        with torch.no_grad():
            expected, eager = plain(params, eager, tokens, rest)
        before = compiled
        logits, compiled = function(params, compiled, tokens, rest)
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)
        for old, new, wanted in zip(*map(tensors, (before, compiled, eager)), strict=True):
            assert type(old) is Donated
            torch.testing.assert_close(new, wanted, rtol=0, atol=tolerance)
    assert (read.compile_count, step.compile_count) == (1, 1)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 2


def tensors(state):
    return [state.position, state.rope_offset, *itertools.chain(*state.layers)]


def test_aot_eager_is_eager_bit_for_bit(small):
    assert_steps_are_eager_ones(small, "aot_eager", tolerance=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["value_heads_x3_gqa6_odd_hidden", "only_deltanet"])
def test_other_models_too(load, name):
    """Without attention, a state has no capacity."""
    assert_steps_are_eager_ones(load(name), "aot_eager", tolerance=0)


def test_the_functions_own_errors_come_through(load):
    params = load(CASE)
    read = qwen35.jit(qwen35.prefill, backend="aot_eager")
    state = qwen35.init_state(params, 2, 64)
    with pytest.raises(ValueError, match=r"tokens has 3 rows, the state 2"):
        read(params, state, torch.zeros(3, 4, dtype=torch.int64))
    other = qwen35.init_state(load("value_heads_x3_gqa6_odd_hidden"), 2, 64)
    with pytest.raises(ValueError, match="the state has 4 layers, 1 of them"):
        read(params, other, torch.zeros(2, 4, dtype=torch.int64))
