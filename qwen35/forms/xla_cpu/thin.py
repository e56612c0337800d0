"""Products of a few rows with a large matrix, as XLA:CPU runs them fastest.

Its own product copies the matrix into another order before it multiplies, which pays for many rows
only: for 2 to 12 it takes up to three times as long as the matrix takes to be read from memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.loop import loop_map, scan
from ...xla.bits import from_bits, from_fp8

# Measured on an AVX2 machine with two cores.
ROWS = 12  # for more, XLA's own product is as fast
ROWS_IN_TURNS = 64  # of a matrix that is widened: for more, it pays to write it down in float32
_STEP = 8  # lines of the matrix in a pass over the sums: their factors stay in registers
_TILE = 256  # columns: a tile of a line stays in the first-level cache for all rows
WIDENING_TILE = 32  # of columns that are widened: few enough to be widened once for all rows
FP8_TILE = 16  # of FP8, whose widening is longer: LLVM unrolls no more of it
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
    return stored + unknown_zero(x, stored.dtype)


def unknown_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0, [], of a dtype, which XLA does not know before x."""
    return (x.reshape(-1)[0] > math.inf).to(dtype)  # for NaN too


def is_thin(rows: int, inputs: int, width: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether `thin_matmul` takes a product of [rows, inputs] with [inputs, width], and gains.

    A single row gains where a matrix of this dtype is widened: XLA would write it down first.
    """
    first = 2 if dtype == torch.float32 else 1
    return first <= rows <= ROWS and inputs % _STEP == 0 and math.gcd(width, _TILE) >= 8


def in_turns(product: Callable[[Tensor, Any], Tensor], x: Tensor, matrix: Any) -> Tensor:
    """product(x, matrix), [R, N], of at most `ROWS` rows of x [R, K] at a time.

    Each turn widens the matrix, a tensor or a leaf that knows itself, as it reads it: nowhere is it
    written down in float32, as it is for XLA's own product.
    """
    rows = len(x)
    turns = -(-rows // ROWS)
    if turns == 1:
        return product(x, matrix)
    each = -(-rows // turns)
    x = functional.pad(x, (0, 0, 0, turns * each - rows)).unflatten(0, (turns, each))
    return loop_map(lambda matrix, x: product(x, matrix), matrix, x).flatten(0, 1)[:rows]


def thin_matmul(x: Tensor, matrix: Tensor, width: int) -> Tensor:
    """x [G, R, K] @ matrix[:, :, :width], float32: [G, R, width]; matrix: see `WIDENED`.

    A loop over the matrix's lines. A round reads some of them, which lie side by side, and adds
    their products to the sums of all R rows while they are in the cache. Lines go to `parts` sums
    in turn, so that a round of narrow lines has work enough.
    """
    groups, rows, inputs = x.shape
    tile, parts = _TILE, 1
    if rows > 1 and matrix.dtype != torch.float32:
        tile = FP8_TILE if matrix.dtype == torch.uint8 else WIDENING_TILE
    tile = math.gcd(width, tile)
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
