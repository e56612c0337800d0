"""Codes and scales of dense matrices: how int8, int4 and FP8 weights are made."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ..checks.choices import BLOCKS

GROUP = 128  # inputs that share a scale in "int4" and in blocks
_BLOCK = 2**20  # values at once


def group_of(kind: str, inputs: int) -> int:
    """Return how many of a matrix's inputs share a scale in a kind of `KINDS`, or in `BLOCKS`."""
    return GROUP if kind in ("int4", BLOCKS) else inputs


class Rows(Protocol):
    """A matrix, perhaps of a file."""

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Give some rows."""


class Codes(NamedTuple):
    """A matrix [out, in] as codes with scales.

    Attributes:
        values: [out, in]: int8, uint8 of 0 to 15 (of "int4", whose zeros are all 8) or
            float8_e4m3fn.
        scales: [out, groups] float32.
        group: consecutive inputs that share a scale.
    """

    values: Tensor
    scales: Tensor
    group: int


def encode(
    rows: Rows, shape: tuple[int, int], kind: str, scale_dtype: torch.dtype = torch.float32
) -> Codes:
    """Return a matrix [out, in], float32 or bfloat16, as codes, symmetric.

    "int8" and "fp8" have a scale for each output, "int4" one for `GROUP` inputs of it; the last
    group may be shorter. The error of an integer's value is at most half a scale.

    Args:
        rows: a tensor, or anything else that gives rows [n, in] when it is sliced.
        shape: [out, in].
        kind: one of `KINDS`.
        scale_dtype: of which the scales are numbers.
    """
    outputs, inputs = shape
    group = group_of(kind, inputs)
    count = -(-inputs // group)
    dtype = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.float8_e4m3fn}[kind]
    # Of 4 bits, codes -8 to 7: the largest is off by half a scale, not the others by more.
    steps = {"int8": 127.0, "int4": 7.5, "fp8": 448.0}[kind]
    lowest, highest = {"int8": (-127, 127), "int4": (-8, 7), "fp8": (-448, 448)}[kind]
    values, scales = torch.empty(shape, dtype=dtype), torch.empty(outputs, count)
    height = max(1, _BLOCK // inputs)
    for start in range(0, outputs, height):
        block = functional.pad(rows[start : start + height].float(), (0, count * group - inputs))
        groups = block.unflatten(1, (count, group))
        scale = (groups.abs().amax(2) / steps).to(scale_dtype).float()
        scale = torch.where(scale == 0, 1.0, scale)  # of zeros: any; NaN stays
        codes = groups / scale[:, :, None]
        codes = (codes if kind == "fp8" else codes.round()).clamp(lowest, highest)
        codes = codes + 8 if kind == "int4" else codes
        values[start : start + height] = codes.flatten(1)[:, :inputs].to(dtype)
        scales[start : start + height] = scale
    return Codes(values, scales, group)
