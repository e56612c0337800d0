"""One declaration per tensor: shape, logical axes and place in the checkpoint.

`declare(config)` builds the parameter tree once with `Parameter` declarations as leaves.
Initialisation, loading, saving, sharding and counting are all maps over that tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..sharding.layout import check_split, local_units
from ..sharding.mesh import Mesh
from .config import FULL, Config, VisionConfig
from .params import (
    AttentionLayer,
    DeltaNetLayer,
    Params,
    Runtime,
    VisionBlock,
    VisionMerger,
    VisionParams,
)

VISION_PREFIX = "model.visual."  # of the tower's names in a checkpoint


@dataclass(frozen=True)
class Units:
    """One dimension of a tensor as `count` units of `size` consecutive indices.

    In the checkpoint's dimension unit u starts at `start + u * stride` (a stride of 0 stands for
    `size`: units without gaps); in ours units follow each other. `axis` is the logical axis that
    the mesh may split, None for a replicated dimension.
    """

    axis: str | None
    count: int
    size: int = 1
    start: int = 0
    stride: int = 0

    def file_index(self, unit: int) -> int:
        """Where the unit starts in the checkpoint's dimension."""
        return self.start + unit * (self.stride or self.size)


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint: its name in the text-only form, its shape, how it starts.

    `init` is "normal" (times the config's initializer_range), "zeros", "ones" or "log_uniform"
    (log of U(0.01, 16): DeltaNet's `A_log`).
    """

    name: str
    shape: tuple[int, ...]
    init: str = "normal"


@dataclass(frozen=True)
class Piece:
    """The part of a parameter that comes from one checkpoint tensor, dimensions in our order."""

    source: Source
    dims: tuple[Units, ...]


@dataclass(frozen=True)
class Parameter:
    """The declaration of one tensor: its pieces stand side by side along the last dimension.

    Attributes:
        pieces: what the tensor is made of.
        transposed: the checkpoint holds [out, in...]; ours is [in, out] with the trailing
            dimensions of the checkpoint flattened.
        dtype: the dtype whatever the caller asks for, or None for the caller's.
        linear: the weight of a linear map, read by the forms' products alone, which also say how
            it is stored.
    """

    pieces: tuple[Piece, ...]
    transposed: bool = False
    dtype: torch.dtype | None = None
    linear: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The full, unsplit shape."""
        return self.local_shape({}, None, 0)

    def local_shape(self, sizes: dict[str, int], mesh: Mesh | None, rank: int) -> tuple[int, ...]:
        """The shape that a rank holds; `sizes` as `axis_sizes(config)` gives them."""
        rows = (_held_length(dim, sizes, mesh, rank) for dim in self.pieces[0].dims[:-1])
        return (*rows, sum(self.local_widths(sizes, mesh, rank)))

    def local_widths(self, sizes: dict[str, int], mesh: Mesh | None, rank: int) -> list[int]:
        """How much of the last dimension each piece takes in a rank's tensor."""
        return [_held_length(piece.dims[-1], sizes, mesh, rank) for piece in self.pieces]


def _held_length(dim: Units, sizes: dict[str, int], mesh: Mesh | None, rank: int) -> int:
    return len(held_units(dim, sizes, mesh, rank)) * dim.size


def held_units(
    dim: Units, sizes: dict[str, int], mesh: Mesh | None, rank: int
) -> Sequence[int | None]:
    """The units of a dimension that a rank holds; None stands for a padded, zero unit."""
    if mesh is None or mesh.tp == 1 or dim.axis is None:
        return range(dim.count)
    return local_units(dim.axis, sizes, mesh, rank)


def axis_sizes(config: Config) -> dict[str, int]:
    """How many units each logical axis of the model has."""
    sizes = {
        "vocab": config.vocab_size,
        "mlp": config.intermediate_size,
        "query_heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "key_heads": config.linear_num_key_heads,
        "value_heads": config.linear_num_value_heads,
    }
    if config.vision is not None:
        sizes |= {
            "vision_heads": config.vision.num_heads,
            "vision_mlp": config.vision.intermediate_size,
            "vision_merger": config.vision.merge_factor * config.vision.hidden_size,
        }
    return sizes


def declare(config: Config, runtime: Runtime = Runtime()) -> Params:
    """The parameter tree with a `Parameter` declaration for every tensor.

    Raises:
        ValueError: the runtime's mesh can't split this model.
    """
    check_split(axis_sizes(config), runtime.mesh)
    hidden = Units(None, config.hidden_size)
    vocab = Units("vocab", config.vocab_size)
    embedding = Source("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    output = embedding if config.tie_word_embeddings else None
    output = output or Source("lm_head.weight", embedding.shape)
    embed = None
    if not config.tie_word_embeddings:
        embed = Parameter((Piece(embedding, (vocab, hidden)),))
    layers = tuple(
        _attention_layer(config, index) if kind == FULL else _deltanet_layer(config, index)
        for index, kind in enumerate(config.layer_types)
    )
    return Params(
        embed=embed,
        layers=layers,
        norm=_vector("model.norm.weight", hidden, "zeros"),
        head=_linear(Piece(output, (hidden, vocab))),
        vision=None if config.vision is None else declare_vision(config.vision, runtime),
        config=config,
        runtime=runtime,
    )


def _deltanet_layer(config: Config, index: int) -> DeltaNetLayer:
    prefix = f"model.layers.{index}."
    mixer = prefix + "linear_attn."
    hidden = Units(None, config.hidden_size)
    key_heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
    key_size, value_size = config.linear_key_head_dim, config.linear_value_head_dim
    channels, taps = config.conv_channels, config.linear_conv_kernel_dim
    query = Units("key_heads", key_heads, key_size)
    key = Units("key_heads", key_heads, key_size, start=config.key_dim)
    value = Units("value_heads", value_heads, value_size, start=2 * config.key_dim)
    inner = Units("value_heads", value_heads, value_size)
    scalar = Units("value_heads", value_heads)

    qkv = Source(mixer + "in_proj_qkv.weight", (channels, config.hidden_size))
    conv = Source(mixer + "conv1d.weight", (channels, 1, taps))
    gates = [
        Piece(
            Source(mixer + f"in_proj_{name}.weight", (units.count * units.size, hidden.count)),
            (hidden, units),
        )
        for name, units in (("z", inner), ("b", scalar), ("a", scalar))
    ]
    return DeltaNetLayer(
        input_norm=_vector(prefix + "input_layernorm.weight", hidden, "zeros"),
        in_proj=_linear(*(Piece(qkv, (hidden, part)) for part in (query, key, value)), *gates),
        conv=Parameter(
            tuple(Piece(conv, (Units(None, taps), part)) for part in (query, key, value)),
            transposed=True,
        ),
        a_log=_vector(mixer + "A_log", scalar, "log_uniform", torch.float32),
        dt_bias=_vector(mixer + "dt_bias", scalar, "ones", torch.float32),
        norm=_vector(mixer + "norm.weight", Units(None, value_size), "ones"),
        out_proj=_matrix(mixer + "out_proj.weight", inner, hidden),
        **_mlp(config, prefix),
    )


def _attention_layer(config: Config, index: int) -> AttentionLayer:
    prefix = f"model.layers.{index}."
    mixer = prefix + "self_attn."
    hidden = Units(None, config.hidden_size)
    size, heads = config.head_dim, config.num_attention_heads
    query = Units("query_heads", heads, size, stride=2 * size)
    gate = Units("query_heads", heads, size, start=size, stride=2 * size)
    kv = Units("kv_heads", config.num_key_value_heads, size)
    q_proj = Source(mixer + "q_proj.weight", (2 * heads * size, config.hidden_size))
    key, value = (
        Source(mixer + f"{name}_proj.weight", (kv.count * size, config.hidden_size))
        for name in "kv"
    )
    norm = Units(None, size)
    return AttentionLayer(
        input_norm=_vector(prefix + "input_layernorm.weight", hidden, "zeros"),
        in_proj=_linear(
            Piece(q_proj, (hidden, query)),
            Piece(q_proj, (hidden, gate)),
            Piece(key, (hidden, kv)),
            Piece(value, (hidden, kv)),
        ),
        q_norm=_vector(mixer + "q_norm.weight", norm, "zeros"),
        k_norm=_vector(mixer + "k_norm.weight", norm, "zeros"),
        out_proj=_matrix(mixer + "o_proj.weight", Units("query_heads", heads, size), hidden),
        **_mlp(config, prefix),
    )


def _mlp(config: Config, prefix: str) -> dict[str, Parameter]:
    hidden = Units(None, config.hidden_size)
    inner = Units("mlp", config.intermediate_size)
    shape = (inner.count, hidden.count)
    return {
        "post_norm": _vector(prefix + "post_attention_layernorm.weight", hidden, "zeros"),
        "gate_up": _linear(
            *(
                Piece(Source(prefix + f"mlp.{name}_proj.weight", shape), (hidden, inner))
                for name in ("gate", "up")
            )
        ),
        "down": _matrix(prefix + "mlp.down_proj.weight", inner, hidden),
    }


def declare_vision(config: VisionConfig, runtime: Runtime) -> VisionParams:
    """The vision tower's tree with a `Parameter` declaration for every tensor."""
    prefix = VISION_PREFIX
    hidden = Units(None, config.hidden_size)
    frames, side = config.temporal_patch_size, config.patch_size
    patch = Units(None, config.patch_dim)
    kernel = (config.hidden_size, config.in_channels, frames, side, side)
    positions = Source(
        prefix + "pos_embed.weight", (config.num_position_embeddings, config.hidden_size)
    )
    wide = Units(None, config.merge_factor * config.hidden_size)
    inner = Units("vision_merger", wide.count)
    merger = prefix + "merger."
    return VisionParams(
        patch_proj=Parameter(
            (Piece(Source(prefix + "patch_embed.proj.weight", kernel), (patch, hidden)),),
            transposed=True,
        ),
        patch_bias=_vector(prefix + "patch_embed.proj.bias", hidden, "zeros"),
        positions=Parameter(
            (Piece(positions, (Units(None, config.num_position_embeddings), hidden)),)
        ),
        blocks=tuple(_vision_block(config, index) for index in range(config.depth)),
        merger=VisionMerger(
            *_layer_norm(merger + "norm", hidden),
            *_biased(merger + "linear_fc1", wide, inner),
            *_biased(merger + "linear_fc2", inner, Units(None, config.out_hidden_size)),
        ),
        config=config,
        runtime=runtime,
    )


def _vision_block(config: VisionConfig, index: int) -> VisionBlock:
    prefix = f"{VISION_PREFIX}blocks.{index}."
    hidden = Units(None, config.hidden_size)
    heads = Units("vision_heads", config.num_heads, config.head_dim)
    inner = Units("vision_mlp", config.intermediate_size)
    weight = Source(prefix + "attn.qkv.weight", (3 * config.hidden_size, config.hidden_size))
    bias = Source(prefix + "attn.qkv.bias", (3 * config.hidden_size,), "zeros")
    # query | key | value, so a rank takes its heads from each of the three
    parts = [
        Units(heads.axis, heads.count, heads.size, start=part * config.hidden_size)
        for part in range(3)
    ]
    return VisionBlock(
        *_layer_norm(prefix + "norm1", hidden),
        _linear(*(Piece(weight, (hidden, part)) for part in parts)),
        Parameter(tuple(Piece(bias, (part,)) for part in parts)),
        *_biased(prefix + "attn.proj", heads, hidden),
        *_layer_norm(prefix + "norm2", hidden),
        *_biased(prefix + "mlp.linear_fc1", hidden, inner),
        *_biased(prefix + "mlp.linear_fc2", inner, hidden),
    )


def _biased(name: str, rows: Units, columns: Units) -> tuple[Parameter, Parameter]:
    """A linear map and its bias."""
    return _matrix(name + ".weight", rows, columns), _vector(name + ".bias", columns, "zeros")


def _layer_norm(name: str, dim: Units) -> tuple[Parameter, Parameter]:
    return _vector(name + ".weight", dim, "ones"), _vector(name + ".bias", dim, "zeros")


def _matrix(name: str, rows: Units, columns: Units) -> Parameter:
    shape = (columns.count * columns.size, rows.count * rows.size)
    return _linear(Piece(Source(name, shape), (rows, columns)))


def _linear(*pieces: Piece) -> Parameter:
    """A weight that the checkpoint holds as [out, in]."""
    return Parameter(pieces, transposed=True, linear=True)


def _vector(name: str, dim: Units, init: str, dtype: torch.dtype | None = None) -> Parameter:
    source = Source(name, (dim.count * dim.size,), init)
    return Parameter((Piece(source, (dim,)),), dtype=dtype)


def map_declarations(function: Callable[[Parameter], Any], declared: Params) -> Params:
    """The tree with `function(declaration)` in every declaration's place."""
    return pytree.tree_map(function, declared)


def declarations(declared: Params) -> Iterator[Parameter]:
    """Every declaration of the tree, in tree order."""
    yield from pytree.tree_leaves(declared)
