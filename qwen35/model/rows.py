"""Rows of a batched pytree as values: put one in a slot, take one out, give a state more room."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sharding import spmd
from ..xla.devices import indices
from .all_ranks import on_all_ranks
from .params import Params
from .stacked_layers import map_field, map_rows
from .state import AttentionState, DeltaNetState, State


def put_row(tree: Any, row: Any, slot: Tensor) -> Any:
    """`tree` with row `slot` (int64 [1]) of every tensor replaced by `row`'s only one.

    Donate `tree` and the other rows are not copied.
    """
    return map_rows(lambda axis, old, new: old.index_copy(axis, slot, new), tree, row)


def take_row(tree: Any, slot: Tensor) -> Any:
    """Row `slot` (int64 [1]) of every tensor, as a batch of one; or n of them, [n] for a batch."""
    return map_rows(lambda axis, tensor: tensor.index_select(axis, slot), tree)


@on_all_ranks(True)
def take_state(params: Params, state: State, slot: Tensor) -> State:
    """`take_row` of a state, of all ranks as well; their mesh has one dp row."""
    return take_row(state, slot)


@on_all_ranks(True)
def recurrent_part(params: Params, state: State) -> tuple[Tensor, tuple[DeltaNetState, ...]]:
    """What of a state is not a token's own: the RoPE offset and the DeltaNet layers."""
    layers = tuple(layer for layer in state.layers if isinstance(layer, DeltaNetState))
    return state.rope_offset, layers


@on_all_ranks(True)
def kv_window(
    params: Params, state: State, start: Tensor, width: int
) -> tuple[AttentionState, ...]:
    """Keys and values of tokens start to start + width - 1, for each attention layer.

    Args:
        params: whose state it is.
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
    layers, more = state.layers, capacity - present
    for name, padding in (("key", (0, more)), ("value", (0, 0, 0, more))):
        layers = map_field(layers, name, functools.partial(_padded, padding=padding))
    return state._replace(layers=layers)


def _padded(tensor: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Pads a tensor, of all ranks too, with zeros behind."""
    return spmd.split_like(F.pad(tensor, padding), tensor)
