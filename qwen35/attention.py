"""Gated grouped-query attention over a KV cache of fixed capacity."""

from __future__ import annotations

import torch
from torch import Tensor

from .devices import indices
from .norms import rms_norm
from .params import AttentionLayer, Params
from .rope import apply_rope
from .state import AttentionState


def attention(
    params: Params,
    layer: AttentionLayer,
    state: AttentionState,
    x: Tensor,
    rope: tuple[Tensor, Tensor],
    position: Tensor,
    lengths: Tensor | None,
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

    Returns:
        A rank's partial sum [B, T, H], and the new cache.
    """
    config = params.config
    size = config.head_dim
    tokens = x.shape[1]
    kv_heads = state.key.shape[1]
    heads = layer.out_proj.shape[0] // size

    projected = (x @ layer.in_proj).unflatten(-1, (-1, size))
    query, gate, key, value = projected.split([heads, heads, kv_heads, kv_heads], dim=2)
    query = apply_rope(rms_norm(query, layer.q_norm, config.rms_norm_eps), *rope)
    key = apply_rope(rms_norm(key, layer.k_norm, config.rms_norm_eps), *rope)
    state = _append(state, key, value, position, lengths)

    # Queries of one KV head side by side: [B, Hkv, group * T, D], tokens innermost.
    group = heads // kv_heads
    query = (query * size**-0.5).unflatten(2, (kv_heads, group))
    query = query.permute(0, 2, 3, 1, 4).reshape(-1, kv_heads, group * tokens, size)
    scores = (query @ state.key).float().unflatten(2, (group, tokens))
    slot = indices(state.key.shape[-1], x.device)
    last = position[:, None] + indices(tokens, x.device)
    visible = slot <= last[:, :, None]  # [B, T, capacity]
    weights = torch.where(visible[:, None, None], scores, float("-inf")).softmax(-1).to(x.dtype)
    out = weights.flatten(2, 3) @ state.value
    out = out.unflatten(2, (group, tokens)).permute(0, 3, 1, 2, 4).flatten(2, 3)
    out = out * gate.float().sigmoid().to(x.dtype)
    return out.flatten(2) @ layer.out_proj, state


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
    slots = (start[:, None] + step).to(torch.int64)  # [B, W]
    token = step - (position - start)[:, None]
    fresh = (token >= 0) & (token < lengths[:, None])
    token = token.clamp(0, tokens - 1).to(torch.int64)

    def aligned(new: Tensor) -> Tensor:  # [B, T, H, D] -> [B, H, W, D]
        index = token[:, :, None, None].expand(-1, -1, *new.shape[2:])
        return new.gather(1, index).transpose(1, 2)

    in_key = slots[:, None, None, :].expand(-1, *state.key.shape[1:3], -1)
    in_value = in_key.transpose(2, 3)
    keep_key, keep_value = state.key.gather(3, in_key), state.value.gather(2, in_value)
    new_key = torch.where(fresh[:, None, None, :], aligned(key).transpose(2, 3), keep_key)
    new_value = torch.where(fresh[:, None, :, None], aligned(value), keep_value)
    return AttentionState(
        state.key.scatter(3, in_key, new_key), state.value.scatter(2, in_value, new_value)
    )
