"""Rows of a batched pytree as values: put one in a slot, take one out, give a state more room."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..xla.devices import indices
from .stacked_layers import like
from .state import AttentionState, DeltaNetState, State


def put_row(tree: Any, row: Any, slot: Tensor) -> Any:
    """`tree` with row `slot` (int64 [1]) of every tensor replaced by `row`'s only one.

    Donate `tree` and the other rows are not copied.
    """
    return pytree.tree_map(lambda old, new: old.index_copy(0, slot, new), tree, row)


def take_row(tree: Any, slot: Tensor) -> Any:
    """Row `slot` (int64 [1]) of every tensor, as a batch of one; or n of them, [n] for a batch."""
    return pytree.tree_map(lambda tensor: tensor.index_select(0, slot), tree)


def recurrent_part(state: State) -> tuple[Tensor, tuple[DeltaNetState, ...]]:
    """What of a state is not a token's own: the RoPE offset and the DeltaNet layers."""
    layers = tuple(layer for layer in state.layers if isinstance(layer, DeltaNetState))
    return state.rope_offset, layers


def kv_window(state: State, start: Tensor, width: int) -> tuple[AttentionState, ...]:
    """Keys and values of tokens start to start + width - 1, for each attention layer.

    Args:
        state: of any batch.
        start: int32 [1], at most capacity - width.
        width: static.
    """
    index = (start + indices(width, start.device)).to(torch.int64)
    return tuple(
        AttentionState(layer.key.index_select(3, index), layer.value.index_select(2, index))
        for layer in state.layers
        if isinstance(layer, AttentionState)
    )


def grow(state: State, capacity: int) -> State:
    """The state with room for `capacity` tokens per row: what follows is the same to rounding.

    Raises:
        ValueError: it has room for more already.
    """
    present = state.capacity
    if present is None or capacity == present:
        return state
    if capacity < present:
        raise ValueError(f"a state of capacity {present} can't shrink to {capacity}")

    def wider(layer: DeltaNetState | AttentionState) -> DeltaNetState | AttentionState:
        if isinstance(layer, DeltaNetState):
            return layer
        more = capacity - present
        return AttentionState(F.pad(layer.key, (0, more)), F.pad(layer.value, (0, 0, 0, more)))

    return state._replace(layers=like(state.layers, [wider(layer) for layer in state.layers]))
