"""The decoding state: a pytree of DeltaNet matrices and KV caches, a value like any other."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch.utils import _pytree as pytree

from ..checks.values import check_fits, integer
from ..sharding import spmd
from ..sharding.mesh import Mesh
from ..xla.devices import at_once, on_xla_cpu
from . import reprs
from .all_ranks import kept_layers
from .config import Config
from .config_fields import FULL
from .declarations import Units, axis_sizes, held_units
from .params import Params


class DeltaNetState(NamedTuple):
    """conv [B, K-1, C]: the last projections before the convolution; recurrent [B, Hv, Dk, Dv].

    `conv` has the parameters' dtype, `recurrent` is float32 always. For bfloat16 the forms of
    XLA:CPU keep its bits, as int16 (`forms.stored`).
    """

    conv: torch.Tensor
    recurrent: torch.Tensor

    def __repr__(self) -> str:
        return reprs.of_layer(self)


class AttentionState(NamedTuple):
    """key [B, Hkv, D, capacity] after RoPE, value [B, Hkv, capacity, D]; parameters' dtype.

    For bfloat16 the forms of XLA:CPU keep the bits, as int16 (`forms.stored`).
    Keys are stored transposed: the layout that the score product reads in order.
    """

    key: torch.Tensor
    value: torch.Tensor

    def __repr__(self) -> str:
        return reprs.of_layer(self)


class State(NamedTuple):
    """The state of B sequences.

    position [B] int32: tokens seen. rope_offset [B] int32: what the next text token's RoPE
    position has beyond `position` (images advance positions by less than their tokens).
    layers: per layer a `DeltaNetState` or an `AttentionState`.
    """

    position: torch.Tensor
    rope_offset: torch.Tensor
    layers: Sequence[DeltaNetState | AttentionState]

    def __repr__(self) -> str:
        if not isinstance(self.position, torch.Tensor):  # declarations
            return reprs.of_tree(self, self.layers)
        return reprs.of_tree(self, self.layers, batch=self.batch, capacity=self.capacity)

    @property
    def batch(self) -> int:
        """Sequences in the state."""
        return self.position.shape[0]

    @property
    def capacity(self) -> int | None:
        """Tokens that the KV caches hold; None for a model without attention layers."""
        return capacity_of(self.layers)


def capacity_of(layers: Sequence[DeltaNetState | AttentionState]) -> int | None:
    """`State.capacity`, of its layers: TorchDynamo knows no properties of a NamedTuple."""
    for layer in layers:
        if isinstance(layer, AttentionState):
            return layer.value.shape[2]
    return None


@dataclass(frozen=True)
class StateTensor:
    """The declaration of one tensor of the state; its first dimension is the batch.

    Attributes:
        dims: the others, each the units that stand side by side in it, or None for the capacity.
        dtype: its own, or None for the parameters'.
    """

    dims: tuple[tuple[Units, ...] | None, ...] = ()
    dtype: torch.dtype | None = None

    @property
    def axis(self) -> str:
        """The logical axes that the tensor is split along, or "replicated"."""
        axes = [units.axis for dim in self.dims for units in dim or () if units.axis]
        return " + ".join(dict.fromkeys(axes)) or "replicated"

    @property
    def grows(self) -> bool:
        """Whether its size depends on the capacity."""
        return None in self.dims

    def shape(
        self, sizes: dict[str, int], mesh: Mesh | None, rank: int, batch: int, capacity: int
    ) -> tuple[int, ...]:
        """The shape that a rank holds of `batch` rows; `sizes` are those of `axis_sizes`."""

        def length(dim: tuple[Units, ...] | None) -> int:
            if dim is None:
                return capacity
            return sum(len(held_units(units, sizes, mesh, rank)) * units.size for units in dim)

        return (batch, *map(length, self.dims))


@functools.cache
def declare_state(config: Config) -> State:
    """The state's tree with a `StateTensor` declaration for every tensor."""
    size = Units(None, config.head_dim)
    kv_heads = Units("kv_heads", config.num_key_value_heads)
    key_size, value_size = config.linear_key_head_dim, config.linear_value_head_dim
    keys = Units("key_heads", config.linear_num_key_heads, key_size)
    values = Units("value_heads", config.linear_num_value_heads, value_size)
    value_heads = Units("value_heads", config.linear_num_value_heads)
    attention = AttentionState(
        key=_declared((kv_heads,), (size,), None), value=_declared((kv_heads,), None, (size,))
    )
    deltanet = DeltaNetState(
        conv=_declared((Units(None, config.linear_conv_kernel_dim - 1),), (keys, keys, values)),
        recurrent=_declared(
            *((value_heads,), (Units(None, key_size),), (Units(None, value_size),)),
            dtype=torch.float32,
        ),
    )
    count = _declared(dtype=torch.int32)
    layers = (attention if kind == FULL else deltanet for kind in config.layer_types)
    return State(count, count, tuple(layers))


def _declared(*dims: tuple[Units, ...] | None, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A declaration where the tree has a tensor."""
    return cast(torch.Tensor, StateTensor(dims, dtype))


def abstract_state(params: Params, batch: int, capacity: int) -> State:
    """The shapes and dtypes of a rank's state, as tensors on the meta device.

    Every rank's are alike; `batch` counts the rows of one.
    """
    mesh, rank = params.runtime.mesh, params.runtime.rank or 0
    dtype = params.forms.state_dtype(params.dtype)
    return _abstract(params.config, mesh, rank, dtype, batch, capacity)


@functools.lru_cache(maxsize=64)  # an eager step checks its state against it
def _abstract(
    config: Config, mesh: Mesh | None, rank: int, dtype: torch.dtype, batch: int, capacity: int
) -> State:
    sizes = axis_sizes(config)

    def empty(tensor: StateTensor) -> torch.Tensor:
        shape = tensor.shape(sizes, mesh, rank, batch, capacity)
        return torch.empty(shape, dtype=tensor.dtype or dtype, device="meta")

    return pytree.tree_map(empty, declare_state(config))


def state_bytes(config: Config, dtype: torch.dtype) -> tuple[int, int]:
    """Count the bytes of a sequence's DeltaNet states, and of keys and values for each token."""
    fixed = growing = 0
    for tensor in pytree.tree_leaves(declare_state(config).layers):
        values = (sum(u.count * u.size for u in dim) for dim in tensor.dims if dim is not None)
        size = math.prod(values) * (tensor.dtype or dtype).itemsize
        fixed, growing = (fixed, growing + size) if tensor.grows else (fixed + size, growing)
    return fixed, growing


def init_state(params: Params, batch: int, capacity: int) -> State:
    """The empty state of `batch` sequences of at most `capacity` tokens, on params' device.

    Raises:
        ValueError: batch or capacity is no positive integer, or memory holds no such state.
    """
    batch, capacity = integer("batch", batch), integer("capacity", capacity)
    mesh = params.runtime.mesh
    if params.device.type == "cpu" or (params.device.type == "xla" and on_xla_cpu()):
        fixed, growing = state_bytes(params.config, params.dtype)
        check_fits("the state", batch * (fixed + growing * capacity) // (mesh.tp if mesh else 1))
    if mesh is None or params.runtime.rank is not None:
        shapes, device = abstract_state(params, batch, capacity), params.device
        return at_once(device, lambda: _zeros(shapes, device))
    if batch % mesh.dp:
        raise ValueError(f"a batch of {batch} rows can't be split evenly over dp = {mesh.dp}")
    share = _zeros(abstract_state(params, batch // mesh.dp, capacity), torch.device("cpu"))
    share = share._replace(layers=kept_layers(share.layers, params.runtime))
    return spmd.stack([share] * mesh.size, mesh)


def _zeros(state: State, device: torch.device) -> State:
    return pytree.tree_map(lambda tensor: torch.zeros_like(tensor, device=device), state)
