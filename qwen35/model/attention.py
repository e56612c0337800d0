"""Gated grouped-query attention over a KV cache of fixed capacity."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.loop import loop_map, tracked
from ..kernels.reductions import max_last, sum_last
from ..kernels.thin import is_thin, thin_matmul
from ..xla.devices import indices
from .linear import has_forms_of_xla_cpu, linear
from .norms import rms_norm
from .params import AttentionLayer, Params
from .rope import apply_rope
from .state import AttentionState
from .tokens import last_token

_SCORES = 5 * 2**20  # of all heads that exist at a time: 20 MiB
_LARGE = 2**21  # bytes of a layer's values, from which a loop over them outweighs its start


def attention(
    params: Params,
    layer: AttentionLayer,
    state: AttentionState,
    x: Tensor,
    rope: tuple[Tensor, Tensor],
    position: Tensor,
    lengths: Tensor | None,
    last_only: bool = False,
) -> tuple[Tensor, AttentionState]:
    """Writes T tokens into the cache and attends to it.

    Args:
        params: for the configuration.
        layer: this layer's parameters.
        state: this layer's cache.
        x: [B, T, H], normed.
        rope: cosines and sines [B, T, rotary_dim / 2].
        position: tokens already in the cache, [B].
        lengths: valid tokens per row, or None when all are.
        last_only: all tokens are written, but only each row's last one attends.

    Returns:
        A rank's partial sum [B, T, H], or [B, 1, H] if `last_only`, and the new cache.
    """
    config = params.config
    size = config.head_dim
    kv_heads = state.key.shape[1]
    heads = layer.out_proj.shape[0] // size

    counts = [heads, heads, kv_heads, kv_heads]
    projected = linear(x, layer.in_proj, sum(counts) * size).unflatten(-1, (-1, size))
    query, gate, key, value = projected.split(counts, dim=2)
    # Queries and keys at once: half the kernels to compile.
    norms = torch.cat([layer.q_norm.expand(heads, -1), layer.k_norm.expand(kv_heads, -1)])
    normed = rms_norm(torch.cat([query, key], dim=2), norms, config.rms_norm_eps)
    query, key = apply_rope(normed, *rope).split([heads, kv_heads], dim=2)
    state = _append(state, key, value, position, lengths)

    last_slot = position[:, None] + indices(x.shape[1], x.device)  # that each token sees
    if last_only:
        query, gate, last_slot = (last_token(t, lengths) for t in (query, gate, last_slot))
    thin = has_forms_of_xla_cpu(layer.out_proj, x.shape[-1])
    out = _attend(query * size**-0.5, state, last_slot, thin)
    out = out * gate.float().sigmoid().to(x.dtype)
    return linear(out.flatten(2), layer.out_proj, x.shape[-1]), state


def _attend(query: Tensor, state: AttentionState, last_slot: Tensor, thin: bool) -> Tensor:
    """Softmax attention of queries [B, T, Hq, D] over the cache's slots up to `last_slot` [B, T].

    Scores exist for a block of queries at a time: they stay in a processor's cache, and a long
    context takes the memory of one block. `thin` allows `thin_matmul`.
    """
    tokens, heads, size = query.shape[1:]
    kv_heads, capacity = state.value.shape[1:3]
    thin = thin and _is_thin(query, state)
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
        scores = product(query.flatten(2, 3), key).float().unflatten(2, query.shape[2:4])
        scores = torch.where(visible, scores, float("-inf"))
        weights = (scores - max_last(scores)).exp()
        out = product(weights.to(value.dtype).flatten(2, 3), value)
        # Normalised last: D divisions a query, not one for each slot.
        out = out.float().unflatten(2, query.shape[2:4]) / sum_last(weights)
        return out.to(value.dtype)

    blocks = query.unflatten(2, (kv_heads, -1)).unflatten(1, (count, -1))
    blocks = blocks.permute(1, 0, 3, 4, 2, 5)  # [blocks, B, Hkv, group, T / blocks, D]
    last = last_slot.unflatten(1, (count, -1)).transpose(0, 1)
    out = loop_map(of_block, (state.key, state.value), (blocks, last))
    return out.permute(1, 0, 4, 2, 3, 5).reshape(-1, tokens, heads, size)


def _is_thin(query: Tensor, state: AttentionState) -> bool:
    """Whether `thin_matmul` gains, for the scores and for the sums of values: few queries [B, T,
    Hq, D] and many slots."""
    tokens, heads, size = query.shape[1:]
    kv_heads, capacity = state.value.shape[1:3]
    rows = tokens * heads // kv_heads
    fits = is_thin(rows, size, capacity) and is_thin(rows, capacity, size)
    return fits and state.value.nbytes >= _LARGE and not tracked(query, *state)


def _append(
    state: AttentionState, key: Tensor, value: Tensor, position: Tensor, lengths: Tensor | None
) -> AttentionState:
    """Writes row b's valid keys and values at position[b]...; padding writes nothing.

    The write is a window of min(T, capacity) slots, moved left where it would pass the end;
    slots of the window that take no valid token are written with what they hold.
    """
    tokens = key.shape[1]
    capacity = state.key.shape[-1]
    width = min(tokens, capacity)
    if lengths is None:
        lengths = torch.full_like(position, tokens)
    start = position.clamp(max=capacity - width)
    step = indices(width, key.device)
    slots = start[:, None] + step  # [B, W]
    token = step - (position - start)[:, None]
    fresh = (token >= 0) & (token < lengths[:, None])
    row = indices(key.shape[0], key.device)[:, None]
    source = (row * tokens + token.clamp(0, tokens - 1)).flatten()

    def aligned(new: Tensor) -> Tensor:  # [B, T, H, D] -> [B, W, H, D]
        return new.flatten(0, 1).index_select(0, source).unflatten(0, slots.shape)

    def written(cache: Tensor, new: Tensor) -> Tensor:
        """The cache [B, lines, capacity, ...] with the fresh of new [B, lines, W, ...].

        By indices into a flat cache: for `gather` and `scatter` along one dimension of several XLA
        writes down an index of all of them for every element.
        """
        batch, lines = cache.shape[:2]
        line = indices(batch * lines, cache.device).long().view(batch, lines, 1)
        index = (line * capacity + slots[:, None]).flatten()
        flat = cache.flatten(0, 2)
        kept = flat.index_select(0, index).view_as(new)
        new = torch.where(fresh.view(batch, 1, width, *[1] * (new.dim() - 3)), new, kept)
        return flat.index_copy(0, index, new.flatten(0, 2)).view_as(cache)

    new_key = aligned(key).permute(0, 2, 3, 1).flatten(1, 2)  # [B, H · D, W]
    new_value = aligned(value).transpose(1, 2)
    return AttentionState(
        written(state.key.flatten(1, 2), new_key).view_as(state.key),
        written(state.value, new_value),
    )
