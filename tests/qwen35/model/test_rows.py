"""Rows of states: taken, repeated and stacked rows go on as they would have gone on alone."""

import numpy as np
import pytest
import torch

import qwen35

CASE = "value_heads_x2_tied"


@pytest.fixture
def started(load):
    """A state after two prompts of different lengths."""
    params = load(CASE)
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    state = qwen35.init_state(params, batch=2, capacity=16)
    _, state = qwen35.prefill(params, state, tokens, torch.tensor([4, 2]))
    return params, state


def after(params, state, *tokens):
    return qwen35.decode(params, state, torch.tensor(tokens))[0]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_taken_rows_go_on_alone(started):
    params, state = started
    both = after(params, state, 3, 4)
    close(after(params, qwen35.take(state, [1]), 4), both[1:])
    for one in (1, np.int64(1), torch.tensor(1), np.array([1]), torch.tensor([1]), (1,)):
        close(after(params, qwen35.take(state, one), 4), both[1:])
    forked = qwen35.take(state, [1, 0, 1])
    close(after(params, forked, 4, 3, 4), both[[1, 0, 1]])
    assert forked.position.tolist() == [2, 4, 2]


def test_repeated_rows_are_forks(started):
    params, state = started
    four = qwen35.repeat(state, 2)
    assert four.position.tolist() == [4, 4, 2, 2]
    logits = after(params, four, 1, 2, 1, 2)
    for token, rows in ((1, [0, 2]), (2, [1, 3])):
        close(logits[rows], after(params, state, token, token))


def test_stacked_rows_go_on_together(started, load):
    params, state = started
    parts = [qwen35.take(state, [row]) for row in (1, 0)]
    joined = qwen35.stack([*parts, state])
    close(after(params, joined, 4, 3, 3, 4), after(params, state, 3, 4)[[1, 0, 0, 1]])
    moved = qwen35.device_put(state, "xla")
    assert qwen35.stack([moved, moved]).position.tolist() == [4, 2, 4, 2]
    assert qwen35.take(moved, [1]).position.tolist() == [2]


def test_what_does_not_go_together_is_refused(started, load):
    _, state = started
    for rows, says in (
        ([2], "rows must be an integer from 0 to 1, not 2"),
        (2, "rows must be an integer from 0 to 1, not 2"),
        (np.int64(-1), "rows must be an integer from 0 to 1, not"),
        ([True], "rows must be an integer from 0 to 1, not True"),
        (True, "rows must be row numbers, not True"),
        (1.0, "rows must be row numbers, not 1.0"),
        ([], "rows is empty"),
    ):
        with pytest.raises(ValueError, match=says):
            qwen35.take(state, rows)
    with pytest.raises(ValueError, match="times must be a positive integer"):
        qwen35.repeat(state, 0)
    with pytest.raises(ValueError, match="no state to stack"):
        qwen35.stack([])
    with pytest.raises(ValueError, match="not of capacities 16, 32"):
        qwen35.stack([state, qwen35.grow(state, 32)])
    other = qwen35.init_state(load("equal_heads"), batch=1, capacity=16)
    with pytest.raises(ValueError, match="several models"):
        qwen35.stack([state, other])
