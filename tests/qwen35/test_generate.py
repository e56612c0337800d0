"""How generation cuts prompts into prefill steps."""

from __future__ import annotations

import pytest
import torch

import qwen35
from qwen35.generate import PREFILL_CHUNK, _chunk


class Letters:
    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, tokens, skip_special_tokens=False):
        return "".join(chr(token) for token in tokens)


def test_few_chunk_sizes_and_little_padding():
    """Every length takes the fewest steps there can be; ten sizes serve them all."""
    sizes = set()
    for length in range(1, 40_000):
        size = _chunk(length, PREFILL_CHUNK)
        steps = -(-length // PREFILL_CHUNK)
        assert length <= steps * size and size <= PREFILL_CHUNK
        assert steps * (size - 64) < length or size == 16
        sizes.add(size)
    assert sorted(sizes) == [16, 32, 64, 128, 192, 256, 320, 384, 448, 512]
    assert _chunk(270, PREFILL_CHUNK) == 320  # a picture of 512 x 512 and a question
    assert _chunk(513, PREFILL_CHUNK) == 320  # in two steps
    assert [_chunk(length, 10) for length in (1, 10, 11)] == [10, 10, 10]


@pytest.mark.parametrize("chunk", [512, 100, 37, 1])
def test_chunks_change_no_token(reference, chunk):
    """Prompts of other lengths beside each other, so that some end steps before others."""
    case = reference("value_heads_x3_gqa6_odd_hidden")
    tokens, chosen, _ = case.greedy(129, 8)
    prompts = [tokens[0].tolist(), tokens[1].tolist(), tokens[0, :70].tolist()]
    params = qwen35.load(case.directory, dtype=torch.float32)
    said = qwen35.generate(params, Letters(), prompts, max_new_tokens=8, prefill_chunk=chunk)
    assert [row.tokens for row in said[:2]] == [
        tuple(row.tolist()[: len(one.tokens)]) for row, one in zip(chosen, said, strict=False)
    ]
    assert len(said[0].tokens) + len(said[1].tokens) > 8
    [alone] = qwen35.generate(params, Letters(), prompts[2:], max_new_tokens=8)
    assert said[2].tokens == alone.tokens
