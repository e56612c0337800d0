"""A prompt read beside rows that are decoded: both are what transformers gives of each alone."""

import random

import pytest
import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35.model import beside

ROWS, CHUNK, LENGTH = 3, 8, 40
NAMES = ["value_heads_x3_gqa6_odd_hidden", "attention_first_explicit_types", "conv2_interval2_gqa6"]
TOLERANCE = 1e-4  # as in test_parity: fp32 rounding at logit scale 0.5


def same_bits(ours, theirs, row):
    return all(
        torch.equal(a[row], b[row])
        for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True)
    )


@pytest.mark.parametrize("device", ["cpu", "xla"])
@pytest.mark.parametrize("name", NAMES)
def test_each_row_is_as_it_is_alone(name, device, reference, load):
    """Pieces of every length, none of it too; rows that are inactive keep their state."""
    case, params, choices = reference(name), load(name, device), random.Random(3)
    tokens = case.tokens(ROWS + 1, LENGTH, seed=11)
    truth = case.logits(tokens)
    streams = [ROWS, *range(ROWS)]  # the row that is read has the last stream
    seen, lengths = [0] * (ROWS + 1), [3, 0, 8, 1, 5, 8, 7, 2, 6]
    row, rows = qwen35.init_state(params, 1, LENGTH), qwen35.init_state(params, ROWS, LENGTH)
    run = qwen35.jit(beside.prefill_and_decode_share) if device == "xla" else None
    for length in lengths:
        active = [choices.random() < 0.7 for _ in range(ROWS)]
        start = seen[0]
        chunk = torch.full((1, CHUNK), -100)  # what stands beyond the length has no effect
        chunk[0, :length] = tokens[ROWS, start : start + length]
        token = torch.tensor([tokens[b, seen[b + 1]] if active[b] else -5 for b in range(ROWS)])
        inputs = chunk, torch.tensor([length]), token, torch.tensor(active)
        chunk, count, token, mask = qwen35.device_put(inputs, device)
        arguments = (params, row, chunk, count, None, None, rows, token, mask)
        before = qwen35.device_put((row, rows), "cpu")
        read, row, decoded, rows = (run or beside.prefill_and_decode_share)(*arguments)
        logits = torch.cat(qwen35.device_put([read, decoded], "cpu"))
        after = qwen35.device_put((row, rows), "cpu")
        for place, (stream, many) in enumerate(zip(streams, [length, *active], strict=True)):
            seen[place] += int(many)
            if many:
                torch.testing.assert_close(
                    logits[place], truth[stream, seen[place] - 1], rtol=0, atol=TOLERANCE
                )
            else:
                assert not logits[place].any()
                part = int(place > 0)
                assert same_bits(after[part], before[part], slice(place - part, place))
    assert seen[0] == sum(lengths) == LENGTH
    assert min(seen[1:]) > 0 and row.position.tolist() == [LENGTH]
    assert run is None or run.compile_count == 1
