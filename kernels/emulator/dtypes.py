"""NKI data types on NumPy storage: sizes, and rounding to and from float32.

Arithmetic on the machine is float32; a tensor's dtype only says how results are stored
(round to nearest even; float to integer also saturates). bfloat16 is stored as its 16 bits in
uint16, tfloat32 as a float32 whose lower 13 mantissa bits are zero.
"""

import numpy as np

from .errors import NotModelledError


class DType(str):
    """A dtype of `nki.language`; equal to its name, as the published stubs have it."""

    __slots__ = ("integer", "itemsize", "limits", "storage")

    def __new__(cls, name, storage, integer=False):
        self = super().__new__(cls, name)
        self.storage = np.dtype(storage)
        self.itemsize = self.storage.itemsize
        self.integer = integer
        self.limits = np.iinfo(self.storage) if integer else None
        return self


float32 = DType("float32", np.float32)
tfloat32 = DType("tfloat32", np.float32)
bfloat16 = DType("bfloat16", np.uint16)
float16 = DType("float16", np.float16)

DTYPES = {
    str(dtype): dtype
    for dtype in (
        float32,
        tfloat32,
        bfloat16,
        float16,
        DType("int8", np.int8, True),
        DType("int16", np.int16, True),
        DType("int32", np.int32, True),
        DType("uint8", np.uint8, True),
        DType("uint16", np.uint16, True),
        DType("uint32", np.uint32, True),
        DType("bool", np.uint8, True),
    )
}
# Documented names whose storage this emulator has no model of.
UNMODELLED = (
    "float8_e4m3",
    "float8_e5m2",
    "float8_e4m3fn",
    "float8_e8m0fnu",
    "float8_e5m2_x4",
    "float8_e4m3fn_x4",
    "float4_e2m1fn_x4",
)


def resolve(dtype) -> DType:
    """The DType for a DType or a dtype's name; anything else is refused."""
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, str):
        if dtype in DTYPES:
            return DTYPES[dtype]
        if dtype in UNMODELLED:
            raise NotModelledError(f"dtype {dtype} is not modelled; use one of {sorted(DTYPES)}")
    raise TypeError(f"dtype must be one of nki.language's {sorted(DTYPES)}, got {dtype!r}")


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to nearest even, as bfloat16 bits (uint16)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded


def bfloat16_values(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _tfloat32(values):
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 13) & 1) + np.uint32(0xFFF))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def decode(cells: np.ndarray, dtype: DType) -> np.ndarray:
    """Stored cells as float32 values, which is what every engine computes with."""
    if dtype is bfloat16:
        return bfloat16_values(cells)
    if cells.dtype == np.float32:
        return cells
    return cells.astype(np.float32)


def encode(values: np.ndarray, dtype: DType) -> np.ndarray:
    """float32 values as stored cells of `dtype`: round half to even, integers saturate."""
    if dtype is float32:
        return values
    if dtype is bfloat16:
        return bfloat16_bits(values)
    if dtype is tfloat32:
        return _tfloat32(values)
    if dtype.integer:
        if np.isnan(values).any():
            raise NotModelledError(f"a NaN is converted to {dtype}; the result is not documented")
        wide = np.rint(values.astype(np.float64))
        return np.clip(wide, dtype.limits.min, dtype.limits.max).astype(dtype.storage)
    return values.astype(dtype.storage)
