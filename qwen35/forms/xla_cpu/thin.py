"""Products of a few rows with a large matrix, as XLA:CPU runs them fastest.

Its own product copies the matrix into another order before it multiplies, which pays for many rows
only: for 2 to 12 it takes up to three times as long as the matrix takes to be read from memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...kernels.loop import scan
from ...xla.bits import from_bits, from_fp8

# Measured on an AVX2 machine with two cores.
_ROWS = 12  # for more, XLA's own product is as fast
_STEP = 8  # lines of the matrix in a pass over the sums: their factors stay in registers
_TILE = 256  # columns: a tile of a line stays in the first-level cache for all rows
_WIDENING_TILE = 32  # of columns that are widened: few enough to be widened once for all rows
_ROUND = 2**19  # bytes of the matrices in a round of the loop, so that the work outweighs its start


# What the loop widens as it reads it.
WIDENED = (torch.float32, torch.int16, torch.int8, torch.uint8)


def widened(lines: Tensor) -> Tensor:
    """Numbers (int8 too), or the bits of bfloat16 (int16) or FP8 (uint8), in float32."""
    if lines.dtype == torch.int16:
        return from_bits(lines)
    return from_fp8(lines) if lines.dtype == torch.uint8 else lines.float()


def once_known(x: Tensor, stored: Tensor) -> Tensor:
    """Return what is stored, unchanged, but widened no sooner than x is known.

    XLA:CPU computes first what waits for nothing: it would widen the weights of all layers, each in
    memory of its own, four times as large as int8.
    """
    if stored.device.type != "xla" or stored.dtype == torch.float32:
        return stored
    return stored + (x.reshape(-1)[:1] > math.inf).to(stored.dtype)  # 0, for NaN too


def is_thin(rows: int, inputs: int, width: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether `thin_matmul` takes a product of [rows, inputs] with [inputs, width], and gains.

    A single row gains where a matrix of this dtype is widened: XLA would write it down first.
    """
    first = 2 if dtype == torch.float32 else 1
    return first <= rows <= _ROWS and inputs % _STEP == 0 and math.gcd(width, _TILE) >= 8


def thin_matmul(x: Tensor, matrix: Tensor, width: int) -> Tensor:
    """x [G, R, K] @ matrix[:, :, :width], float32: [G, R, width]; matrix: see `WIDENED`.

    A loop over the matrix's lines. A round reads some of them, which lie side by side, and adds
    their products to the sums of all R rows while they are in the cache. Lines go to `parts` sums
    in turn, so that a round of narrow lines has work enough.
    """
    groups, rows, inputs = x.shape
    widens = rows > 1 and matrix.dtype != torch.float32
    tile, parts = math.gcd(width, _WIDENING_TILE if widens else _TILE), 1
    line = groups * width * matrix.itemsize
    while parts * _STEP * line < _ROUND and inputs % (2 * parts * _STEP) == 0:
        parts *= 2

    def add_products(carry: tuple[Tensor, Tensor], xs: tuple[Tensor, Tensor]) -> Any:
        (sums, matrix), (start, factors) = carry, xs
        for step in range(_STEP):
            # Sliced one by one: XLA vectorises no loop that looks up the place of a shared slice.
            lines = matrix.index_select(1, start + step)[:, 0, :, :width]  # [G, parts, width]
            lines = widened(lines).unflatten(2, (-1, 1, tile))
            sums = sums + factors[:, step, :, None, :, None] * lines
        return (sums, matrix), factors.new_zeros(())

    # Zeros that depend on x (NaN in a row that has a NaN): constant ones XLA would fill for all of
    # a graph's products before the first of them, each in memory of its own.
    zeros = x[:, None, None, :, :1].abs().clamp(max=0)
    zeros = zeros.expand(groups, parts, width // tile, rows, tile)
    factors = x.mT.reshape(groups, -1, _STEP, parts, rows).transpose(0, 1)
    starts = torch.arange(0, len(factors) * _STEP, _STEP, dtype=torch.int32, device=x.device)
    carry = (zeros, matrix.unflatten(1, (-1, parts)))
    (sums, _), _ = scan(add_products, carry, (starts[:, None], factors))
    return sums.sum(1).transpose(1, 2).reshape(groups, rows, width)
