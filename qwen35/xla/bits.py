"""Numbers as integer tensors of their bits: bfloat16 in int16, FP8 in uint8, 4 bits two a byte.

XLA:CPU keeps bfloat16 tensors of a loop or a gather in float32, so that every step would write down
a float32 copy of whatever is read in one; integers it takes as they are. It converts bfloat16 and
FP8 one by one, and shifted bits many at a time. torch-xla lowers no `Tensor.view(dtype)`: these
conversions are operations registered with it.
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


def from_fp8(bits: Tensor) -> Tensor:
    """Return the finite float8_e4m3fn numbers of these bits, uint8 of any shape, in float32."""
    if bits.device.type == "xla":
        return _operation(_from_fp8)(bits) * 256.0
    return bits.view(torch.float8_e4m3fn).float()


def from_e4m3(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers of E4M3 as IEEE would have it (`f8e4m3`: up to 240, then infinity) that
    have these bits, uint8 of any shape, in float32 or bfloat16. Up to 240, they are those of
    float8_e4m3fn."""
    if bits.device.type == "xla":
        return _operation(_e4m3_to_float32 if dtype == torch.float32 else _e4m3_to_bfloat16)(bits)
    return bits.view(torch.float8_e4m3fn).to(dtype)


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Return the bits of each byte, uint8 of any shape, that an int32 mask [] has, as float32."""
    if values.device.type == "xla":
        return _operation(_masked)(values, mask)
    return (values.int() & mask).float()


@functools.cache
def _operation(build: Any) -> Any:
    return private.register(build.__name__, build)


def _to_bits(x: Any) -> Any:
    return x.cast(private.Type.BF16).bitcast(private.Type.S16)


def _from_bits(bits: Any) -> Any:
    # Half of a float32's bits: shifted, where a conversion from bfloat16 is one by one.
    return (bits.cast(private.Type.S32) << _integer(bits, 16)).bitcast(private.Type.F32)


def _from_fp8(bits: Any) -> Any:
    # Shifted into a float16, whose exponents are 8 less: every number comes out 256 times too
    # small, and subnormal ones are subnormal there, too.
    wide = bits.cast(private.Type.S32)
    magnitude = (wide & _integer(bits, 127)) << _integer(bits, 7)
    sign = (wide & _integer(bits, 128)) << _integer(bits, 8)
    half = (magnitude | sign).cast(private.Type.S16).bitcast(private.Type.F16)
    return half.cast(private.Type.F32)


def _e4m3_to_float32(bits: Any) -> Any:
    return _as_e4m3(bits).cast(private.Type.F32)


def _e4m3_to_bfloat16(bits: Any) -> Any:
    return _as_e4m3(bits).cast(private.Type.BF16)


def _as_e4m3(bits: Any) -> Any:
    return bits.bitcast("f8e4m3")  # which torch-xla's table of types lacks


def _masked(values: Any, mask: Any) -> Any:
    wide = values.cast(private.Type.S32) & mask.broadcast(values.shape().sizes)
    return wide.cast(private.Type.F32)


def _integer(like: Any, value: int) -> Any:
    """An int32 in the shape of another operation's result."""
    scalar = private.Op.scalar(like.builder(), value, dtype=private.Type.S32)
    return scalar.broadcast(like.shape().sizes)
