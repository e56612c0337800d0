"""What runs fast on XLA:CPU, each form with its measured reason.

Measured on AVX2 machines with two cores and the weights of the 0.8b preset, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...kernels.loop import tracked
from ...xla.bits import to_bits
from ...xla.devices import device_put
from ...xla.host_memory import written
from ..plain import Plain
from ..weights import JoinedWeight, QuantizedWeight, SpacedWeight, Weight, dense
from . import attention, grouped, reductions
from .thin import (
    ROWS,
    ROWS_IN_TURNS,
    WIDENED,
    in_turns,
    is_thin,
    once_known,
    thin_matmul,
    widened,
)

_LINE = 64  # bytes of a cache line
_PARTS = 16  # of a weight's rows, see `_in_parts`


class XlaCpu(Plain):
    """The operations as XLA:CPU runs them fastest."""

    name = "xla_cpu"

    def store(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: str,
        write: Callable[[Tensor], None] | None,
    ) -> Weight:
        """`Plain.store`; on XLA a cache line of zeros follows each row, and bfloat16 is its bits.

        Rows a multiple of 4 KiB apart compete for the same few sets of a processor's caches, and
        every Qwen3.5 has such widths: a product of 512 rows is 1.05 to 1.14 times as fast for the
        distance.
        """
        if device != "xla":
            return super().store(shape, dtype, device, write)
        rows, width = shape
        stored = torch.int16 if dtype == torch.bfloat16 else dtype

        def write_rows(room: Tensor) -> None:
            room[:, width:] = 0
            write(room.view(dtype)[:, :width])

        full = rows, width + _LINE // dtype.itemsize
        return SpacedWeight(written(full, stored, device, write and write_rows), width)

    def place(self, weight: Weight, device: str) -> Weight:
        """`Plain.place`; on XLA a cache line follows each row (see `store`)."""
        if device != "xla":
            return device_put(weight, device)
        if isinstance(weight, JoinedWeight):
            return JoinedWeight(tuple(self.place(part, device) for part in weight.parts))
        if isinstance(weight, QuantizedWeight):
            return grouped.placed(weight)
        matrix = dense(weight)
        return self.store(matrix.shape, matrix.dtype, device, lambda room: room.copy_(matrix))

    def matmul(self, x: Tensor, weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
        """`Plain.matmul` in float32; one row takes a weight in parts, and a few rows in a loop."""
        if isinstance(weight, JoinedWeight):
            return super().matmul(x, weight, dtype)
        if isinstance(weight, QuantizedWeight):
            return self._quantized(x.float(), weight).to(dtype or x.dtype)
        stored = weight.storage if isinstance(weight, SpacedWeight) else dense(weight)
        return self._product(x.float(), stored, weight.shape[1]).to(dtype or x.dtype)

    def _quantized(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        """x [..., K] @ weight [K, N], float32."""
        inputs, width = weight.shape
        if weight.per_column:
            return self._product(x, weight.values, width) * weight.scales[0]
        if not grouped.reads(weight):
            return x @ dense(weight).float()
        rows = x.numel() // inputs
        if rows <= ROWS_IN_TURNS and not tracked(x):
            product = in_turns(grouped.few_rows, x.reshape(rows, inputs), weight)
            return product.view(*x.shape[:-1], width)
        return grouped.many_rows(x, weight)

    def _product(self, x: Tensor, stored: Tensor, width: int) -> Tensor:
        """x [..., K] @ the first `width` columns of what is stored, [K, width + spare]; float32."""
        inputs = len(stored)
        if stored.dtype in WIDENED and not tracked(x, stored):
            rows = x.numel() // inputs
            in_parts = width <= _PARTS * inputs and inputs % _PARTS == 0
            if rows == 1 and stored.dtype == torch.float32 and in_parts:
                return _in_parts(x, stored)[..., :width]
            most = ROWS if stored.dtype == torch.float32 else ROWS_IN_TURNS
            if rows <= most and is_thin(min(rows, ROWS), inputs, width, stored.dtype):
                product = in_turns(
                    lambda x, stored: thin_matmul(x[None], stored[None], width)[0],
                    x.reshape(rows, inputs),
                    stored,
                )
                return product.view(*x.shape[:-1], width)
        # The spare columns are multiplied and then cut off: a slice of the weight is a copy.
        return (x @ self.widen(once_known(x, stored)))[..., :width]

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """int16 for bfloat16: XLA:CPU would widen a whole cache to write or read a slot of it."""
        return torch.int16 if dtype == torch.bfloat16 else dtype

    def stored(self, x: Tensor, like: Tensor) -> Tensor:
        """`Plain.stored`, for bfloat16 its bits."""
        return to_bits(x) if like.dtype == torch.int16 else x.to(like.dtype)

    def activations(self, x: Tensor) -> Tensor:
        """x in float32: XLA:CPU computes in nothing less, and converts before and after each
        operation that is given bfloat16."""
        return x.float()

    def widen(self, x: Tensor) -> Tensor:
        """`Plain.widen`, of bits too."""
        return widened(x)

    def mean(self, x: Tensor) -> Tensor:
        """`Plain.mean` in steps that XLA:CPU takes as they are."""
        return reductions.mean_last(x)

    def sum(self, x: Tensor) -> Tensor:
        """`Plain.sum` in steps that XLA:CPU takes as they are."""
        return reductions.sum_last(x)

    def silu(self, x: Tensor) -> Tensor:
        """`Plain.silu` with a division at the end.

        XLA:CPU computes a division once, and a product anew for all who read it.
        """
        return x / (1.0 + (-x).exp())

    def attend(self, query: Tensor, key: Tensor, value: Tensor, last_slot: Tensor) -> Tensor:
        """`Plain.attend` for a block of queries at a time, or for few queries in a loop."""
        return attention.over_cache(query, key, value, last_slot)

    def attend_within(self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
        """`Plain.attend_within` for a block of queries of a few heads at a time."""
        return attention.within_frames(query, key, value, valid)


def _in_parts(x: Tensor, weight: Tensor) -> Tensor:
    """The product of a single row [..., K] as the sum of those with parts of the weight's rows.

    XLA:CPU's threads share a product by columns, so that each reads pieces of rows; parts of the
    rows lie whole in memory: 1.05 to 1.2 times as fast where a weight is wide, 1.2 to 1.4 where it
    is tall. The head's products would be too many to sum.
    """
    parts = x.reshape(_PARTS, 1, -1) @ weight.unflatten(0, (_PARTS, -1))
    return parts.sum(0).view(*x.shape[:-1], -1)
