"""The published forms of a quantised weight: which tensors of a checkpoint it is made of.

A weight `X.weight` [out, in] is quantised exactly if tensors stand beside it, or in its place, that
say how. The lists of modules in configurations are not asked: they name what is not there, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..tensor_file import TensorSlice
from . import packing
from .scheme import Scheme
from .weight import QuantizedFile

# What stands beside or instead of `X.weight`, as `X.NAME`.
MEMBERS = (
    "weight_scale_inv", "weight_scale", "weight_zero_point", "weight_packed", "weight_shape",
    "weight_g_idx", "qweight", "qzeros", "scales", "g_idx",
)  # fmt: skip
_FLOATS = ("F16", "BF16", "F32")


def open_weight(
    shape: tuple[int, int], parts: Mapping[str, TensorSlice], scheme: Scheme
) -> QuantizedFile:
    """Opens a quantised weight.

    Args:
        shape: [out, in], from the model's configuration.
        parts: the tensors that are there, by their names after "X.": "weight" and of `MEMBERS`.
        scheme: what the checkpoint's configuration says.

    Raises:
        ValueError: they are not a weight of this shape and scheme; the text says why.
    """
    reader = _Parts(shape, parts, scheme)
    if scheme.method == "gptq":
        return _gptq(reader)
    if scheme.method == "awq":
        return _awq(reader)
    if "weight_packed" in parts:
        return _packed(reader)
    return _plain(reader)


class _Parts:
    """A weight's tensors, each checked as it is asked for; `done` refuses those that nobody asked
    for."""

    def __init__(
        self, shape: tuple[int, int], parts: Mapping[str, TensorSlice], scheme: Scheme
    ) -> None:
        self.shape, self.scheme = shape, scheme
        self._parts, self._used = parts, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def take(self, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> TensorSlice:
        """The tensor of a name, which must have one of these dtypes and one of these shapes."""
        if name not in self._parts:
            raise ValueError(f"{name} is missing")
        part = self._parts[name]
        self._used.add(name)
        if part.get_dtype() not in dtypes:
            raise ValueError(
                f"{name} has dtype {part.get_dtype()}, {self.scheme.method} has "
                f"{' or '.join(dtypes)}"
            )
        if shapes and part.get_shape() not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise ValueError(
                f"{name} has shape {list(part.get_shape())}, a weight of {list(self.shape)} needs "
                f"{wanted}"
            )
        return part

    def done(self) -> None:
        """Raises ValueError if a tensor was not asked for: it would change the values."""
        rest = sorted(self._parts.keys() - self._used)
        if rest:
            raise ValueError(f"{', '.join(rest)}: not a part of {self.scheme.method} as it is read")

    def file(
        self,
        group: int,
        codes: Callable[[range, range], Tensor],
        scales: Callable[[], Tensor],
        zeros: Callable[[], Tensor] | None,
        by_inputs: bool = False,
        pairs: Callable[[range, range], Tensor] | None = None,
    ) -> QuantizedFile:
        """The weight, once all of its tensors are known to fit."""
        self.done()
        size = sum(self._parts[name].nbytes for name in self._used)
        return QuantizedFile(
            self.shape, group, codes, scales, zeros,
            bytes_per_value=size / math.prod(self.shape), by_inputs=by_inputs, pairs=pairs,
        )  # fmt: skip


def _plain(parts: _Parts) -> QuantizedFile:
    """FP8, and compressed-tensors' int8: a value is a byte."""
    outputs, inputs = parts.shape
    weight = parts.take("weight", ("F8_E4M3", "I8"), parts.shape)
    name = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    sizes = {(1, inputs): ((outputs, 1), (outputs,)), (outputs, inputs): ((1,), (), (1, 1))}
    shapes = {shape: block for block, all_shapes in sizes.items() for shape in all_shapes}
    blocks = [(1, size if size > 0 else inputs) for size in parts.scheme.groups]
    for rows, columns in (*blocks, *parts.scheme.blocks):
        shapes.setdefault((-(-outputs // rows), -(-inputs // columns)), (rows, columns))
    scale = parts.take(name, _FLOATS, *shapes)
    rows, columns = shapes[scale.get_shape()]
    zero = None
    if "weight_zero_point" in parts:
        zero = parts.take("weight_zero_point", ("I8",), scale.get_shape())

    def of_outputs(part: TensorSlice) -> Tensor:
        found = part.read().float().view(-1, -(-inputs // columns))
        return found.repeat_interleave(rows, dim=0)[:outputs]

    return parts.file(
        columns,
        lambda r, c: weight[_slice(r), _slice(c)],
        lambda: of_outputs(scale),
        None if zero is None else lambda: of_outputs(zero),
    )


def _packed(parts: _Parts) -> QuantizedFile:
    """compressed-tensors' "pack-quantized": consecutive inputs in words of 32 bits."""
    outputs, inputs = parts.shape
    shapes = {(outputs, -(-inputs * bits // 32)): bits for bits in (4, 8)}
    packed = parts.take("weight_packed", ("I32",), *shapes)
    bits = shapes[packed.get_shape()]
    if "weight_g_idx" in parts:
        raise ValueError("weight_g_idx: groups that are scattered over the inputs are not read")
    stated = parts.take("weight_shape", ("I32", "I64"), (2,))[:].tolist()
    if stated != list(parts.shape):
        raise ValueError(f"weight_shape says {stated}, the config needs {list(parts.shape)}")
    sizes = {inputs} | {size for size in parts.scheme.groups if size > 0}
    groups = {(outputs, -(-inputs // size)): size for size in sizes}
    scale = parts.take("weight_scale", _FLOATS, *groups)
    group = groups[scale.get_shape()]
    zero = None
    if "weight_zero_point" in parts:
        count = scale.get_shape()[1]
        zero = parts.take("weight_zero_point", ("I32",), (-(-outputs * bits // 32), count))
    # Values are stored as less negative by this; those of 8 bits are read as they were before.
    offset = 2 ** (bits - 1)
    center = offset if bits == 4 else 0

    def codes(rows: range, columns: range) -> Tensor:
        per_word = 32 // bits
        first = columns.start // per_word
        words = packed[_slice(rows), first : -(-columns.stop // per_word)]
        skip = columns.start - first * per_word
        found = packing.unpack_columns(words, bits)[:, skip : skip + len(columns)]
        return found if bits == 4 else (found ^ offset).view(torch.int8)

    def pairs(rows: range, columns: range) -> Tensor:
        words = packed[_slice(rows), columns.start // 8 : -(-columns.stop // 8)]
        skip = columns.start % 8 // 2
        return words.view(torch.uint8)[:, skip : skip + len(columns) // 2]

    def zeros() -> Tensor:
        if zero is None:
            return torch.full(scale.get_shape(), float(center))
        found = packing.unpack_columns(zero.read().T, bits).T[:outputs]
        return found.float() - (offset - center)

    symmetric = zero is None and not center
    return parts.file(
        group, codes, lambda: scale.read().float(), None if symmetric else zeros,
        pairs=pairs if bits == 4 else None,
    )  # fmt: skip


def _gptq(parts: _Parts) -> QuantizedFile:
    """GPTQ: consecutive inputs in words of 32 bits, of all outputs side by side."""
    (outputs, inputs), bits = parts.shape, parts.scheme.bits
    group = parts.scheme.groups[0] if parts.scheme.groups[0] > 0 else inputs
    count, per_word = -(-inputs // group), 32 // bits
    packed = parts.take("qweight", ("I32",), (-(-inputs // per_word), outputs))
    zero = parts.take("qzeros", ("I32",), (count, -(-outputs // per_word)))
    scale = parts.take("scales", _FLOATS, (count, outputs))
    if "g_idx" in parts:
        order = parts.take("g_idx", ("I32", "I64"), (inputs,))[:]
        if not torch.equal(order.long(), torch.arange(inputs) // group):
            raise ValueError("g_idx: groups that are scattered over the inputs are not read")
    center = 0 if bits == 4 else 128  # makes codes of 8 bits int8

    def codes(rows: range, columns: range) -> Tensor:
        first = columns.start // per_word
        words = packed[first : -(-columns.stop // per_word), _slice(rows)]
        skip = columns.start - first * per_word
        found = packing.unpack_rows(words, bits)[skip : skip + len(columns)]
        return (found if bits == 4 else (found ^ center).view(torch.int8)).T

    def pairs(rows: range, columns: range) -> Tensor:
        first = columns.start // 8
        words = packed[first : -(-columns.stop // 8), _slice(rows)]
        skip = columns.start % 8 // 2
        return packing.octets_of_rows(words)[skip : skip + len(columns) // 2].T

    def zeros() -> Tensor:
        found = packing.unpack_columns(zero.read(), bits)[:, :outputs].int()
        return ((found + parts.scheme.zero_offset) % 2**bits - center).float().T

    return parts.file(
        group, codes, lambda: scale.read().float().T, zeros, by_inputs=True,
        pairs=pairs if bits == 4 else None,
    )  # fmt: skip


def _awq(parts: _Parts) -> QuantizedFile:
    """AWQ: eight outputs in a word of 32 bits, in an order of its own, input by input."""
    outputs, inputs = parts.shape
    group = parts.scheme.groups[0] if parts.scheme.groups[0] > 0 else inputs
    count, words = -(-inputs // group), -(-outputs // 8)
    packed = parts.take("qweight", ("I32",), (inputs, words))
    zero = parts.take("qzeros", ("I32",), (count, words))
    scale = parts.take("scales", _FLOATS, (count, outputs))

    def codes(rows: range, columns: range) -> Tensor:
        first = rows.start // 8
        found = packing.unpack_awq(packed[_slice(columns), first : -(-rows.stop // 8)])
        return found[:, rows.start - first * 8 : rows.stop - first * 8].T

    def pairs(rows: range, columns: range) -> Tensor:
        return packing.pack_pairs(codes(rows, columns))

    def zeros() -> Tensor:
        return packing.unpack_awq(zero.read())[:, :outputs].float().T

    return parts.file(
        group, codes, lambda: scale.read().float().T, zeros, by_inputs=True, pairs=pairs
    )


def _slice(run: range) -> slice:
    return slice(run.start, run.stop)
