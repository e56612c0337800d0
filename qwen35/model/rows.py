"""Rows of a batched pytree as values: put one in a slot, take one out, give a state more room."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..checks.values import as_integer, integer, shown
from ..sharding import spmd
from ..xla.devices import at_once, device_put, indices
from .all_ranks import on_all_ranks
from .params import Params
from .stacked_layers import StackedLayers, map_field, map_rows
from .state import AttentionState, DeltaNetState, State

_LOST = 2**30  # a position that no capacity reaches


def put_row(tree: Any, row: Any, slot: Tensor, here: Tensor | None = None) -> Any:
    """`tree` with row `slot` (int64 [1]) of every tensor replaced by `row`'s only one.

    Donate `tree` and the other rows are not copied.

    Args:
        here: bool [1], whether it is; None is yes.
    """

    def put(axis: int, old: Tensor, new: Tensor) -> Tensor:
        if here is not None:
            new = torch.where(here, new, old.index_select(axis, slot))
        return old.index_copy(axis, slot, new)

    return map_rows(put, tree, row)


def take_row(tree: Any, slot: Tensor) -> Any:
    """Row `slot` (int64 [1]) of every tensor, as a batch of one; or n of them, [n] for a batch."""
    return map_rows(lambda axis, tensor: tensor.index_select(axis, slot), tree)


@on_all_ranks(True)
def take_state(params: Params, state: State, slot: Tensor) -> State:
    """`take_row` of a state, of all ranks as well; of several dp rows each takes some of its own:
    `slot` says where they stand there."""
    return take_row(state, slot)


def recurrent_part(state: State) -> tuple[Tensor, tuple[DeltaNetState, ...]]:
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
        start: int32 [1], at most capacity - width; of all ranks of several dp rows the same [dp].
        width: static.
    """
    index = (start + indices(width, start.device)).to(torch.int64)
    return tuple(
        AttentionState(layer.key.index_select(3, index), layer.value.index_select(2, index))
        for layer in state.layers
        if isinstance(layer, AttentionState)
    )


def take(state: State, rows: int | Sequence[int]) -> State:
    """The state of some of its rows, in this order, or of one; a row may come several times.

    A state is a value, so taking a row twice forks it.

    Raises:
        ValueError: no row, one that is not there, or the state of all ranks at once.
    """
    if isinstance(state.layers, StackedLayers):
        raise ValueError("this is the state of all ranks at once: its rows can't be taken out")
    wanted = [rows] if as_integer(rows) is not None else rows
    if not isinstance(wanted, Iterable):
        raise ValueError(f"rows must be row numbers, not {shown(rows)}")
    chosen = [integer("rows", row, 0, state.batch - 1) for row in wanted]
    if not chosen:
        raise ValueError("rows is empty: a state has at least one")
    device = state.position.device
    index = device_put(torch.tensor(chosen), device.type)
    return at_once(device, lambda: take_row(state, index))


def repeat(state: State, times: int) -> State:
    """The state with each row `times` times, one after the other: one prompt for many answers.

    Raises:
        ValueError: as `take`, or `times` is no positive integer.
    """
    times = integer("times", times)
    return take(state, [row for row in range(state.batch) for _ in range(times)])


def stack(states: Sequence[State]) -> State:
    """The rows of several states as one, in this order.

    Raises:
        ValueError: no state, capacities or models that differ (`grow` gives a state more room), or
            a state of all ranks at once.
    """
    if not states:
        raise ValueError("there is no state to stack")
    if any(isinstance(state.layers, StackedLayers) for state in states):
        raise ValueError("a state of all ranks at once can't be stacked with others")
    shapes = {tuple((*t.shape[1:], t.dtype) for t in pytree.tree_leaves(state)) for state in states}
    if len(shapes) > 1:
        capacities = sorted({str(state.capacity) for state in states})
        raise ValueError(
            f"states of one model and one capacity stack, not of capacities {', '.join(capacities)}"
            " or of several models: grow gives a state more room"
        )
    return at_once(
        states[0].position.device,
        lambda: pytree.tree_map(lambda *rows: torch.cat(rows), *states),
    )


def grow(state: State, capacity: int) -> State:
    """The state with room for `capacity` tokens per row: what follows is the same to rounding.

    A row that had passed its capacity stays beyond any: its newest tokens are nowhere.

    Raises:
        ValueError: it has room for more already.
    """
    present = state.capacity
    if present is None or capacity == present:
        return state
    if capacity < present:
        raise ValueError(f"a state of capacity {present} can't shrink to {capacity}")
    more = capacity - present

    def padded() -> Any:
        layers = state.layers
        for name, padding in (("key", (0, more)), ("value", (0, 0, 0, more))):
            layers = map_field(layers, name, functools.partial(_padded, padding=padding))
        lost = torch.where(state.position > present, _LOST, state.position)
        return state._replace(position=spmd.split_like(lost, state.position), layers=layers)

    return at_once(state.position.device, padded)


def _padded(tensor: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Pads a tensor, of all ranks too, with zeros behind."""
    return spmd.split_like(F.pad(tensor, padding), tensor)
