"""Weights that stay as their files have them: a leaf of the parameter tree from stored integers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ...forms import JoinedWeight, QuantizedWeight, packed
from ..blocks import blocks, copy_rows, copy_transposed

# Consecutive indices: where ours start, where the file's do, how many.
Run = tuple[int, int, int]

_KINDS = {torch.uint8: "int4", torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


class Stored(Protocol):
    """What is read of a `QuantizedFile`."""

    shape: tuple[int, int]
    group: int
    by_inputs: bool

    def codes(self, rows: range, columns: range) -> Tensor:
        """As `QuantizedFile.codes`."""

    @property
    def pairs(self) -> Callable[[range, range], Tensor] | None:
        """As `QuantizedFile.pairs`."""

    @property
    def scales(self) -> Tensor:
        """As `QuantizedFile.scales`."""

    @property
    def zeros(self) -> Tensor | None:
        """As `QuantizedFile.zeros`."""


def leaf(
    file: Stored,
    inputs: Sequence[Run],
    outputs: Sequence[Run],
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> QuantizedWeight:
    """A rank's part of a quantised weight, on the CPU, with the file's own codes.

    A group that the rank's share begins or ends in becomes smaller ones of equal scales. What no
    run names is zero.

    Args:
        file: the weight [out, in].
        inputs, outputs: what the rank holds of it.
        shape: of the result, [K, N].
        dtype: of the matrix that the result stands for.
    """
    group = shared_group(file.group, file.shape[1], inputs, shape[0])
    sizes = (math.ceil(shape[0] / group), shape[1])
    scales = torch.zeros(sizes)
    zeros = None if file.zeros is None else torch.zeros(sizes, dtype=torch.int8)
    for ours, theirs, length in inputs:
        groups = torch.arange(theirs, theirs + length, group) // file.group
        mine = slice(ours // group, ours // group + len(groups))
        for column, row, count in outputs:
            scales[mine, column : column + count] = file.scales[row : row + count, groups].T
            if zeros is not None and file.zeros is not None:
                zeros[mine, column : column + count] = file.zeros[row : row + count, groups].T
    values = _values(file, inputs, outputs, shape)
    kind = _KINDS[values.dtype]
    usual = 8 if kind == "int4" else 0
    if file.zeros is not None and bool((file.zeros == usual).all()):  # of all ranks alike
        zeros = None
    return QuantizedWeight(values, scales, zeros, group, dtype, kind)


def _values(
    file: Stored, inputs: Sequence[Run], outputs: Sequence[Run], shape: tuple[int, int]
) -> Tensor:
    """The values of a `QuantizedWeight`, read a block at a time."""
    read, per = file.codes, 1
    # Pairs of 4 bits are read as they stand, unless a share begins or ends within one.
    if file.pairs is not None and all(number % 2 == 0 for run in inputs for number in run):
        read, per = file.pairs, 2
    values: Tensor | None = None
    for ours, theirs, length in inputs:
        for column, row, count in outputs:
            for down, height, across, width in blocks(count, length, file.by_inputs):
                first, left = row + down, theirs + across
                block = read(range(first, first + height), range(left, left + width))
                if values is None:
                    values = torch.zeros(shape[0] // per, shape[1], dtype=torch.uint8)
                    values = values.view(block.dtype)
                start = (ours + across) // per
                room = values[start : start + width // per, column + down : column + down + height]
                if file.by_inputs:
                    copy_rows(room, block.T)
                else:
                    copy_transposed(room, block)
    if values is None:  # heads that are padding alone, which scales of 0 make 0
        values = torch.zeros(shape[0] // per, shape[1], dtype=torch.uint8)
        values = values.view(read(range(1), range(per)).dtype)
    return packed(values) if file.pairs is not None and per == 1 else values


def joined(parts: Sequence[Tensor | QuantizedWeight]) -> Tensor | QuantizedWeight | JoinedWeight:
    """The matrices side by side as one weight; neighbours that are stored alike become one."""
    merged = [_merged(list(alike)) for _, alike in itertools.groupby(parts, _kind)]
    return merged[0] if len(merged) == 1 else JoinedWeight(tuple(merged))


def shared_group(group: int, file_inputs: int, inputs: Sequence[Run], length: int) -> int:
    """The largest group of which all parts that a rank holds are made up.

    Args:
        group: that of the file.
        file_inputs: of the whole weight.
        inputs: what the rank holds.
        length: of the rank's weight, padding among it.
    """
    if group >= file_inputs:
        return length
    cuts = [group]
    for ours, theirs, count in inputs:
        cuts += [ours, theirs]
        if theirs + count < file_inputs or ours + count < length:
            cuts.append(count)
    return math.gcd(*cuts)


def _kind(part: Tensor | QuantizedWeight) -> tuple:
    if isinstance(part, Tensor):
        return (part.dtype,)
    return part.values.dtype, part.group, part.zeros is None


def _merged(parts: list[Tensor | QuantizedWeight]) -> Tensor | QuantizedWeight:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(parts, dim=1)

    def together(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=1)

    zeros = None if first.zeros is None else together("zeros")
    return replace(first, values=together("values"), scales=together("scales"), zeros=zeros)
