"""Products with a layer's weights, and how XLA:CPU stores those weights.

There a cache line of zeros follows each row of a weight. Rows a multiple of 4 KiB apart compete for
the same few sets of a processor's caches, and every Qwen3.5 has such widths: measured on an AVX2
machine with the weights of 0.8b, a product of 512 rows is 1.05 to 1.14 times as fast for the
distance. The spare columns also tell a weight of XLA:CPU from one that a graph for Neuron is traced
with. Where one process holds all ranks of a mesh, or loads rank files, weights stay as they are
declared.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..kernels.loop import tracked
from ..kernels.thin import is_thin, thin_matmul
from ..xla.devices import device_put, matmul_float32, on_xla_cpu

_LINE = 64  # bytes
_PARTS = 16  # of a weight's rows, see `_in_parts`


def place_weight(weight: Tensor, device: str) -> Tensor:
    """A weight [K, N] on "cpu" or "xla"; on XLA:CPU it is [K, N + a cache line]."""
    if device == "xla" and on_xla_cpu():
        weight = pad(weight, (0, _LINE // weight.itemsize))
    return device_put(weight, device)


def has_forms_of_xla_cpu(weight: Tensor, width: int) -> bool:
    """Whether a weight of that many columns was placed on XLA:CPU, and in float32: then products
    in the forms that are fast there are wanted, with it and beside it."""
    on_xla = weight.device.type == "xla"
    return on_xla and weight.shape[1] > width and weight.dtype == torch.float32


def linear(x: Tensor, weight: Tensor, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """x [..., K] @ weight: [..., width], whatever stands in the weight beyond that many columns.

    Accumulated in float32 and returned in `dtype`: x's own if that is None, or float32.
    """
    if has_forms_of_xla_cpu(weight, width) and not tracked(x, weight):
        inputs = len(weight)
        rows = x.numel() // inputs
        if rows == 1 and width <= _PARTS * inputs and inputs % _PARTS == 0:
            return _in_parts(x, weight)[..., :width]
        if is_thin(rows, inputs, width):
            product = thin_matmul(x.reshape(1, rows, inputs), weight.unsqueeze(0), width)
            return product.view(*x.shape[:-1], width)
    product = x @ weight if dtype in (None, x.dtype) else matmul_float32(x, weight)
    return product[..., :width]


def _in_parts(x: Tensor, weight: Tensor) -> Tensor:
    """The product of a single row [..., K] as the sum of those with parts of the weight's rows.

    XLA:CPU's threads share a product by columns, so that each reads pieces of rows; parts of the
    rows lie whole in memory. Measured with the weights of 0.8b: 1.05 to 1.2 times as fast where
    these are wide, 1.2 to 1.4 where they are tall. The head's products would be too many to sum.
    """
    parts = x.reshape(_PARTS, 1, -1) @ weight.unflatten(0, (_PARTS, -1))
    return parts.sum(0).view(*x.shape[:-1], -1)
