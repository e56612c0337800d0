"""Reads parts of tensors from safetensors files: just the bytes that are asked for.

A memory map would do it in fewer lines, but the system reads ahead through it: a rank that maps a
checkpoint to take an eighth of every tensor makes it read nearly all of the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class TensorFile:
    """An open safetensors file, which the caller has validated.

    Args:
        file: its path.
        sparse: small parts of it will be read, so that reading ahead would be in vain.
    """

    def __init__(self, file: Path, sparse: bool) -> None:
        self._file = open(file, "rb", buffering=0)
        size = int.from_bytes(self._file.read(8), "little")
        self._header = json.loads(self._file.read(size))
        self._header.pop("__metadata__", None)
        self._start = 8 + size
        if sparse:
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._header)

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor, still unread."""
        entry = self._header[name]
        start = self._start + entry["data_offsets"][0]
        return TensorSlice(self._file.fileno(), entry["dtype"], tuple(entry["shape"]), start, self)


class TensorSlice:
    """A tensor in a file; indexing it by a range of rows, and of columns, reads them."""

    def __init__(
        self, descriptor: int, dtype: str, shape: tuple[int, ...], start: int, owner: TensorFile
    ) -> None:
        self._descriptor, self._dtype, self._shape = descriptor, dtype, shape
        self._start, self._owner = start, owner  # the owner keeps the file open

    def get_shape(self) -> tuple[int, ...]:
        """The whole tensor's shape."""
        return self._shape

    def get_dtype(self) -> str:
        """The dtype's name in the file."""
        return self._dtype

    def __getitem__(self, index: slice | tuple[slice, slice]) -> Tensor:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        first, last, _ = rows.indices(self._shape[0])
        count = max(0, last - first)
        dtype = _TORCH_DTYPES[self._dtype]
        width = 1
        for size in self._shape[1:]:
            width *= size
        row_bytes = width * dtype.itemsize
        if columns == slice(None) or columns.indices(width)[:2] == (0, width):
            result = torch.empty((count, *self._shape[1:]), dtype=dtype)
            self._read(result, [self._start + first * row_bytes])
            return result
        begin, end, _ = columns.indices(width)
        result = torch.empty((count, end - begin), dtype=dtype)
        offset = self._start + begin * dtype.itemsize
        self._read(result, range(offset + first * row_bytes, offset + last * row_bytes, row_bytes))
        return result

    def _read(self, result: Tensor, starts: range | list[int]) -> None:
        """Fills the result with equal parts from these places of the file."""
        if not result.numel():
            return
        buffer = memoryview(result.view(-1).view(torch.uint8).numpy())
        size = len(buffer) // len(starts)
        for number, start in enumerate(starts):
            filled, end = number * size, (number + 1) * size
            while filled < end:
                place = start + filled - number * size
                got = os.preadv(self._descriptor, [buffer[filled:end]], place)
                if not got:
                    raise OSError(f"{self._owner._file.name} ends at byte {place}")
                filled += got
