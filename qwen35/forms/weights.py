"""Weights as the leaves of a parameter tree: a tensor, or a matrix that is stored in a special way.

Everything but the forms sees a matrix [K, N] with a shape, a dtype and a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..xla.bits import from_bits, from_e4m3, from_fp8, to_bits


@dataclass(frozen=True, eq=False)
class SpacedWeight:
    """A matrix [K, N] whose rows stand apart in memory: a pytree node with one tensor.

    Attributes:
        storage: [K, N + spare]; what stands in the spare columns has no effect. int16 is the bits
            of bfloat16 values (`xla.bits`).
        width: N.
    """

    storage: Tensor
    width: int

    @classmethod
    def of(cls, weight: Tensor, spare: int) -> SpacedWeight:
        """Copy a weight [K, N] to rows that are `spare` values of zero apart, bfloat16 as bits."""
        width = weight.shape[1]
        weight = to_bits(weight) if weight.dtype == torch.bfloat16 else weight
        return cls(torch.nn.functional.pad(weight, (0, spare)), width)

    @property
    def shape(self) -> torch.Size:
        """The matrix's, whatever its storage is: [K, N]."""
        return torch.Size((self.storage.shape[0], self.width))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        stored = self.storage.dtype
        return torch.bfloat16 if stored == torch.int16 else stored

    @property
    def device(self) -> torch.device:
        """Where the storage is."""
        return self.storage.device

    def __len__(self) -> int:
        return len(self.storage)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A matrix [K, N] of few bits a value: element (k, n) is a stored value less the zero of its
    group, times the scale of its group, `(values[k, n] - zeros[g, n]) * scales[g, n]` with
    g = k // group. A group is of consecutive inputs, and of one column.

    Blocks that span several columns, as FP8's of 128 x 128 do, are stored as groups whose columns
    have equal scales: 3 % more bytes, and a matrix can be put together, or split, by columns.

    Attributes:
        values: [K, N + spare] int8, float8_e4m3fn, or the bits of that in uint8; or, of "int4",
            [K / 2, N + spare] uint8, two values 0 to 15 each: row 2i in the low bits of row i,
            row 2i + 1 in the high bits. What stands in the spare columns has no effect.
        scales: [ceil(K / group), N] float32.
        zeros: like the scales, int8; None is 8 for 4-bit values and 0 for others.
        group: inputs that share a scale; K for a scale per column. The last group may be shorter.
        dtype: float32 or bfloat16, of the matrix that this stands for.
        kind: "int4", "int8", "fp8" (float8_e4m3fn), or "e4m3" (`halved`), whose values are bits in
            uint8.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int
    dtype: torch.dtype
    kind: str

    @property
    def per_column(self) -> bool:
        """Whether the values of a column have one scale and no zero: it can multiply a product."""
        return self.bits == 8 and self.zeros is None and len(self.scales) == 1

    @property
    def scales_products(self) -> bool:
        """Whether values have no zeros and whole groups: scales can multiply products of groups."""
        whole = len(self) == len(self.scales) * self.group
        return self.per_column or (self.bits == 8 and self.zeros is None and whole)

    @property
    def bits(self) -> int:
        """Bits of a stored value: 4 or 8."""
        return 4 if self.kind == "int4" else 8

    @property
    def shape(self) -> torch.Size:
        """The matrix's, whatever its storage is: [K, N]."""
        return torch.Size((len(self), self.scales.shape[1]))

    @property
    def device(self) -> torch.device:
        """Where the storage is."""
        return self.values.device

    def __len__(self) -> int:
        return self.values.shape[0] * (8 // self.bits)


@dataclass(frozen=True, eq=False)
class JoinedWeight:
    """A matrix [K, N] whose columns are those of several matrices, stored each in its own way.

    Attributes:
        parts: of K rows each and one dtype, side by side; at least one.
    """

    parts: tuple[Tensor | SpacedWeight | QuantizedWeight, ...]

    @property
    def shape(self) -> torch.Size:
        """The matrix's: [K, N]."""
        return torch.Size((len(self), sum(part.shape[1] for part in self.parts)))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.parts[0].device

    def __len__(self) -> int:
        return len(self.parts[0])


# What a product takes: a plain tensor [K, N], or a leaf that knows itself.
Weight = Tensor | SpacedWeight | QuantizedWeight | JoinedWeight


def dense(weight: Weight) -> Tensor:
    """Return the matrix [K, N] as a tensor of its dtype; of a spaced float32 one it is a view."""
    if isinstance(weight, SpacedWeight):
        return _values(weight.storage[:, : weight.width])
    if isinstance(weight, QuantizedWeight):
        return _dequantized(weight)
    if isinstance(weight, JoinedWeight):
        return torch.cat([dense(part) for part in weight.parts], dim=1)
    return weight


class Part(NamedTuple):
    """How some neighbouring columns of a matrix are stored.

    Attributes:
        width: how many columns.
        kind: "int4", "int8", "fp8", or "" of a plain tensor.
        group: inputs that share a scale.
        zeros: whether there are zeros.
    """

    width: int
    kind: str = ""
    group: int = 0
    zeros: bool = False


def parts_of(weight: Weight) -> list[Part]:
    """Return how the columns of a matrix are stored, from left to right."""
    if isinstance(weight, JoinedWeight):
        return [part for one in weight.parts for part in parts_of(one)]
    if isinstance(weight, QuantizedWeight):
        width, zeros = weight.shape[1], weight.zeros is not None
        return [Part(width, weight.kind, weight.group, zeros)]
    return [Part(weight.shape[1])]


def abstract(inputs: int, parts: Sequence[Part], dtype: torch.dtype) -> Weight:
    """Return a compact matrix without data that is stored so; neighbours alike are one part.

    Args:
        inputs: K; even where parts are "int4".
        parts: how its columns are stored.
        dtype: of the matrix.
    """
    merged: list[Part] = []
    for part in parts:
        if merged and merged[-1][1:] == part[1:]:
            merged[-1] = part._replace(width=merged[-1].width + part.width)
        else:
            merged.append(part)

    def one(part: Part) -> Tensor | QuantizedWeight:
        if not part.kind:
            return torch.empty(inputs, part.width, dtype=dtype, device="meta")
        stored = {"int4": torch.uint8, "int8": torch.int8, "fp8": torch.float8_e4m3fn}[part.kind]
        rows = inputs // 2 if part.kind == "int4" else inputs
        values = torch.empty(rows, part.width, dtype=stored, device="meta")
        scales = torch.empty(-(-inputs // part.group), part.width, device="meta")
        zeros = torch.empty_like(scales, dtype=torch.int8) if part.zeros else None
        return QuantizedWeight(values, scales, zeros, part.group, dtype, part.kind)

    stored = tuple(map(one, merged))
    return stored[0] if len(stored) == 1 else JoinedWeight(stored)


def as_bits(weight: Weight) -> Weight:
    """Return the weight with FP8 as its bits, uint8: on XLA:CPU few operations take FP8."""
    if isinstance(weight, JoinedWeight):
        return JoinedWeight(tuple(map(as_bits, weight.parts)))
    if isinstance(weight, QuantizedWeight) and weight.kind == "fp8":
        return replace(weight, values=weight.values.view(torch.uint8))
    return weight


def halved(weight: Weight) -> Weight:
    """Return the weight with FP8 as the E4M3 of Trainium, which ends at 240 (float8_e4m3fn: 448):
    half of each value, twice the scales.

    It is exact but for odd multiples of the smallest number, 2^-9, below 2^-5, which round to even:
    below 7e-5 of the largest value that a scale has.
    """
    if isinstance(weight, JoinedWeight):
        return JoinedWeight(tuple(map(halved, weight.parts)))
    if not isinstance(weight, QuantizedWeight) or weight.kind != "fp8":
        return weight
    half = (weight.values.float() / 2).to(torch.float8_e4m3fn).view(torch.uint8)
    return replace(weight, values=half, scales=weight.scales * 2, kind="e4m3")


def compact(weight: Weight) -> Weight:
    """Return the weight in contiguous tensors without spare columns, quantised where it is."""
    if isinstance(weight, QuantizedWeight):
        values, kind = weight.values[:, : weight.shape[1]].contiguous(), weight.kind
        if kind in ("fp8", "e4m3") and values.device.type != "xla":
            values, kind = values.view(torch.float8_e4m3fn), "fp8"
        return replace(weight, values=values, kind=kind)
    if isinstance(weight, JoinedWeight):
        return JoinedWeight(tuple(compact(part) for part in weight.parts))
    return dense(weight).contiguous()


def columns(weight: Weight, index: Tensor) -> Tensor:
    """Return the columns `index` [n] (int32 or int64, below N) of a matrix [K, N]: [K, n]."""
    if isinstance(weight, SpacedWeight):
        return _values(weight.storage.index_select(1, index))
    if isinstance(weight, QuantizedWeight):
        values, scales, zeros = (
            None if part is None else part.index_select(1, index)
            for part in (weight.values, weight.scales, weight.zeros)
        )
        return _dequantized(replace(weight, values=values, scales=scales, zeros=zeros))
    return dense(weight).index_select(1, index)


def between(weight: Weight, start: int, end: int) -> Tensor | QuantizedWeight:
    """Return some columns of a compact matrix, views of it where they are stored alike."""
    if isinstance(weight, JoinedWeight):
        for part in weight.parts:
            width = part.shape[1]
            if start < width:
                if end <= width:
                    return between(part, start, end)
                break
            start, end = start - width, end - width
        raise ValueError("the columns are not those of one part")
    if isinstance(weight, QuantizedWeight):
        values, scales, zeros = (
            None if part is None else part[:, start:end]
            for part in (weight.values, weight.scales, weight.zeros)
        )
        return replace(weight, values=values, scales=scales, zeros=zeros)
    return dense(weight)[..., start:end]


def is_special(node: Any) -> bool:
    """Whether a node of a parameter tree is a weight that is not a tensor."""
    return isinstance(node, SpacedWeight | QuantizedWeight | JoinedWeight)


def unpacked(values: Tensor) -> Tensor:
    """Return the 4-bit values of uint8 [K / 2, N], as a `QuantizedWeight` has them: [K, N]."""
    return torch.stack([values & 15, values >> 4], dim=1).flatten(0, 1)


def packed(values: Tensor) -> Tensor:
    """Return integers [K, N] of 0 to 15, K even, as uint8 [K / 2, N]: `unpacked` undone."""
    low, high = values.to(torch.uint8).unflatten(0, (-1, 2)).unbind(1)
    return low | high << 4


def _values(stored: Tensor) -> Tensor:
    """What a spaced weight's storage, or a part of it, stands for."""
    return from_bits(stored).to(torch.bfloat16) if stored.dtype == torch.int16 else stored


def codes(weight: QuantizedWeight) -> Tensor:
    """Return a compact weight's stored values, [K, N]: int8, float8_e4m3fn, or uint8 of 0 to 15."""
    return unpacked(weight.values) if weight.kind == "int4" else weight.values


def numbers(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return what a weight's stored values count, without zeros and scales: [K, N] of a dtype.

    bfloat16 has every one of them.
    """
    values = weight.values[:, : weight.shape[1]]
    if weight.kind == "int4":
        values = unpacked(values)
    if weight.kind == "e4m3":
        return from_e4m3(values, dtype)
    if weight.kind == "fp8" and values.dtype == torch.uint8:
        values = from_fp8(values)
    return values.to(dtype)


def _dequantized(weight: QuantizedWeight) -> Tensor:
    values = numbers(weight, torch.float32)

    def by_input(groups: Tensor) -> Tensor:
        each = groups if len(groups) == 1 else groups.repeat_interleave(weight.group, 0)
        return each[: len(values)]

    if weight.zeros is not None:
        values = values - by_input(weight.zeros)
    elif weight.kind == "int4":
        values = values - 8.0
    return (values * by_input(weight.scales)).to(weight.dtype)


def _register(cls: type, tensors: tuple[str, ...]) -> None:
    """Make a class of leaves a pytree node: the fields `tensors` are children unless None."""
    names = tuple(field.name for field in fields(cls))

    def present(weight: Any) -> tuple[str, ...]:
        return tuple(name for name in tensors if getattr(weight, name) is not None)

    def flatten(weight: Any) -> tuple[list[Any], tuple[tuple[str, Any], ...]]:
        children = present(weight)
        static = ((name, getattr(weight, name)) for name in names if name not in children)
        return [getattr(weight, name) for name in children], tuple(static)

    def with_keys(weight: Any) -> tuple[list[Any], tuple[tuple[str, Any], ...]]:
        children, static = flatten(weight)
        return list(zip(map(pytree.GetAttrKey, present(weight)), children, strict=True)), static

    def unflatten(children: Any, static: Any) -> Any:
        known = dict(static)
        given = dict(zip((name for name in names if name not in known), children, strict=True))
        return cls(**known, **given)

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"qwen35.{cls.__name__}",
        flatten_with_keys_fn=with_keys,
    )


_register(SpacedWeight, ("storage",))
_register(QuantizedWeight, ("values", "scales", "zeros"))
_register(JoinedWeight, ("parts",))
