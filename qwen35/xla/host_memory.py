"""Tensors written in the host's memory, which becomes the device's where that is the processor."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import private
from .devices import device_put, on_xla_cpu
from .environment import xla

_LARGE = 4 * 2**20  # bytes: two of x86's large pages
_HEADER = 256  # bytes before the data: what describes them, and more dimensions than there are
_ALIGNED = 64  # bytes, as XLA:CPU wants data
_NAME = b"dltensor"  # of a capsule, which does not copy it


def written(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: str,
    write: Callable[[torch.Tensor], None] | None,
) -> torch.Tensor:
    """Return a tensor on "cpu" or "xla" with the values that `write` puts in.

    Args:
        shape: the tensor's.
        dtype: the tensor's.
        device: where it goes.
        write: is called once, with a contiguous tensor of the host that is not initialised, which
            it must write whole and not keep. None makes a tensor of XLA without a value, which
            functions can be compiled for.
    """
    if write is None:
        return private.create_placeholder_tensor(tuple(shape), dtype)
    kind = _KINDS.get(dtype)
    size = math.prod(shape) * dtype.itemsize
    if device == "xla" and kind and size and on_xla_cpu() and not xla().runtime.is_spmd():
        return _written_in_place(tuple(shape), dtype, size, kind, write)
    tensor = torch.empty(tuple(shape), dtype=dtype)
    _use_large_pages(tensor.data_ptr(), size)
    write(tensor)
    return device_put(tensor, device)


# DLPack's code of a type; its bits are the item's.
_KINDS = {
    **dict.fromkeys((torch.int8, torch.int16, torch.int32, torch.int64), (0,)),
    torch.uint8: (1,),
    **dict.fromkeys((torch.float16, torch.float32, torch.float64), (2,)),
    torch.bfloat16: (4,),
}


class _Managed(ctypes.Structure):
    """DLPack's DLManagedTensor, with the sizes and strides that it points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * 8),
        ("steps", ctypes.c_int64 * 8),
    )


def _written_in_place(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    size: int,
    kind: tuple[int],
    write: Callable[[torch.Tensor], None],
) -> torch.Tensor:
    """Give XLA:CPU memory of its own to free, once it is written.

    XLA frees it in a thread of its own, also while the process ends, when a thread that needs the
    interpreter takes the process down. A torch tensor that Python has seen needs it: its memory
    can't be handed over. Here C's `free` frees description and data, which are one block.
    """
    libc = _libc()
    block = ctypes.c_void_p()
    if libc.posix_memalign(ctypes.byref(block), _ALIGNED, _HEADER + size) or block.value is None:
        raise MemoryError(f"no room for a tensor of {size} bytes in the host's memory")
    try:
        start = block.value + _HEADER
        _use_large_pages(start, size)
        memory = (ctypes.c_uint8 * size).from_address(start)
        tensor = torch.frombuffer(memory, dtype=dtype).view(shape)
        write(tensor)
        capsule = _describe(block.value, start, tensor, kind[0])
    except BaseException:
        libc.free(block)
        raise
    return private._from_dlpack(capsule)


def _describe(block: int, start: int, tensor: torch.Tensor, code: int) -> Any:
    """Write down at `block` what lies at `start`, and return DLPack's capsule for it."""
    managed = _Managed.from_address(block)
    managed.data, managed.offset, managed.context = start, 0, None
    managed.device_type, managed.device_id = 1, 0  # a processor's memory
    managed.dimensions, managed.code, managed.lanes = tensor.dim(), code, 1
    managed.bits = 8 * tensor.element_size()
    managed.sizes[: tensor.dim()] = tensor.shape
    managed.steps[: tensor.dim()] = tensor.stride()
    managed.shape = block + _Managed.sizes.offset
    managed.strides = block + _Managed.steps.offset
    managed.deleter = ctypes.cast(_libc().free, ctypes.c_void_p).value
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    return new(block, _NAME, None)


def _use_large_pages(start: int, size: int) -> None:
    """Ask for large pages for large memory, where Linux has some to give.

    It clears memory when that is first written to, page by page, which takes six times as long with
    small ones.
    """
    if size >= _LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        # An answer other than 0 is a kernel without them.
        _libc().madvise(first, start + size - first, mmap.MADV_HUGEPAGE)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.posix_memalign.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
