"""The header of a safetensors file: which tensors it has, and where. Nothing else is read.

The library checks a header by mapping the file into memory, all of it, which a limit of the address
space forbids where files are larger than that.
"""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO, NamedTuple

from ..checks.json_file import parse_object
from ..checks.values import check_text, shown

_LARGEST = 100_000_000  # bytes of a header, by the format's description
_MOST = 2**63  # a size below
_DIMENSIONS = 64
# Bits of a value.
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class Entry(NamedTuple):
    """A tensor of a file; `start` and `end` count bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Reads a header and checks it: the tensors fill the rest of the file, one after the other.

    Args:
        file: at its start.
        size: its bytes.

    Returns:
        The tensors by their names, and the metadata.

    Raises:
        ValueError: it is no safetensors file, or not a whole one.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"its header would end at byte {8 + length:,}, the file does at {size:,}")
    if length > _LARGEST:
        raise ValueError(f"a header of {length:,} bytes, over the format's {_LARGEST:,}")
    header = parse_object(file.read(length), "its header", "an object of tensors", unique=True)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"its __metadata__ is not texts by name: {shown(metadata)}")
    check_text("its header", "".join([*header, *metadata, *metadata.values()]))
    entries = {name: _entry(name, stated, 8 + length) for name, stated in header.items()}
    place = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != place:
            raise ValueError(f"{shown(name)} starts at byte {entry.start:,}, not at {place:,}")
        place = entry.end
    if place != size:
        raise ValueError(f"its tensors end at byte {place:,}, the file does at {size:,}")
    return entries, metadata


def _entry(name: str, stated: Any, start: int) -> Entry:
    try:
        dtype, shape, (first, last) = stated["dtype"], stated["shape"], stated["data_offsets"]
        sizes = (*shape, first, last)
        whole = all(type(value) is int and 0 <= value < _MOST for value in sizes)
        if not isinstance(shape, list) or not whole or len(sizes) > _DIMENSIONS + 2:
            raise ValueError
        # torch multiplies sizes for its strides, those of an empty tensor too.
        if math.prod(value or 1 for value in shape) >= _MOST:
            raise ValueError
        bits = _BITS[dtype] * math.prod(shape)
        if len(stated) > 3:  # keys of others, which have to be JSON and Unicode too
            check_text("its header", _as_doubles(stated))
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"what is said of {shown(name)} is no tensor's: {shown(stated)}") from None
    if bits != 8 * (last - first):
        raise ValueError(
            f"{shown(name)} takes {last - first:,} bytes, {dtype} {shown(shape)} needs "
            f"{bits // 8:,}"
        )
    return Entry(dtype, tuple(shape), start + first, start + last)


def _as_doubles(stated: Any) -> str:
    """Writes JSON of which each number is a double, which the library takes and no other.

    Raises:
        ValueError: one is none.
    """
    doubles = json.loads(json.dumps(stated, ensure_ascii=False), parse_int=float)
    return json.dumps(doubles, ensure_ascii=False, allow_nan=False)
