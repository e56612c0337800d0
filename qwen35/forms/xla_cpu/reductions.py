"""Sums, means and maxima over the last axis, in steps that XLA:CPU takes as they are.

XLA:CPU splits a sum or a maximum over more than 32 elements itself, for precision, into operations
that it neither fuses nor compiles once for all layers: a quarter of the kernels of a model's
prefill, a third of those of its decode step. It joins the steps of a sum, or of a maximum, into one
again unless something is between them: here a factor, and a bound that no number reaches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_LONGEST = 16  # of 32 it unrolls two steps to a thousand additions


def mean_last(x: Tensor) -> Tensor:
    """Mean over the last axis of x [..., N], floating point: [..., 1]."""
    for width in _widths(x.shape[-1]):
        x = x.unflatten(-1, (-1, width)).sum(-1) * (1 / width)
    return x


def sum_last(x: Tensor) -> Tensor:
    """Sum over the last axis of x [..., N], floating point: [..., 1]."""
    return mean_last(x) * x.shape[-1]


def max_last(x: Tensor) -> Tensor:
    """Largest over the last axis of x [..., N], floating point: [..., 1]; finite for all -inf."""
    for width in _widths(x.shape[-1]):
        x = x.unflatten(-1, (-1, width)).amax(-1).clamp(min=torch.finfo(x.dtype).min)
    return x


def _widths(size: int) -> Iterator[int]:
    """Factors whose product is `size`, each of at most `_LONGEST` where there are such."""
    while True:
        divisors = (width for width in range(_LONGEST, 1, -1) if size % width == 0)
        width = next(divisors, size)
        yield width
        size //= width
        if size == 1:
            return
