"""Gated grouped-query attention over a KV cache of fixed capacity."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..forms import Plain
from ..xla.devices import indices
from .norms import rms_norm
from .params import AttentionLayer, Params
from .rope import apply_rope
from .segments import SomeLayers
from .state import AttentionState
from .tokens import last_token


def attention(
    params: Params | SomeLayers,
    layer: AttentionLayer,
    state: AttentionState,
    projected: Tensor,
    rope: tuple[Tensor, Tensor],
    position: Tensor,
    lengths: Tensor | None,
    last_only: bool = False,
    see: Callable[..., None] | None = None,
) -> tuple[Tensor, AttentionState]:
    """Writes T tokens into the cache and attends to it.

    Args:
        params: for the configuration.
        layer: this layer's parameters.
        state: this layer's cache.
        projected: what `in_proj` makes of T normed tokens, [B, T, N].
        rope: cosines and sines [B, T, rotary_dim / 2].
        position: tokens already in the cache, [B].
        lengths: valid tokens per row, or None when all are.
        last_only: all tokens are written, but only each row's last one attends.
        see: is called with values inside, by their names.

    Returns:
        What `out_proj` takes, [B, T, Hq · D], or [B, 1, Hq · D] if `last_only`, and the new cache.
    """
    config, forms = params.config, params.forms
    size = config.head_dim
    kv_heads = state.key.shape[1]
    heads = layer.out_proj.shape[0] // size

    counts = [heads, heads, kv_heads, kv_heads]
    split = projected.unflatten(-1, (-1, size)).split(counts, dim=2)
    query, gate, key, value = split
    # Queries and keys at once: half the operations to compile.
    norms = torch.cat([layer.q_norm.expand(heads, -1), layer.k_norm.expand(kv_heads, -1)])
    normed = rms_norm(forms, torch.cat([query, key], dim=2), norms, config.rms_norm_eps)
    query, key = apply_rope(normed, *rope).split([heads, kv_heads], dim=2)
    state = _append(forms, state, key, value, position, lengths)

    last_slot = position[:, None] + indices(
        projected.shape[1], projected.device
    )  # that each token sees
    if last_only:
        query, gate, last_slot = (last_token(t, lengths) for t in (query, gate, last_slot))
    out = forms.attend(query * size**-0.5, state.key, state.value, last_slot)
    if see is not None:
        own = {"query": query, "key": key, "value": value, "read": out, "gate": gate}
        see(**own, keys=state.key, last_slot=last_slot)
    out = out * gate.float().sigmoid().to(projected.dtype)
    return out.flatten(2), state


def _append(
    forms: Plain,
    state: AttentionState,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    lengths: Tensor | None,
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
        new = forms.stored(new, state.key)
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
