"""Softmax attention in blocks of scores that stay in a processor's cache.

Scores exist for a block of queries at a time, so that a long context, or a large picture, takes
the memory of one block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.loop import loop_map, tracked
from ...xla.devices import indices
from .reductions import max_last, sum_last
from .thin import WIDENED, is_thin, thin_matmul, widened

_SCORES = 5 * 2**20  # over a cache, of all heads that exist at a time: 20 MiB
_LARGE = 2**19  # numbers of a layer's values, from which a loop over them outweighs its start
# Within frames: queries and scores that attend at once, see `score_block`.
_FRAME_QUERIES, _FRAME_SCORES = 128, 2**18


def over_cache(query: Tensor, key: Tensor, value: Tensor, last_slot: Tensor) -> Tensor:
    """Softmax attention over a KV cache: `Plain.attend`, whose arguments and result these are."""
    dtype, query = query.dtype, query.float()
    tokens, heads, size = query.shape[1:]
    kv_heads, capacity = value.shape[1:3]
    thin = _takes_thin_products(query, key, value)
    if not thin:
        key, value = widened(key), widened(value)
    scores, count = query.shape[0] * tokens * heads * capacity, 1
    while not thin and scores // count > _SCORES and tokens % (2 * count) == 0:
        count *= 2

    def product(x: Tensor, cache: Tensor) -> Tensor:
        """x [B, Hkv, rows, K] @ cache [B, Hkv, K, N]."""
        if not thin:
            return x @ cache
        result = thin_matmul(x.flatten(0, 1), cache.flatten(0, 1), cache.shape[-1])
        return result.unflatten(0, x.shape[:2])

    def of_block(cache: tuple[Tensor, Tensor], block: tuple[Tensor, Tensor]) -> Tensor:
        key, value = cache
        query, last = block  # [B, Hkv, group, T, D], [B, T]
        visible = indices(capacity, key.device) <= last[:, None, None, :, None]
        # Queries of one KV head side by side: a product for each KV head.
        scores = product(query.flatten(2, 3), key).unflatten(2, query.shape[2:4])
        scores = torch.where(visible, scores, float("-inf"))
        weights = (scores - max_last(scores)).exp()
        out = product(weights.flatten(2, 3), value)
        # Normalised last: D divisions a query, not one for each slot.
        return out.unflatten(2, query.shape[2:4]) / sum_last(weights)

    blocks = query.unflatten(2, (kv_heads, -1)).unflatten(1, (count, -1))
    blocks = blocks.permute(1, 0, 3, 4, 2, 5)  # [blocks, B, Hkv, group, T / blocks, D]
    last = last_slot.unflatten(1, (count, -1)).transpose(0, 1)
    out = loop_map(of_block, (key, value), (blocks, last))
    return out.permute(1, 0, 4, 2, 3, 5).reshape(-1, tokens, heads, size).to(dtype)


def _takes_thin_products(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `thin_matmul` gains, for scores and for sums of values: few queries, many slots."""
    tokens, heads, size = query.shape[1:]
    kv_heads, capacity = value.shape[1:3]
    rows = tokens * heads // kv_heads
    fits = is_thin(rows, size, capacity) and is_thin(rows, capacity, size)
    large = value.dtype in WIDENED and value.numel() >= _LARGE
    return fits and large and not tracked(query, key, value)


def within_frames(query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
    """Softmax attention within frames: `Plain.attend_within`, whose arguments and result these are.

    Scores stand as [rows, keys, queries]: a quarter faster than [rows, queries, keys].
    """
    batch, length, heads = query.shape[:3]
    # Padding has the first patch's key, for the greatest score to be that of a valid one.
    key = torch.where(valid[..., None, None], key, key[:, :1])
    mask = torch.where(valid, 0.0, float("-inf")).T  # [P, 1], added to scores
    rows, queries = score_block(batch * heads, length)
    parts = (query.permute(0, 2, 3, 1), key.transpose(1, 2), value.permute(0, 2, 3, 1))
    xs = tuple(t.flatten(0, 1).unflatten(0, (-1, rows)) for t in parts)

    def of_rows(mask: Tensor, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        query, key, value = rows  # [rows, D, P], [rows, P, D], [rows, D, P]
        blocks = query.unflatten(2, (-1, queries)).permute(2, 0, 1, 3)
        out = loop_map(_of_block, (key, value, mask), blocks)  # [P / queries, rows, D, queries]
        return out.permute(1, 0, 3, 2).flatten(1, 2)

    out = loop_map(of_rows, mask, xs).flatten(0, 1)  # [F·heads, P, D]
    return out.unflatten(0, (batch, -1)).transpose(1, 2)


def score_block(rows: int, length: int) -> tuple[int, int]:
    """How many of the `rows` (a head of a frame each), and of their queries, attend at once.

    The `length` queries are halved until they are fewer than 2 * _FRAME_QUERIES, or odd; of the
    rows a divisor attends, as many as keep the scores with `length` keys within _FRAME_SCORES, at
    least one.
    """
    queries = length
    while queries >= 2 * _FRAME_QUERIES and queries % 2 == 0:
        queries //= 2
    fitting = _FRAME_SCORES // (queries * length)
    return next((n for n in range(min(rows, fitting), 1, -1) if rows % n == 0), 1), queries


def _of_block(shared: tuple[Tensor, Tensor, Tensor], query: Tensor) -> Tensor:
    """Softmax attention of queries [rows, D, Q], normalised last: that is cheaper, and exact."""
    key, value, mask = shared
    scores = (key @ query).float()
    weights = (scores - scores.amax(1, keepdim=True) + mask).exp().to(value.dtype)
    out = (value @ weights).float() / weights.float().sum(1, keepdim=True)
    return out.to(value.dtype)
