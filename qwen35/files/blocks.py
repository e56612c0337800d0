"""Copying matrices into the other order, a block of a file at a time, as fast as torch can.

torch copies a matrix of 32 bits a value into the other order in tiles; narrower values, and those
that change their dtype, one by one. So values of a few bits are taken along in words of 32, and a
word's values are told apart once they lie where rows follow each other: half the time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2**18  # values that are read at once
_ROWS = 64  # at least: fewer make short runs of the rows that they become
_GROUP = 128  # columns; those that share a scale are read together
_PART = 2**15 - 1  # values: torch shares 2**15 among threads


def blocks(rows: int, columns: int, by_columns: bool) -> Iterator[tuple[int, int, int, int]]:
    """Yields the parts of a matrix that are read at once: (row, how many, column, how many)."""
    if by_columns:
        step = max(_GROUP, _BLOCK // rows // _GROUP * _GROUP)
        for start in range(0, columns, step):
            yield 0, rows, start, min(step, columns - start)
    else:
        step = max(_ROWS, _BLOCK // columns)
        for start in range(0, rows, step):
            yield start, min(step, rows - start), 0, columns


def copy_rows(target: Tensor, block: Tensor) -> None:
    """Copies a matrix [R, C] to a tensor of the host, of whatever order and dtype."""
    height = max(1, _PART // block.shape[1])
    for ours, theirs in zip(target.split(height), block.split(height), strict=True):
        ours.copy_(theirs)


def copy_transposed(target: Tensor, block: Tensor) -> None:
    """Copies a matrix [R, C] of the host to `target` [C, R], whose rows are contiguous."""
    widens = (block.dtype, target.dtype) == (torch.bfloat16, torch.float32)
    if block.dtype != target.dtype and not widens:
        block = block.to(target.dtype)
    per_word = 4 // block.itemsize
    if per_word < 2 or block.shape[1] % per_word or not block.is_contiguous():
        copy_rows(target, block.T.contiguous())
        return
    # From here on with NumPy, which shares no work among threads: they have matrices of their own.
    words = block.view(torch.int32).T.contiguous().numpy()  # [C / per_word, R]
    ours = target.unflatten(0, (-1, per_word))
    if widens:  # bfloat16 is the upper half of a float32
        bits = ours.view(torch.int32).numpy()
        np.left_shift(words, 16, out=bits[:, 0])
        np.bitwise_and(words, -(2**16), out=bits[:, 1])
        return
    bits = ours.view(torch.int16 if per_word == 2 else torch.uint8).numpy()
    for number in range(per_word):  # the upper bits are dropped
        shift = 32 // per_word * number
        np.right_shift(words, shift, out=bits[:, number], casting="unsafe")
