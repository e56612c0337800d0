"""From checkpoint tensors to ours and back, random initialisation, and shapes without tensors."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .. import forms
from ..forms import Weight
from ..model.all_ranks import load_all_ranks
from ..model.config import Config
from ..model.declarations import (
    VISION_PREFIX,
    Parameter,
    Piece,
    Source,
    Units,
    axis_sizes,
    declare,
    held_units,
    map_declarations,
)
from ..model.params import Params, Runtime, as_dtype
from ..xla.devices import device_put

_BLOCK = 2**22  # values


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
        A new CPU tensor; padded units are zero. Beside it only a block of a few MB is allocated.
    """
    shape = parameter.local_shape(sizes, runtime.mesh, runtime.own_rank)
    result = torch.zeros(shape, dtype=parameter.dtype or dtype)
    widths = parameter.local_widths(sizes, runtime.mesh, runtime.own_rank)
    for piece, target in zip(parameter.pieces, result.split(widths, -1), strict=True):
        held = [held_units(dim, sizes, runtime.mesh, runtime.own_rank) for dim in piece.dims]
        _copy_blocks(parameter, piece, held, read(piece.source), target)
    return result


def place(
    parameter: Parameter, tensor: torch.Tensor, device: str, runtime: Runtime
) -> torch.Tensor | Weight:
    """The parameter's tensor on "cpu" or "xla", stored as the runtime's forms want it there."""
    if parameter.linear:
        return forms.get(runtime.forms).place(tensor, device)
    return device_put(tensor, device)


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
    if parameter.transposed:
        target, runs = target.T, runs[::-1]
    for row, file_row, rows in runs[0]:
        for column, file_column, columns in runs[1]:
            step = max(1, _BLOCK // columns)  # keeps what is read at once small
            for start in range(0, rows, step):
                length = min(step, rows - start)
                block = target[row + start : row + start + length, column : column + columns]
                file_start = file_row + start
                block.copy_(_file_block(piece, source, file_start, length, file_column, columns))


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
    """The inverse of `materialize` on one device: the checkpoint's tensors of a parameter, of which
    `tensor` is the value on the CPU."""
    files: dict[Source, torch.Tensor] = {}
    widths = parameter.local_widths({}, None, 0)
    for piece, ours in zip(parameter.pieces, tensor.split(widths, -1), strict=True):
        last = piece.dims[-1]
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
    """Random parameters, as transformers initialises them.

    Args:
        config: the model's configuration; `config.text_only()` leaves a vision tower out.
        seed: seeds every tensor by its name, so a rank's share equals the slice of the whole.
        dtype: float32 or bfloat16; `a_log` and `dt_bias` are float32 always.
        device: "cpu" or "xla".
        runtime: static choices; with a mesh, only this rank's share is kept.

    Returns:
        The parameter tree.
    """
    dtype = as_dtype(dtype)
    if runtime.rank is None:
        build_rank = functools.partial(init_params, config, seed=seed, dtype=dtype)
        return load_all_ranks(lambda rank: build_rank(runtime=rank), runtime, device)
    runtime = runtime.on(device)
    declared = declare(config, runtime)
    sizes = axis_sizes(config)

    def build(parameter: Parameter) -> torch.Tensor | Weight:
        @functools.cache  # one checkpoint tensor can serve several pieces
        def read(source: Source) -> torch.Tensor:
            of_tower = config.vision if source.name.startswith(VISION_PREFIX) else None
            return _initial(source, seed, (of_tower or config).initializer_range)

        tensor = materialize(parameter, read, dtype, sizes, runtime)
        return place(parameter, tensor, device, runtime)

    return with_tp_index(map_declarations(build, declared), device)


def abstract_params(
    config: Config, *, dtype: torch.dtype | str = torch.bfloat16, runtime: Runtime = Runtime()
) -> Params:
    """Declares a rank's parameters on the meta device: shapes and dtypes, no memory.

    Args:
        config: the model, with its vision tower if it has one.
        dtype: float32 or bfloat16; `a_log` and `dt_bias` are float32 always.
        runtime: with a mesh, the shapes are this rank's.

    Raises:
        ValueError: the mesh can't split the model, or an unknown dtype.
    """
    dtype, sizes = as_dtype(dtype), axis_sizes(config)

    def abstract(parameter: Parameter) -> torch.Tensor:
        shape = parameter.local_shape(sizes, runtime.mesh, runtime.own_rank)
        return torch.empty(shape, dtype=parameter.dtype or dtype, device="meta")

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
