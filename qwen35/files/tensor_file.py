"""Reads safetensors files in the two ways that their library does not.

It maps files into memory. A rank that maps a checkpoint to take an eighth of every tensor makes the
system, which reads ahead through a map, read nearly all of it. So `TensorFile` reads just what is
asked for, or all of a file once, from start to end, taking its checksum on the way. Writing files
is the library's, but for its errors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..checks.errors import CheckpointError
from ..checks.stand_ins import stand_in
from ..checks.values import shown, told
from .header import Entry, read_header

_CHUNK = 2**24  # bytes
_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
# Not in a model, but in tensors that stand beside it and are copied.
_OTHER_DTYPES = {
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I16": torch.int16,
    "BOOL": torch.bool,
}


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, of metadata and contiguous tensors of the host by their names.

    Raises:
        OSError: it can't be written: the disk is full, say.
    """
    try:
        save_file(dict(tensors), file, metadata=dict(metadata))
    except SafetensorError as error:
        raise OSError(f"{file.name}: it can't be written ({told(error)})") from None


class TensorFile:
    """An open safetensors file, whose tensors are read in parts.

    Args:
        file: its path.
        sparse: small parts of it will be read, so that reading ahead would be in vain.

    Attributes:
        metadata: texts by their names, as the header has them.

    Raises:
        CheckpointError: it can't be read or is no safetensors file.
    """

    def __init__(self, file: Path, sparse: bool = False) -> None:
        self.path = file
        try:
            self._file = open(file, "rb", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            self._entries, self.metadata = read_header(self._file, size)
        except (OSError, ValueError) as error:
            reason = stand_in(file) or f"not a readable safetensors file ({told(error)})"
            raise CheckpointError(f"{file}: {reason}") from None
        if sparse:
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def stamp(self) -> str:
        """Digests what tells the file from another without reading its values: its header, its
        size, and the time of its last change.
        """
        seen = os.fstat(self._file.fileno())
        stated = [self.path.name, seen.st_size, seen.st_mtime_ns, self._entries, self.metadata]
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()

    def keys(self) -> list[str]:
        """Names the tensors."""
        return list(self._entries)

    def get_slice(self, name: str) -> TensorSlice:
        """Returns a tensor, still unread."""
        return TensorSlice(self, self._entries[name])

    def fill(self, buffer: memoryview, start: int) -> None:
        """Reads the bytes from `start` on until the buffer is full.

        Raises:
            CheckpointError: the file ends before.
        """
        filled = 0
        while filled < len(buffer):
            part = buffer[filled : filled + _CHUNK]
            got = os.preadv(self._file.fileno(), [part], start + filled)
            if not got:
                raise CheckpointError(f"{self.path}: ends at byte {start + filled}")
            filled += got

    def read_verified(self, digest: str) -> dict[str, Tensor]:
        """Reads all tensors, as views of one buffer, from start to end.

        Args:
            digest: the SHA-256 that the file must have, in hexadecimal.

        Raises:
            CheckpointError: its SHA-256 is another, or a tensor's dtype is not known.
        """
        size = os.fstat(self._file.fileno()).st_size
        buffer = torch.empty(size, dtype=torch.uint8)
        view, hasher = memoryview(buffer.numpy()), hashlib.sha256()
        for start in range(0, size, _CHUNK):
            part = view[start : start + _CHUNK]
            self.fill(part, start)
            hasher.update(part)
        if hasher.hexdigest() != digest:
            raise CheckpointError(
                f"{self.path}: damaged, its SHA-256 is not the recorded {shown(digest[:12])}…"
            )
        tensors = {}
        for name, entry in self._entries.items():
            if entry.dtype not in _TORCH_DTYPES:
                raise CheckpointError(f"{self.path}: {shown(name)} has dtype {entry.dtype}")
            part = buffer[entry.start : entry.end].view(_TORCH_DTYPES[entry.dtype])
            tensors[name] = part.view(entry.shape)
        return tensors


class TensorSlice:
    """A tensor in a file; indexing it by a range of rows, and of columns, reads them."""

    by_inputs = False  # see QuantizedFile

    def __init__(self, owner: TensorFile, entry: Entry) -> None:
        self._owner, self._entry = owner, entry

    def get_shape(self) -> tuple[int, ...]:
        """Returns the whole tensor's shape."""
        return self._entry.shape

    def get_dtype(self) -> str:
        """Returns the dtype's name in the file."""
        return self._entry.dtype

    @property
    def nbytes(self) -> int:
        """How much of the file the tensor takes."""
        return self._entry.end - self._entry.start

    @property
    def bytes_per_value(self) -> float:
        """How much of the file a value takes."""
        return self.nbytes / math.prod(self._entry.shape)

    def middle(self, count: int) -> bytes:
        """Reads so many of its bytes, or all where it has no more, from its middle.

        Raises:
            CheckpointError: the file ends before.
        """
        buffer = bytearray(min(count, self.nbytes))
        self._owner.fill(memoryview(buffer), self._entry.start + (self.nbytes - len(buffer)) // 2)
        return bytes(buffer)

    def read(self) -> Tensor:
        """Reads all of it.

        Raises:
            CheckpointError: the file ends before; or torch has no such dtype.
        """
        dtype = (_TORCH_DTYPES | _OTHER_DTYPES).get(self._entry.dtype)
        if dtype is None:
            raise CheckpointError(f"{self._owner.path}: torch has no dtype {self._entry.dtype}")
        result = torch.empty(self._entry.shape, dtype=dtype)
        self._owner.fill(_bytes(result), self._entry.start)
        return result

    def __getitem__(self, index: slice | tuple[slice, slice]) -> Tensor:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        shape, start = self._entry.shape, self._entry.start
        first, last, _ = rows.indices(shape[0])
        count = max(0, last - first)
        dtype = _TORCH_DTYPES[self._entry.dtype]
        width = 1
        for size in shape[1:]:
            width *= size
        row_bytes = width * dtype.itemsize
        if columns == slice(None) or columns.indices(width)[:2] == (0, width):
            result = torch.empty((count, *shape[1:]), dtype=dtype)
            self._owner.fill(_bytes(result), start + first * row_bytes)
            return result
        begin, end, _ = columns.indices(width)
        result = torch.empty((count, end - begin), dtype=dtype)
        buffer, size = _bytes(result), (end - begin) * dtype.itemsize
        place = start + first * row_bytes + begin * dtype.itemsize
        for number in range(count):
            part = buffer[number * size : (number + 1) * size]
            self._owner.fill(part, place + number * row_bytes)
        return result


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())
