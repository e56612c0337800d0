"""From checkpoint tensors to ours and back, random initialisation, and shapes without tensors."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils import _pytree as pytree

import qwen35.forms as forms

from ..checks.choices import BLOCKS
from ..checks.values import check_fits
from ..forms import Weight
from ..forms.quantizing import group_of
from ..model.all_ranks import load_all_ranks
from ..model.config import Config
from ..model.declarations import (
    VISION_PREFIX,
    Parameter,
    Piece,
    Source,
    Units,
    axis_sizes,
    declarations,
    declare,
    held_units,
    map_declarations,
)
from ..model.dtypes import as_dtype
from ..model.params import Params, Runtime
from ..xla.devices import device_put, on_xla_cpu
from .blocks import blocks, copy_rows, copy_transposed
from .quantized.choice import kind_of
from .quantized.compressed import Coded
from .quantized.kept import joined, leaf, shared_group

_WORKERS = 4


def materialize(
    parameter: Parameter,
    read: Callable[[Source], Any],
    dtype: torch.dtype,
    sizes: dict[str, int],
    runtime: Runtime,
    device: str = "cpu",
) -> torch.Tensor | Weight:
    """Builds a rank's tensor from the checkpoint's tensors.

    Args:
        parameter: the declaration.
        read: gives the checkpoint's tensor of a source: anything that slices like a tensor of
            the source's shape (a safetensors slice reads only what is asked for).
        dtype: dtype of the result unless the declaration fixes one.
        sizes: units per logical axis (`axis_sizes`).
        runtime: mesh and rank.
        device: "cpu" or "xla".

    Returns:
        A tensor of the rank's shape on the device, or a weight that is stored as the runtime's
        forms want it there; padded units are zero. It is written once, where it stays (on other
        devices than the processor, in a tensor of the host that is then sent there). Beside it
        only a block of a few MB is allocated.
    """
    shape = parameter.local_shape(sizes, runtime.mesh, runtime.own_rank)

    def write(target: torch.Tensor) -> None:
        shares = _shares(parameter, sizes, runtime)
        widths = [width for *_, width in shares]
        for (piece, held, _), part in zip(shares, target.split(widths, -1), strict=True):
            if any(None in units for units in held):
                part.zero_()
            _copy_blocks(parameter, piece, held, read(piece.source), part)

    form = forms.get(runtime.forms if parameter.linear else "plain")
    return form.store(shape, parameter.dtype or dtype, device, write)


def keep(
    parameter: Parameter,
    read: Callable[[Source], Any],
    dtype: torch.dtype,
    sizes: dict[str, int],
    runtime: Runtime,
    device: str = "cpu",
) -> torch.Tensor | Weight:
    """Builds a rank's weight as `materialize` does, its quantised parts as the checkpoint has them.

    Arguments and errors are those of `materialize`.
    """
    sources = [read(piece.source) for piece in parameter.pieces]
    if not parameter.linear or not any(source.quantized for source in sources):
        return materialize(parameter, read, dtype, sizes, runtime, device)
    inputs, _ = parameter.local_shape(sizes, runtime.mesh, runtime.own_rank)
    parts: list[torch.Tensor | forms.QuantizedWeight] = []
    shares = _shares(parameter, sizes, runtime)
    for (piece, held, width), source in zip(shares, sources, strict=True):
        if source.quantized:
            down, across = (_runs(*pair) for pair in zip(piece.dims, held, strict=True))
            parts.append(leaf(source, down, across, (inputs, width), dtype))
        else:
            part = torch.zeros(inputs, width, dtype=dtype)
            _copy_blocks(parameter, piece, held, source, part)
            parts.append(part)
    return forms.get(runtime.forms).place(joined(parts), device)


def build_all(build: Callable[[Parameter], torch.Tensor | Weight], declared: Params) -> Params:
    """The tree with `build(declaration)` in every declaration's place, several made at once.

    A core that converts does not read meanwhile, nor send to a device: threads share the work, the
    largest tensors first, so that none is left alone with one at the end.
    """
    parameters, structure = pytree.tree_flatten(declared)
    order = sorted(range(len(parameters)), key=lambda i: -math.prod(parameters[i].shape))
    with ThreadPoolExecutor(min(_WORKERS, len(os.sched_getaffinity(0)))) as pool:
        built = dict(zip(order, pool.map(build, [parameters[i] for i in order]), strict=True))
    return pytree.tree_unflatten([built[i] for i in range(len(parameters))], structure)


def values_to_read(
    parameter: Parameter, sizes: dict[str, int], runtime: Runtime
) -> Iterator[tuple[Source, int]]:
    """Each piece's source, and how many of its values `materialize` reads for a rank."""
    for piece, held, _ in _shares(parameter, sizes, runtime):
        runs = map(_runs, piece.dims, held)
        yield piece.source, math.prod(sum(length for *_, length in run) for run in runs)


def copied_runs(
    parameter: Parameter, sizes: dict[str, int], runtime: Runtime
) -> Iterator[tuple[Piece, list[list[tuple[int, int, int]]]]]:
    """Each piece, and which of a checkpoint's indices a rank copies from it: for each dimension of
    the parameter (first of ours, first of the checkpoint's, how many). The rest of a rank's tensor
    is padding, zero."""
    start = 0
    for piece, held, width in _shares(parameter, sizes, runtime):
        *rows, columns = map(_runs, piece.dims, held)
        yield piece, [*rows, [(start + ours, theirs, length) for ours, theirs, length in columns]]
        start += width


def _shares(
    parameter: Parameter, sizes: dict[str, int], runtime: Runtime
) -> list[tuple[Piece, list[Sequence[int | None]], int]]:
    """Each piece with the units that a rank holds of its dimensions, and its width there."""
    mesh, rank = runtime.mesh, runtime.own_rank
    return [
        (piece, [held_units(dim, sizes, mesh, rank) for dim in piece.dims], width)
        for piece, width in zip(
            parameter.pieces, parameter.local_widths(sizes, mesh, rank), strict=True
        )
    ]


def _copy_blocks(
    parameter: Parameter,
    piece: Piece,
    held: list[Sequence[int | None]],
    source: Any,
    target: torch.Tensor,
) -> None:
    runs = [_runs(dim, units) for dim, units in zip(piece.dims, held, strict=True)]
    if len(runs) == 1:
        for ours, theirs, length in runs[0]:
            target[ours : ours + length].copy_(source[theirs : theirs + length])
        return
    if parameter.transposed:
        target, runs = target.T, runs[::-1]
    by_columns = getattr(source, "by_inputs", False)
    for row, file_row, rows in runs[0]:
        for column, file_column, columns in runs[1]:
            for down, height, across, width in blocks(rows, columns, by_columns):
                first, left = row + down, column + across
                part = target[first : first + height, left : left + width]
                block = _file_block(
                    piece, source, file_row + down, height, file_column + across, width
                )
                if parameter.transposed:
                    copy_transposed(part.T, block)
                else:
                    copy_rows(part, block)


def _file_block(
    piece: Piece, source: Any, start: int, length: int, inner_start: int, inner_length: int
) -> torch.Tensor:
    """Rows and flattened columns of a checkpoint tensor; partial columns need two dimensions."""
    if len(piece.source.shape) == 2:
        return source[start : start + length, inner_start : inner_start + inner_length]
    return source[start : start + length].reshape(length, -1)


def _runs(dim: Units, units: Sequence[int | None]) -> list[tuple[int, int, int]]:
    """Adjacent units merged: (our start, the checkpoint's start, length), padding left out."""
    if units == range(dim.count) and dim.stride in (0, dim.size):
        return [(0, dim.start, dim.count * dim.size)]  # a vocabulary has many units
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
    parameter: Parameter, weight: torch.Tensor | Weight
) -> Iterator[tuple[Source, torch.Tensor | Coded]]:
    """The inverse of `materialize` and `keep` on one device: the checkpoint's tensors of a
    parameter, of which `weight` is the value on the CPU. What is quantised comes as codes."""
    widths = parameter.local_widths({}, None, 0)
    starts = itertools.accumulate(widths, initial=0)
    pieces: dict[Source, list[Piece]] = {}
    parts: dict[Source, list[torch.Tensor | forms.QuantizedWeight]] = {}
    for piece, start, width in zip(parameter.pieces, starts, widths, strict=False):
        pieces.setdefault(piece.source, []).append(piece)
        part = forms.between(weight, start, start + width)
        parts.setdefault(piece.source, []).append(part)
    for source, ours in parts.items():
        dims = [piece.dims[-1] for piece in pieces[source]]
        tensors = [part for part in ours if isinstance(part, torch.Tensor)]
        if tensors:
            file = torch.empty(source.shape, dtype=tensors[0].dtype)
            _put(file.view(file.shape[0], -1).T if parameter.transposed else file, dims, tensors)
            yield source, file
        else:
            yield (
                source,
                _coded([part for part in ours if isinstance(part, forms.QuantizedWeight)], dims),
            )


def _coded(parts: Sequence[forms.QuantizedWeight], dims: Sequence[Units]) -> Coded:
    """A checkpoint's tensor of which these are the columns, as codes."""
    outputs = sum(part.shape[1] for part in parts)

    def in_file_order(columns: Sequence[torch.Tensor]) -> torch.Tensor:
        table = torch.empty(outputs, len(columns[0]), dtype=columns[0].dtype)
        _put(table.T, dims, columns)
        return table

    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Coded(
        in_file_order([forms.codes(part) for part in parts]),
        in_file_order([part.scales for part in parts]),
        in_file_order(zeros) if zeros else None,
        parts[0].group,
    )


def _put(matrix: torch.Tensor, dims: Sequence[Units], parts: Sequence[torch.Tensor]) -> None:
    """Copies columns that stand in our order to where a checkpoint has them."""
    for dim, ours in zip(dims, parts, strict=True):
        for start, file_start, length in _runs(dim, range(dim.count)):
            matrix[..., file_start : file_start + length] = ours[..., start : start + length]


def init_params(
    config: Config,
    *,
    seed: int = 0,
    dtype: torch.dtype | str = torch.float32,
    device: str = "cpu",
    runtime: Runtime = Runtime(),
) -> Params:
    """Random parameters, as transformers initialises them.

    Args:
        config: the model's configuration; `config.text_only()` leaves a vision tower out.
        seed: seeds every tensor by its name, so a rank's share equals the slice of the whole.
        dtype: float32 or bfloat16; `a_log` and `dt_bias` are float32 always.
        device: "cpu" or "xla".
        runtime: static choices; with a mesh, only this rank's share is kept.

    Returns:
        The parameter tree.

    Raises:
        ValueError: this machine's memory holds no such parameters.
    """
    dtype = as_dtype(dtype)
    if runtime.rank is None:
        build_rank = functools.partial(init_params, config, seed=seed, dtype=dtype)
        return load_all_ranks(lambda rank: build_rank(runtime=rank), runtime, device)
    runtime = runtime.on(device)
    declared = declare(config, runtime)
    sizes = axis_sizes(config)
    needed = 4 * max(  # of each tensor's whole, one after the other
        math.prod(piece.source.shape)
        for parameter in declarations(declared)
        for piece in parameter.pieces
    )
    if device == "cpu" or on_xla_cpu():
        needed += sum(
            math.prod(parameter.local_shape(sizes, runtime.mesh, runtime.own_rank))
            * (parameter.dtype or dtype).itemsize
            for parameter in declarations(declared)
        )
    check_fits("the parameters", needed)

    def build(parameter: Parameter) -> torch.Tensor | Weight:
        @functools.cache  # one checkpoint tensor can serve several pieces
        def read(source: Source) -> torch.Tensor:
            of_tower = config.vision if source.name.startswith(VISION_PREFIX) else None
            return _initial(source, seed, (of_tower or config).initializer_range)

        return materialize(parameter, read, dtype, sizes, runtime, device)

    return with_tp_index(map_declarations(build, declared), device)


def abstract_params(
    config: Config,
    *,
    dtype: torch.dtype | str = torch.bfloat16,
    runtime: Runtime = Runtime(),
    weights: str | None = None,
    head: str | None = None,
) -> Params:
    """Declares a rank's parameters on the meta device: shapes and dtypes, no memory.

    Args:
        config: the model, with its vision tower if it has one.
        dtype: float32 or bfloat16; `a_log` and `dt_bias` are float32 always.
        runtime: with a mesh, the shapes are this rank's.
        weights, head: how `load` is to quantise a dense checkpoint, or `checks.choices.BLOCKS`.

    Raises:
        ValueError: the mesh can't split the model, or an unknown dtype.
    """
    dtype, sizes = as_dtype(dtype), axis_sizes(config)

    def abstract(parameter: Parameter) -> torch.Tensor | Weight:
        shape = parameter.local_shape(sizes, runtime.mesh, runtime.own_rank)
        kinds = [kind_of(parameter, piece, weights, head) for piece in parameter.pieces]
        if not any(kinds):
            return torch.empty(shape, dtype=parameter.dtype or dtype, device="meta")
        widths = parameter.local_widths(sizes, runtime.mesh, runtime.own_rank)
        parts = []
        for piece, kind, width in zip(parameter.pieces, kinds, widths, strict=True):
            dim = piece.dims[0]
            runs = _runs(dim, held_units(dim, sizes, runtime.mesh, runtime.own_rank))
            inputs = piece.source.shape[1]
            group = group_of(kind, inputs) if kind else inputs
            group = shared_group(group, inputs, runs, shape[0])
            stored = "fp8" if kind == BLOCKS else kind
            parts.append(forms.Part(width, stored, group if kind else 0))
        return forms.abstract(shape[0], parts, dtype)

    params = map_declarations(abstract, declare(config, runtime.on("meta")))
    if runtime.mesh is None or runtime.mesh.tp == 1:
        return params
    index = torch.empty(1, dtype=torch.int32, device="meta")
    return dataclasses.replace(params, tp_index=index)


def with_tp_index(params: Params, device: str) -> Params:
    """The parameters with their rank's place among those that share the tensors, as data."""
    mesh = params.runtime.mesh
    if mesh is None or mesh.tp == 1:
        return params
    index = torch.tensor([mesh.coordinates(params.runtime.own_rank)[1]], dtype=torch.int32)
    return dataclasses.replace(params, tp_index=device_put(index, device))


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
