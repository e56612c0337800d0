"""The compiled steps take over the memory of what they replace, and say which results are new."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35.generation import sampling, steps


@pytest.fixture
def params(load):
    return load("only_attention", "xla")


def assert_consumed(tree):
    for leaf in pytree.tree_leaves(tree):
        with pytest.raises(RuntimeError, match="donated"):
            leaf.cpu()


def ids(*values):
    return qwen35.device_put(torch.tensor(values), "xla")


def test_steps_consume_the_state_that_they_replace(params):
    """Otherwise a step needs, and copies, all keys and values twice."""
    vocabulary = params.config.vocab_size
    first = steps.blank(params, 1, 16)
    read = steps.prefill_pieces(params, first, [[1, 2]], 2)
    assert_consumed(first)
    nothing = qwen35.device_put(torch.zeros(1, vocabulary, dtype=torch.bool), "xla")
    active = qwen35.device_put(torch.tensor([True]), "xla")
    decoded = steps.decode(params, read, ids(3), active, nothing)
    assert_consumed(read)
    counts, token = qwen35.device_put(sampling.counts_for([[1, 2]], vocabulary), "xla"), ids(4)
    settings = [qwen35.Sampling(frequency_penalty=0.5)]
    controls = qwen35.device_put(sampling.controls_for(settings, vocabulary), "xla")
    choice, state, counted = steps.decode_and_choose(
        params, decoded.state, token, None, controls, None, counts, None
    )
    assert_consumed((decoded.state, counts))
    token.cpu()  # it may be read later
    controls.penalties.frequency.cpu()
    _, again = steps.choose(
        params, None, decoded.logits, controls, None, counted, choice.token, None, None
    )
    assert_consumed(counted)
    assert state.position.cpu().tolist() == [4] and again.sum() > 0
    rows = steps.blank(params, 2, 16)
    alone = steps.take(params, rows, ids(1))
    put = steps.put(params, rows, alone, ids(0))
    assert_consumed(rows)
    assert put.logits.shape == (2, vocabulary) and alone.logits.cpu().shape == (1, vocabulary)
