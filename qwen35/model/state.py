"""The decoding state: a pytree of DeltaNet matrices and KV caches, a value like any other."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..sharding import spmd
from .all_ranks import stack_small
from .config import FULL
from .declarations import Units, axis_sizes, held_units
from .params import Params


class DeltaNetState(NamedTuple):
    """conv [B, K-1, C]: the last projections before the convolution; recurrent [B, Hv, Dk, Dv].

    `conv` has the parameters' dtype, `recurrent` is float32 always.
    """

    conv: torch.Tensor
    recurrent: torch.Tensor


class AttentionState(NamedTuple):
    """key [B, Hkv, D, capacity] after RoPE, value [B, Hkv, capacity, D]; parameters' dtype.

    Keys are stored transposed: the layout that the score product reads in order.
    """

    key: torch.Tensor
    value: torch.Tensor


class State(NamedTuple):
    """The state of B sequences.

    position [B] int32: tokens seen. rope_offset [B] int32: what the next text token's RoPE
    position has beyond `position` (images advance positions by less than their tokens).
    layers: per layer a `DeltaNetState` or an `AttentionState`.
    """

    position: torch.Tensor
    rope_offset: torch.Tensor
    layers: tuple[DeltaNetState | AttentionState, ...]

    @property
    def batch(self) -> int:
        """Sequences in the state."""
        return self.position.shape[0]

    @property
    def capacity(self) -> int | None:
        """Tokens that the KV caches hold; None for a model without attention layers."""
        for layer in self.layers:
            if isinstance(layer, AttentionState):
                return layer.value.shape[2]
        return None


def init_state(params: Params, batch: int, capacity: int) -> State:
    """The empty state of `batch` sequences of at most `capacity` tokens, on params' device.

    Raises:
        ValueError: batch or capacity is not a positive integer.
    """
    for name, value in (("batch", batch), ("capacity", capacity)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")
    mesh, rank = params.runtime.mesh, params.runtime.rank
    if rank is not None:
        return _empty(params, rank, batch, capacity, params.device)
    if batch % mesh.dp:
        raise ValueError(f"a batch of {batch} rows can't be split evenly over dp = {mesh.dp}")
    share = _empty(params, 0, batch // mesh.dp, capacity, torch.device("cpu"))
    share = share._replace(layers=stack_small(share.layers))
    return spmd.stack([share] * mesh.size, mesh)


def held_heads(params: Params, axis: str, rank: int) -> int:
    """How many heads of a logical axis, "kv_heads" for one, a rank has."""
    sizes = axis_sizes(params.config)
    return len(held_units(Units(axis, sizes[axis]), sizes, params.runtime.mesh, rank))


def _empty(params: Params, rank: int, batch: int, capacity: int, device: torch.device) -> State:
    """One rank's empty state; all ranks' are alike."""
    config = params.config

    def heads(axis: str) -> int:
        return held_heads(params, axis, rank)

    def zeros(*shape: int, dtype: torch.dtype = params.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    key_size, value_size = config.linear_key_head_dim, config.linear_value_head_dim
    value_heads, kv_heads = heads("value_heads"), heads("kv_heads")
    channels = 2 * heads("key_heads") * key_size + value_heads * value_size
    layers = []
    for kind in config.layer_types:
        if kind == FULL:
            key = zeros(batch, kv_heads, config.head_dim, capacity)
            layers.append(AttentionState(key, zeros(batch, kv_heads, capacity, config.head_dim)))
        else:
            conv = zeros(batch, config.linear_conv_kernel_dim - 1, channels)
            recurrent = zeros(batch, value_heads, key_size, value_size, dtype=torch.float32)
            layers.append(DeltaNetState(conv, recurrent))
    position = zeros(batch, dtype=torch.int32)
    return State(position, torch.zeros_like(position), tuple(layers))
