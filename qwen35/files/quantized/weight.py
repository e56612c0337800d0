"""A weight [out, in] of a checkpoint that is stored as integers or FP8, with scales."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from ...forms.quantizing import Rows, encode
from .packing import pack_pairs


class QuantizedFile:
    """A weight whose value is `(code - zero) * scale`, still unread: slicing it reads its values.

    Attributes:
        shape: [out, in].
        group: consecutive inputs that share a scale and a zero; the last group may be shorter.
        by_inputs: whether the file has the values of one input side by side, so that reading all
            outputs of a few inputs at a time is cheaper.
        bytes_per_value: how much of the file a value takes, with its share of a scale.
        codes: `codes(rows, columns)` reads the codes of a range of outputs and one of inputs,
            [n, k]: int8, float8_e4m3fn, or uint8 of 0 to 15, whose zeros are never None.
        pairs: None, or `pairs(rows, columns)` reads codes of 4 bits two a byte, [n, k / 2] uint8,
            an even input in the low bits and the next in the high ones; `columns` begins and ends
            even.

    Args:
        scales: reads all scales, [out, groups] float32.
        zeros: reads all zeros, likewise; None where all are 0.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        group: int,
        codes: Callable[[range, range], Tensor],
        scales: Callable[[], Tensor],
        zeros: Callable[[], Tensor] | None,
        *,
        bytes_per_value: float,
        by_inputs: bool = False,
        pairs: Callable[[range, range], Tensor] | None = None,
    ) -> None:
        self.shape, self.group = shape, group
        self.by_inputs, self.bytes_per_value = by_inputs, bytes_per_value
        self.codes, self._read_scales, self._read_zeros = codes, scales, zeros
        self.pairs = pairs

    @cached_property
    def scales(self) -> Tensor:
        """All scales, [out, groups] float32."""
        return self._read_scales()

    @cached_property
    def zeros(self) -> Tensor | None:
        """All zeros, [out, groups] float32, or None where all are 0."""
        return None if self._read_zeros is None else self._read_zeros()

    def __getitem__(self, index: slice | tuple[slice, slice]) -> Tensor:
        """The values of a range of outputs and one of inputs, float32."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        outputs = range(self.shape[0])[rows]
        inputs = range(self.shape[1])[columns]
        values = self.codes(outputs, inputs).float()
        for part, groups in self._runs(inputs):
            run = values[:, part].unflatten(1, (groups.stop - groups.start, -1))
            if self.zeros is not None:
                run -= self.zeros[rows, groups, None]
            run *= self.scales[rows, groups, None]
        return values

    def _runs(self, inputs: range) -> Iterator[tuple[slice, slice]]:
        """(where in `inputs`, its groups): whole groups together, and each part of one alone."""
        start, end, size = inputs.start, inputs.stop, self.group
        first, last = -(-start // size) * size, end // size * size
        cuts = sorted({start, end, *(cut for cut in (first, last) if start < cut < end)})
        for a, b in itertools.pairwise(cuts):
            yield slice(a - start, b - start), slice(a // size, -(-b // size))


class Quantizing:
    """A dense weight [out, in] of a checkpoint as it is once it is quantised: what `leaf` reads.

    Its codes are made of all inputs, so that a rank's share is that of the whole. Its attributes
    are those of `QuantizedFile`.

    Args:
        source: gives rows, or is a tensor.
        shape: [out, in].
        kind: one of `checks.choices.KINDS`.
    """

    quantized, by_inputs = True, False

    def __init__(self, source: Rows, shape: tuple[int, int], kind: str) -> None:
        self.shape = shape
        self.pairs = self._pairs if kind == "int4" else None
        self._codes = encode(source, shape, kind)
        self.group, self.scales = self._codes.group, self._codes.scales

    def codes(self, rows: range, columns: range) -> Tensor:
        """Codes of a range of outputs and one of inputs."""
        return self._codes.values[rows.start : rows.stop, columns.start : columns.stop]

    def _pairs(self, rows: range, columns: range) -> Tensor:
        return pack_pairs(self.codes(rows, columns))

    @property
    def zeros(self) -> Tensor | None:
        """8 for codes of 4 bits, else None."""
        four = self._codes.values.dtype == torch.uint8
        return torch.full_like(self.scales, 8.0) if four else None
