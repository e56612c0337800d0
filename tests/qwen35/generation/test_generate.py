"""How generation cuts prompts into prefill steps."""

from __future__ import annotations

import pytest
import torch

import qwen35
from qwen35.generation.buckets import prefill_chunk
from qwen35.generation.generate import PREFILL_CHUNK

OF_ONE = [16, 32, 64, 128, 192, 256, 320, 384, 448, 512]
OF_SEVERAL = [288, 320, 352, 384, 416, 448, 480, 512]


def test_chunk_sizes():
    """Every length takes the fewest steps there can be, of the smallest of few sizes that does."""
    for length in range(1, 40_000):
        steps = -(-length // PREFILL_CHUNK)
        sizes = OF_ONE if steps == 1 else OF_SEVERAL
        smallest = next(size for size in sizes if steps * size >= length)
        assert prefill_chunk(length, PREFILL_CHUNK) == smallest
    assert [prefill_chunk(length, 10) for length in (1, 10, 11)] == [10, 10, 10]


@pytest.mark.parametrize("chunk", [512, 100, 37, 1])
def test_chunks_change_no_token(reference, letters, chunk):
    """Prompts of other lengths beside each other, so that some end steps before others."""
    case = reference("value_heads_x3_gqa6_odd_hidden")
    prompts, expected = [], []
    for length in (129, 70):
        tokens, chosen, _ = case.greedy(length, 8)
        prompts += tokens.tolist()
        expected += chosen.tolist()
    end = case.config.eos_token_id
    expected = [row[: row.index(end) + 1] if end in row else row for row in expected]
    params = qwen35.load(case.directory, dtype=torch.float32)
    said = qwen35.generate(params, letters, prompts, max_new_tokens=8, prefill_chunk=chunk)
    assert [list(row.tokens) for row in said] == expected
