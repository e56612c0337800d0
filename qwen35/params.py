"""Parameters: one declaration per tensor, and the pytree that holds the tensors.

`declare(config)` builds the tree once with `Parameter` declarations as leaves. Initialisation,
loading, saving, sharding and counting are all maps over that tree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from .config import FULL, Config
from .devices import device_put
from .pytree import register_frozen
from .sharding.layout import local_units
from .sharding.mesh import Mesh

KERNELS = ("auto", "portable", "nki", "emulator")


@dataclass(frozen=True)
class Runtime:
    """Static choices: they select a graph and never change results beyond rounding.

    Attributes:
        mesh: how tensors are split over ranks; None is a single device.
        rank: this program's place in the mesh.
        kernels: "auto" (NKI exactly when the device is Neuron and `nki` imports), "portable"
            (torch operations), "nki", or "emulator" (the NKI kernels run on the host by the
            emulator: slow, for checking).
        chunk: tokens that the DeltaNet prefill handles as one block.
    """

    mesh: Mesh | None = None
    rank: int = 0
    kernels: str = "auto"
    chunk: int = 64

    def __post_init__(self) -> None:
        if self.kernels not in KERNELS:
            raise ValueError(f"kernels must be one of {KERNELS}, not {self.kernels!r}")
        if not isinstance(self.chunk, int) or not 1 <= self.chunk <= 1024:
            raise ValueError(f"chunk must be an integer from 1 to 1024, not {self.chunk!r}")
        size = 1 if self.mesh is None else self.mesh.size
        if not isinstance(self.rank, int) or not 0 <= self.rank < size:
            raise ValueError(f"rank {self.rank!r} is outside a mesh of {size} ranks")


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
    """

    pieces: tuple[Piece, ...]
    transposed: bool = False
    dtype: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The full, unsplit shape."""
        return self.local_shape({}, None, 0)

    def local_shape(self, sizes: dict[str, int], mesh: Mesh | None, rank: int) -> tuple[int, ...]:
        """The shape that a rank holds; `sizes` as `axis_sizes(config)` gives them."""
        shapes = [
            [len(held_units(dim, sizes, mesh, rank)) * dim.size for dim in piece.dims]
            for piece in self.pieces
        ]
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))


def held_units(
    dim: Units, sizes: dict[str, int], mesh: Mesh | None, rank: int
) -> tuple[int | None, ...]:
    """The units of a dimension that a rank holds; None stands for a padded, zero unit."""
    if mesh is None or mesh.tp == 1 or dim.axis is None:
        return tuple(range(dim.count))
    return local_units(dim.axis, sizes, mesh, rank)


class DeltaNetLayer(NamedTuple):
    """A gated DeltaNet block. Shapes unsplit; K taps, C = 2·key_dim + value_dim channels.

    input_norm [H], in_proj [H, C + value_dim + 2·Hv] (query | key | value | z | b | a),
    conv [K, C], a_log [Hv] and dt_bias [Hv] (always fp32), norm [Dv], out_proj [value_dim, H],
    post_norm [H], gate_up [H, 2·I], down [I, H].
    """

    input_norm: Any
    in_proj: Any
    conv: Any
    a_log: Any
    dt_bias: Any
    norm: Any
    out_proj: Any
    post_norm: Any
    gate_up: Any
    down: Any


class AttentionLayer(NamedTuple):
    """A gated grouped-query attention block. Shapes unsplit; D = head_dim.

    input_norm [H], in_proj [H, (2·Hq + 2·Hkv)·D] (query | gate | key | value), q_norm [D],
    k_norm [D], out_proj [Hq·D, H], post_norm [H], gate_up [H, 2·I], down [I, H].
    """

    input_norm: Any
    in_proj: Any
    q_norm: Any
    k_norm: Any
    out_proj: Any
    post_norm: Any
    gate_up: Any
    down: Any


@dataclass(frozen=True, eq=False)
class Params:
    """All parameters, a frozen pytree whose static context is `config` and `runtime`.

    Attributes:
        embed: [V, H], or None when the head is tied: then `head` serves both.
        layers: per layer a `DeltaNetLayer` or an `AttentionLayer`.
        norm: the final norm [H].
        head: [H, V].
        vision: the vision tower's parameters, or None.
        config: the model's configuration.
        runtime: static choices.
    """

    embed: Any
    layers: tuple[DeltaNetLayer | AttentionLayer, ...]
    norm: Any
    head: Any
    vision: Any
    config: Config
    runtime: Runtime

    def with_runtime(self, **changes: Any) -> Params:
        """The same tensors with other static choices, e.g. `with_runtime(chunk=128)`."""
        return dataclasses.replace(self, runtime=dataclasses.replace(self.runtime, **changes))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, of hidden states and of the KV cache."""
        return self.head.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.head.device


# A None leaf would reach functions mapped over the tree, so absent parts are not children.
_CHILDREN = ("embed", "layers", "norm", "head", "vision")


def _present(params: Params) -> tuple[str, ...]:
    return tuple(name for name in _CHILDREN if getattr(params, name) is not None)


def _flatten(params: Params) -> tuple[list[Any], Any]:
    names = _present(params)
    return [getattr(params, name) for name in names], (names, params.config, params.runtime)


def _flatten_with_keys(params: Params) -> tuple[list[Any], Any]:
    children, context = _flatten(params)
    return [
        (pytree.GetAttrKey(name), child) for name, child in zip(context[0], children, strict=True)
    ], context


def _unflatten(children: Any, context: Any) -> Params:
    names, config, runtime = context
    fields = dict.fromkeys(_CHILDREN) | dict(zip(names, children, strict=True))
    return Params(**fields, config=config, runtime=runtime)


pytree.register_pytree_node(
    Params,
    _flatten,
    _unflatten,
    serialized_type_name="qwen35.Params",
    flatten_with_keys_fn=_flatten_with_keys,
)
register_frozen(Params)


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
    return sizes


def declare(config: Config, runtime: Runtime = Runtime()) -> Params:
    """The parameter tree with a `Parameter` declaration for every tensor."""
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
        head=Parameter((Piece(output, (hidden, vocab)),), transposed=True),
        vision=None,
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
        in_proj=Parameter(
            (*(Piece(qkv, (hidden, part)) for part in (query, key, value)), *gates),
            transposed=True,
        ),
        conv=Parameter(
            tuple(Piece(conv, (Units(None, taps), part)) for part in (query, key, value)),
            transposed=True,
        ),
        a_log=_vector(mixer + "A_log", scalar, "log_uniform", torch.float32),
        dt_bias=_vector(mixer + "dt_bias", scalar, "ones", torch.float32),
        norm=_vector(mixer + "norm.weight", Units(None, value_size), "ones"),
        out_proj=_linear(mixer + "out_proj.weight", inner, hidden),
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
        in_proj=Parameter(
            (
                Piece(q_proj, (hidden, query)),
                Piece(q_proj, (hidden, gate)),
                Piece(key, (hidden, kv)),
                Piece(value, (hidden, kv)),
            ),
            transposed=True,
        ),
        q_norm=_vector(mixer + "q_norm.weight", norm, "zeros"),
        k_norm=_vector(mixer + "k_norm.weight", norm, "zeros"),
        out_proj=_linear(mixer + "o_proj.weight", Units("query_heads", heads, size), hidden),
        **_mlp(config, prefix),
    )


def _mlp(config: Config, prefix: str) -> dict[str, Parameter]:
    hidden = Units(None, config.hidden_size)
    inner = Units("mlp", config.intermediate_size)
    shape = (inner.count, hidden.count)
    return {
        "post_norm": _vector(prefix + "post_attention_layernorm.weight", hidden, "zeros"),
        "gate_up": Parameter(
            tuple(
                Piece(Source(prefix + f"mlp.{name}_proj.weight", shape), (hidden, inner))
                for name in ("gate", "up")
            ),
            transposed=True,
        ),
        "down": _linear(prefix + "mlp.down_proj.weight", inner, hidden),
    }


def _linear(name: str, rows: Units, columns: Units) -> Parameter:
    shape = (columns.count * columns.size, rows.count * rows.size)
    return Parameter((Piece(Source(name, shape), (rows, columns)),), transposed=True)


def _vector(name: str, dim: Units, init: str, dtype: torch.dtype | None = None) -> Parameter:
    source = Source(name, (dim.count * dim.size,), init)
    return Parameter((Piece(source, (dim,)),), dtype=dtype)


def map_declarations(function: Callable[[Parameter], Any], declared: Params) -> Params:
    """The tree with `function(declaration)` in every declaration's place."""
    return pytree.tree_map(function, declared)


def declarations(declared: Params) -> Iterator[Parameter]:
    """Every declaration of the tree, in tree order."""
    yield from pytree.tree_leaves(declared)


def count_parameters(config: Config) -> int:
    """Values in all tensors that the configuration declares; a tied head counts once."""
    return sum(math.prod(parameter.shape) for parameter in declarations(declare(config)))


def materialize(
    parameter: Parameter,
    read: Callable[[Source], Any],
    dtype: torch.dtype,
    sizes: dict[str, int],
    runtime: Runtime,
) -> torch.Tensor:
    """Builds a rank's tensor from the checkpoint's tensors.

    Args:
        parameter: the declaration.
        read: gives the checkpoint's tensor of a source: anything that slices like a tensor of
            the source's shape (a safetensors slice reads only what is asked for).
        dtype: dtype of the result unless the declaration fixes one.
        sizes: units per logical axis (`axis_sizes`).
        runtime: mesh and rank.

    Returns:
        A new CPU tensor; padded units are zero. Nothing but the result is allocated.
    """
    shape = parameter.local_shape(sizes, runtime.mesh, runtime.rank)
    result = torch.zeros(shape, dtype=parameter.dtype or dtype)
    column = 0
    for piece in parameter.pieces:
        source = read(piece.source)
        held = [held_units(dim, sizes, runtime.mesh, runtime.rank) for dim in piece.dims]
        width = len(held[-1]) * piece.dims[-1].size
        target = result.narrow(-1, column, width)
        column += width
        _copy_blocks(parameter, piece, held, source, target)
    return result


def _copy_blocks(
    parameter: Parameter,
    piece: Piece,
    held: list[tuple[int | None, ...]],
    source: Any,
    target: torch.Tensor,
) -> None:
    runs = [_runs(dim, units) for dim, units in zip(piece.dims, held, strict=True)]
    if len(runs) == 1:
        for ours, theirs, length in runs[0]:
            target[ours : ours + length].copy_(source[theirs : theirs + length])
        return
    for row, file_row, rows in runs[0]:
        for column, file_column, columns in runs[1]:
            block = target[row : row + rows, column : column + columns]
            if parameter.transposed:
                block.copy_(_file_block(piece, source, file_column, columns, file_row, rows).T)
            else:
                block.copy_(_file_block(piece, source, file_row, rows, file_column, columns))


def _file_block(
    piece: Piece, source: Any, start: int, length: int, inner_start: int, inner_length: int
) -> torch.Tensor:
    """Rows and flattened columns of a checkpoint tensor; partial columns need two dimensions."""
    if len(piece.source.shape) == 2:
        return source[start : start + length, inner_start : inner_start + inner_length]
    return source[start : start + length].reshape(length, -1)


def _runs(dim: Units, units: tuple[int | None, ...]) -> list[tuple[int, int, int]]:
    """Adjacent units merged: (our start, the checkpoint's start, length), padding left out."""
    runs: list[tuple[int, int, int]] = []
    for place, unit in enumerate(units):
        if unit is None:
            continue
        ours, theirs = place * dim.size, dim.file_index(unit)
        if runs and (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]) == (ours, theirs):
            start, file_start, length = runs[-1]
            runs[-1] = (start, file_start, length + dim.size)
        else:
            runs.append((ours, theirs, dim.size))
    return runs


def dematerialize(
    parameter: Parameter, tensor: torch.Tensor
) -> Iterator[tuple[Source, torch.Tensor]]:
    """The inverse of `materialize` on one device: the checkpoint's tensors of a parameter."""
    files: dict[Source, torch.Tensor] = {}
    column = 0
    for piece in parameter.pieces:
        last = piece.dims[-1]
        width = last.count * last.size
        ours = tensor.narrow(-1, column, width)
        column += width
        file = files.setdefault(piece.source, torch.empty(piece.source.shape, dtype=tensor.dtype))
        matrix = file.view(file.shape[0], -1).T if parameter.transposed else file
        for start, file_start, length in _runs(last, tuple(range(last.count))):
            matrix[..., file_start : file_start + length] = ours[..., start : start + length]
    yield from files.items()


def init_params(
    config: Config,
    *,
    seed: int = 0,
    dtype: torch.dtype | str = torch.float32,
    device: str = "cpu",
    runtime: Runtime = Runtime(),
) -> Params:
    """Random parameters of the text model, as transformers initialises them.

    Args:
        config: the model's configuration; a vision tower is left out.
        seed: seeds every tensor by its name, so a rank's share equals the slice of the whole.
        dtype: float32 or bfloat16; `a_log` and `dt_bias` are float32 always.
        device: "cpu" or "xla".
        runtime: static choices; with a mesh, only this rank's share is kept.

    Returns:
        The parameter tree.
    """
    dtype = as_dtype(dtype)
    declared = declare(dataclasses.replace(config, vision=None), runtime)
    sizes = axis_sizes(config)

    def build(parameter: Parameter) -> torch.Tensor:
        def read(source: Source) -> torch.Tensor:
            return _initial(source, seed, config.initializer_range)

        return device_put(materialize(parameter, read, dtype, sizes, runtime), device)

    return map_declarations(build, declared)


def _initial(source: Source, seed: int, scale: float) -> torch.Tensor:
    if source.init == "zeros":
        return torch.zeros(source.shape)
    if source.init == "ones":
        return torch.ones(source.shape)
    digest = hashlib.sha256(f"{seed}:{source.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    values = torch.empty(source.shape)
    if source.init == "log_uniform":
        return values.uniform_(0.01, 16, generator=generator).log_()
    return values.normal_(0, scale, generator=generator)


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """`float32` or `bfloat16`, as a torch dtype or by name.

    Raises:
        ValueError: any other dtype.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    resolved = known.get(dtype) if isinstance(dtype, str) else dtype
    if resolved not in known.values():
        raise ValueError(f"dtype must be float32 or bfloat16, not {dtype!r}")
    return resolved
