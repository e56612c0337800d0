"""bfloat16 numbers as int16 tensors of their bits.

XLA:CPU keeps bfloat16 tensors of a loop or a gather in float32, so that every step would write down
a float32 copy of whatever is read in one; integers it takes as they are. torch-xla lowers no
`Tensor.view(dtype)`: these conversions are operations registered with it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from . import private


def to_bits(x: Tensor) -> Tensor:
    """Return x, float32 or bfloat16 of any shape, rounded to bfloat16: its bits, int16."""
    if x.device.type == "xla":
        return _operation(_to_bits)(x)
    return x.to(torch.bfloat16).contiguous().view(torch.int16)


def from_bits(bits: Tensor) -> Tensor:
    """Return the bfloat16 numbers of these bits, int16 of any shape, in float32."""
    if bits.device.type == "xla":
        return _operation(_from_bits)(bits)
    return bits.view(torch.bfloat16).float()


@functools.cache
def _operation(build: Any) -> Any:
    return private.register(build.__name__, build)


def _to_bits(x: Any) -> Any:
    return x.cast(private.Type.BF16).bitcast(private.Type.S16)


def _from_bits(bits: Any) -> Any:
    # Half of a float32's bits: shifted, where a conversion from bfloat16 is one by one.
    wide = bits.cast(private.Type.S32)
    shift = private.Op.scalar(bits.builder(), 16, dtype=private.Type.S32)
    return (wide << shift.broadcast(bits.shape().sizes)).bitcast(private.Type.F32)
