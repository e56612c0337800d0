"""Making quantised weights out of dense ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .weights import JoinedWeight, QuantizedWeight, Weight

_COLUMNS = 2**14  # at once: beside the result, a block of that many columns is in memory


def int8(matrix: Tensor) -> QuantizedWeight:
    """Return a matrix [K, N], float32 or bfloat16, as int8 with a scale per column, symmetric.

    A column's largest value becomes 127 or -127; the error of a value is at most half a scale.
    """
    values = torch.empty(matrix.shape, dtype=torch.int8)
    scales = torch.empty(1, matrix.shape[1])
    for start in range(0, matrix.shape[1], _COLUMNS):
        block = matrix[:, start : start + _COLUMNS].float()
        largest = block.abs().amax(0, keepdim=True) / 127
        scale = torch.where(largest > 0, largest, 1.0)  # of a column of zeros: any
        scales[:, start : start + _COLUMNS] = scale
        values[:, start : start + _COLUMNS] = (block / scale).round()
    return QuantizedWeight(values, scales, None, len(matrix), matrix.dtype)


def int8_by_parts(matrix: Tensor, widths: Sequence[int], kept: Sequence[bool]) -> Weight:
    """Return a matrix [K, N] of parts side by side as int8, but for the parts that are kept dense.

    Args:
        matrix: on the CPU.
        widths: of the parts; they add up to N.
        kept: which parts stay dense.
    """
    runs: list[tuple[int, bool]] = []  # neighbours alike are one part
    for width, dense in zip(widths, kept, strict=True):
        if runs and runs[-1][1] == dense:
            runs[-1] = (runs[-1][0] + width, dense)
        else:
            runs.append((width, dense))
    parts = matrix.split([width for width, _ in runs], dim=1)
    stored = tuple(
        part.contiguous() if dense else int8(part)
        for part, (_, dense) in zip(parts, runs, strict=True)
    )
    return stored[0] if len(stored) == 1 else JoinedWeight(stored)
