"""Products with weights of which groups of inputs have scales of their own.

For a few rows values are widened in the loop that reads them, and a scale multiplies what a part of
its group adds up to: no copy of a weight is written down.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.loop import scan
from ...xla.bits import masked
from ...xla.devices import device_put
from ...xla.host_memory import written
from ..weights import QuantizedWeight
from .thin import FP8_TILE, WIDENING_TILE, once_known, unknown_zero, widened

_LINE = 64  # bytes of a cache line
_STEP = 16  # lines of a group in a pass over the sums of one row
_SHARED_STEP = 8  # values of a column in one over those of several rows, and 4 bits are two a line
_CHAINS = 4  # sums of one row that wait for nothing but their own last product
_TILE = 256  # columns, of one row
_ROUND = 2**20  # bytes of a weight in a round of the loop, so that the work outweighs its start


def reads(weight: QuantizedWeight) -> bool:
    """Whether these products take a weight: of whole groups, in which pairs of 4 bits end."""
    return len(weight) % weight.group == 0 and (weight.bits == 8 or weight.group % 2 == 0)


def placed(weight: QuantizedWeight) -> QuantizedWeight:
    """Return a quantised weight of the host on XLA, as these products read it.

    A cache line of zeros follows each row, FP8 is its bits, and a shorter last group makes shorter
    ones of all.
    """
    inputs, width = weight.shape
    values = weight.values[:, :width]
    values = values.view(torch.uint8) if weight.kind == "fp8" else values

    def write(room: Tensor) -> None:
        room[:, width:] = 0
        room[:, :width].copy_(values)

    group = math.gcd(weight.group, inputs)

    def by_group(of_groups: Tensor) -> Tensor:
        count = weight.group // group
        if count == 1 or len(of_groups) == 1:
            return of_groups
        return of_groups.repeat_interleave(count, 0)[: inputs // group]

    scales = by_group(weight.scales)
    if weight.kind == "fp8":  # the bits of a NaN are read as a number: its column is NaN all over
        holds_nan = ((values & 127) == 127).any(0)
        scales = torch.where(holds_nan, torch.nan, scales)
    zeros = None if weight.zeros is None else by_group(weight.zeros)
    scales, zeros = device_put((scales, zeros), "xla")
    stored = written((len(values), width + _LINE), values.dtype, "xla", write)
    return dataclasses.replace(weight, values=stored, scales=scales, zeros=zeros, group=group)


def few_rows(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """x [R, K] @ weight [K, N], as `placed` stores it: [R, N], float32.

    A loop over the lines of several groups at once, which lie apart in memory: the `streams`. A
    round reads some lines of one group of each. Of a single row it adds what they give, scaled, to
    sums of each; for several rows it scales what it widens, once for all of them.
    """
    rows, (groups, width) = len(x), weight.scales.shape
    halves = 2 if weight.kind == "int4" else 1
    lines = weight.group // halves
    step = math.gcd(lines, _STEP if rows == 1 else _SHARED_STEP // halves)
    streams = _streams(groups, step * width)
    shared_tile = FP8_TILE if weight.kind == "fp8" else WIDENING_TILE
    tile = math.gcd(width, _TILE if rows == 1 else shared_tile)

    def line_of(stored: Tensor, index: Tensor) -> Tensor:
        # Sliced one by one: XLA vectorises no loop that looks up the place of a shared slice.
        line = stored.index_select(1, index)[:, 0, :width]
        return line.unflatten(1, (-1, 1, tile))  # [streams, tiles, 1, tile]

    def add_products(carry: tuple[Tensor, ...], xs: tuple[Tensor, ...]) -> Any:
        sums, mask, values, scales, *zeros = carry
        start, group, factors, total = xs
        zero = line_of(zeros[0], group).float() if zeros else _usual_zero(weight)
        scale = line_of(scales, group)
        read = (line_of(values, start + index) for index in range(step))
        numbers = (_numbers(weight, line, mask, rows > 1) for line in read)
        pairs = zip(factors.flatten(0, 1)[:, :, None, :, None], chain(*numbers), strict=True)
        if rows == 1:
            products = [factor * number for factor, number in pairs]
            sums = sums + (_sum(products) - total[:, None, :, None] * zero) * scale
        else:
            for factor, number in pairs:
                sums = sums + factor * (number * scale - zero * scale)
        return (sums, mask, values, scales, *zeros), sums.new_zeros(())

    factors = x.T.reshape(streams, -1, step, halves, rows).permute(1, 2, 3, 0, 4)
    total = factors.sum((1, 2))
    if halves == 2 and rows == 1:
        # A byte counts its low half and 16 times its high half: to widen it as it is takes less.
        low, high = factors.unbind(2)
        factors = torch.stack([low - high / 16, high / 16], dim=2)
    starts = torch.arange(0, len(factors) * step, step, dtype=torch.int32, device=x.device)
    group = torch.arange(groups // streams, dtype=torch.int32, device=x.device)
    group = group[:, None].expand(-1, lines // step).reshape(-1, 1)
    # Zeros that depend on x, as in `thin_matmul`.
    zeros = x[None, None, :, :1].abs().clamp(max=0).expand(streams, width // tile, rows, tile)
    stored = [t for t in (weight.values, weight.scales, weight.zeros) if t is not None]
    carry = (zeros, _mask(x), *(t.unflatten(0, (streams, -1)) for t in stored))
    xs = (starts[:, None], group, factors, total)
    sums, *_ = scan(add_products, carry, xs)[0]
    return sums.sum(0).transpose(0, 1).reshape(rows, width)


def many_rows(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """x [..., K] @ weight [K, N], as `placed` stores it: [..., N], float32.

    The weight is widened as a whole, which is little beside products of many rows.
    """
    groups, width = weight.scales.shape
    weight = dataclasses.replace(weight, values=once_known(x, weight.values))

    def by_group(of_groups: Tensor) -> Tensor:  # with spare columns, which keep the rows apart
        spare = weight.values.shape[1] - width
        return functional.pad(of_groups.float(), (0, spare))[:, None]

    scales = by_group(weight.scales)
    zeros = _usual_zero(weight) if weight.zeros is None else by_group(weight.zeros)

    def product(x: Tensor, values: Tensor) -> Tensor:
        return (x @ ((values - zeros) * scales).flatten(0, 1))[..., :width]

    lines = weight.values.unflatten(0, (groups, -1))
    numbers = _numbers(weight, lines, _mask(x), apart=True)
    halves = len(numbers)
    return _added([product(x[..., half::halves], part) for half, part in enumerate(numbers)])


def _numbers(
    weight: QuantizedWeight, stored: Tensor, mask: Tensor, apart: bool
) -> tuple[Tensor, ...]:
    """What stored values count, float32, before zeros and scales: of 4 bits what the low half of a
    byte does, and what the high half (`apart`) or the whole byte does."""
    if weight.kind != "int4":
        return (widened(stored),)
    low, whole = masked(stored, mask), stored.float()
    return low, (whole - low) / 16 if apart else whole


def _mask(x: Tensor) -> Tensor:
    """15, int32 [], known as late as x: LLVM masks what it knows the mask of as bytes, and widens
    low halves and whole bytes each by themselves, which takes half as long again."""
    return unknown_zero(x, torch.int32) + 15


def _sum(products: list[Tensor]) -> Tensor:
    """The sum of some tensors in several chains: each addition of one waits for its last."""
    chains = [products[start::_CHAINS] for start in range(min(_CHAINS, len(products)))]
    return _added([_added(one) for one in chains])


def _added(tensors: list[Tensor]) -> Tensor:
    return sum(tensors[1:], tensors[0])


def _usual_zero(weight: QuantizedWeight) -> float:
    return 8.0 if weight.kind == "int4" else 0.0


def _streams(groups: int, line: int) -> int:
    """How many of the groups are read at a time: a divisor, for about `_ROUND` bytes."""
    fitting = [n for n in range(1, groups + 1) if groups % n == 0 and n * line <= _ROUND]
    return max(fitting, default=1)
