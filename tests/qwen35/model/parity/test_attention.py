"""Gated grouped-query attention is transformers' `Qwen3_5Attention`, over a KV cache with tokens.

Rotations are transformers', so that a broken table does not show here. Tolerance: sums of at most
256 products near 0.1 in another order: 5e-6.
"""

import functools

import pytest
import torch

from qwen35.forms.xla_cpu import attention as in_blocks
from qwen35.model.attention import attention
from qwen35.model.state import AttentionState

assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=5e-6)

# Query heads a key-value head: 6, 2 and 2, of 24, 32 and 256; a quarter or a half is rotated.
CASES = ["value_heads_x3_gqa6_odd_hidden", "value_heads_x2_tied", "published_head_sizes"]
CAPACITY = 64
SEEN = [0, 13, 40]  # tokens in the cache, row by row


def random_cache(both):
    """Keys and values [B, Hkv, CAPACITY, D] of which row b has SEEN[b]; elsewhere stands 0.5."""
    shape = (len(SEEN), both.config.num_key_value_heads, CAPACITY, both.config.head_dim)
    generator = torch.Generator().manual_seed(8)
    cache = [torch.randn(shape, generator=generator) for _ in range(2)]
    for tensor in cache:
        for row, seen in enumerate(SEEN):
            tensor[row, :, seen:] = 0.5
    return cache


def expected(both, row, x, key, value):
    """transformers' output [1, T, H], keys and values of one row with x [1, T, H]."""
    seen, tokens = SEEN[row], x.shape[1]
    cache = both.cache()
    cache.update(key[row : row + 1, :, :seen], value[row : row + 1, :, :seen], 0)
    slots = torch.arange(seen + tokens)
    mask = torch.where(slots <= slots[seen:, None], 0.0, float("-inf"))[None, None]
    rotations = both.rotations(slots[None, seen:])
    out, _ = both.theirs.self_attn(x, rotations, mask, past_key_values=cache)
    return out, cache.layers[0].keys, cache.layers[0].values


def run(both, x, key, value, lengths=None, last_only=False):
    """Ours, all rows at once, with the projections before and after."""
    position = torch.tensor(SEEN, dtype=torch.int32)
    cos, sin = both.rotations(position[:, None] + torch.arange(x.shape[1]))
    pairs = cos.shape[-1] // 2
    state = AttentionState(key.mT.contiguous(), value)
    rope = cos[..., :pairs], sin[..., :pairs]
    forms, layer = both.params.forms, both.ours
    projected = forms.matmul(x, layer.in_proj)
    seen = (projected, rope, position, lengths, last_only)
    out, state = attention(both.params, layer, state, *seen)
    return forms.matmul(out, layer.out_proj), state


def assert_row(both, row, length, x, cache, out, state):
    """Row `row`, of `length` valid tokens, as it is alone."""
    wanted, keys, values = expected(both, row, x[row : row + 1, :length], *cache)
    assert wanted.std() > 0.04
    assert_close(out[row, :length], wanted[0])
    end = SEEN[row] + length
    assert_close(state.key[row, :, :, :end].mT, keys[0])
    assert_close(state.value[row, :, :end], values[0])
    assert torch.equal(state.key[row, :, :, end:].mT, cache[0][row, :, end:])
    assert torch.equal(state.value[row, :, end:], cache[1][row, :, end:])


@pytest.mark.parametrize("tokens", [1, 2, 5, 24])  # with 24 the last row's cache is full
@pytest.mark.parametrize("case", CASES)
def test_is_that_of_transformers(pair, case, tokens):
    both = pair(case, "full_attention")
    x, cache = both.inputs(len(SEEN), tokens), random_cache(both)
    out, state = run(both, x, *cache)
    for row in range(len(SEEN)):
        assert_row(both, row, tokens, x, cache, out, state)


@pytest.mark.parametrize("lengths", [[30, 0, 24], [1, 7, 3]])
@pytest.mark.parametrize("case", CASES)
def test_ragged_rows(pair, case, lengths):
    """A window of the batch's width passes the last row's end; a row of length 0 writes nothing."""
    both = pair(case, "full_attention")
    x, cache = both.inputs(len(SEEN), max(lengths)), random_cache(both)
    out, state = run(both, x, *cache, torch.tensor(lengths))
    last, same = run(both, x, *cache, torch.tensor(lengths), last_only=True)
    assert all(map(torch.equal, same, state))
    for row, length in enumerate(lengths):
        if length:
            assert_row(both, row, length, x, cache, out, state)
            assert_close(last[row, 0], out[row, length - 1])
        else:
            assert torch.equal(state.key[row].mT, cache[0][row])
            assert torch.equal(state.value[row], cache[1][row])


@pytest.mark.parametrize("forms", ["xla_cpu"], indirect=True)
@pytest.mark.parametrize(("scores", "large"), [(1, 2**30), (500, 2**30), (2**30, 0)])
@pytest.mark.parametrize("case", CASES[:2])
def test_blocks_and_few_queries(pair, case, scores, large, monkeypatch):
    """What XLA:CPU's form does for long prompts, and for large caches: here both for small ones."""
    monkeypatch.setattr(in_blocks, "_SCORES", scores)
    monkeypatch.setattr(in_blocks, "_LARGE", large)
    both = pair(case, "full_attention")
    cache = random_cache(both)
    for tokens in (1, 2, 24):
        x = both.inputs(len(SEEN), tokens)
        out, state = run(both, x, *cache)
        for row in range(len(SEEN)):
            assert_row(both, row, tokens, x, cache, out, state)
