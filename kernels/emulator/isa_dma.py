"""DMA: copies and transposes between HBM and SBUF."""

import numpy as np

from . import cost
from .access import check_disjoint, check_writable, check_written, operand, store_cells
from .dtypes import decode, encode
from .enums import dge_mode as modes
from .enums import engine as engines
from .enums import oob_mode as oob_modes
from .errors import NotModelledError
from .machine import Core
from .registry import instruction
from .rules import fail
from .tensor import Tensor

_SPACES = ("sbuf", "hbm")


def _load(core: Core, src: Tensor):
    check_written(src, "src")
    if src.storage.owner is not None:
        owner = src.view_of(src.storage.owner)
        if np.any((owner >= 0) & (owner != core.rank)):
            fail("lnc-race", f"core {core.rank} reads {src!r}, which the other core wrote")
    return src.view_of(src.storage.cells)


def _store(core: Core, dst: Tensor, stored):
    if dst.storage.owner is not None:
        owner = dst.view_of(dst.storage.owner)
        if np.any((owner >= 0) & (owner != core.rank)):
            fail("lnc-race", f"core {core.rank} writes {dst!r}, which the other core wrote")
        owner[...] = core.rank
    store_cells(dst, stored)


def _check_mode(mode, engine, same_dtype, oob_mode, priority):
    if priority is not None:
        raise NotModelledError("DMA priority needs trn3")
    if oob_mode is not oob_modes.error:
        raise NotModelledError("oob_mode.skip concerns dynamic offsets, which are not modelled")
    if mode is modes.hwdge and not same_dtype:
        fail("dma-hwdge", "hardware DGE does not convert dtypes")
    if engine is not engines.unknown and (
        mode is not modes.hwdge or engine not in (engines.sync, engines.scalar)
    ):
        fail("dma-hwdge", f"engine={engine} needs dge_mode.hwdge and engine sync or scalar")


def _issue(core, op, dst, src, mode):
    moved = max(_bytes(dst), _bytes(src))
    time = cost.dma_nanoseconds(moved, mode is modes.hwdge)
    return core.issue(
        op,
        "dma",
        nanoseconds=time,
        moved=moved,
        runs=max(_runs(dst), _runs(src)),
        reads=(src,),
        writes=(dst,),
    )


def _runs(tensor):
    """Contiguous pieces of memory that a view consists of; every partition is one at least."""
    length = 1
    dims = list(zip(tensor.shape, tensor.strides, strict=True))
    for size, stride in reversed(dims[1:] if tensor.on_chip else dims):
        if size > 1 and stride != length:
            break
        length *= size
    return int(np.prod(tensor.shape, dtype=np.int64)) // length


def _bytes(tensor):
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


@instruction
def dma_copy(core: Core, dst, src, priority, oob_mode, dge_mode, engine, name):
    """dst = src in row-major order of elements, cast through float32 if the dtypes differ."""
    dst = operand(dst, "dst", _SPACES)
    src = operand(src, "src", _SPACES)
    check_writable(dst, "dst")
    _check_mode(dge_mode, engine, src.dtype == dst.dtype, oob_mode, priority)
    if int(np.prod(dst.shape)) != int(np.prod(src.shape)):
        fail("dma-elements", f"dst {dst!r} and src {src!r} differ in their number of elements")
    check_disjoint(dst, src)
    stored = _load(core, src)
    if src.dtype != dst.dtype:
        stored = encode(np.ascontiguousarray(decode(stored, src.dtype)), dst.dtype)
    elif src.storage is dst.storage:
        stored = stored.copy()
    _store(core, dst, stored)
    return _issue(core, "dma_copy", dst, src, dge_mode)


@instruction
def dma_transpose(core: Core, dst, src, axes, priority, dge_mode, oob_mode, name):
    """dst = src with dimensions permuted (1,0), (2,1,0) or (3,1,2,0)."""
    dst = operand(dst, "dst", ("sbuf",))
    src = operand(src, "src", _SPACES)
    check_writable(dst, "dst")
    _check_mode(dge_mode, engines.unknown, True, oob_mode, priority)
    order = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}.get(src.ndim)
    if order is None or (axes is not None and tuple(axes) != order):
        fail("dma-transpose", f"axes {axes} of src {src!r}; must be (1,0), (2,1,0) or (3,1,2,0)")
    if src.dtype != dst.dtype:
        fail("dma-transpose", f"dst {dst!r} must have the dtype of src {src!r}")
    result = tuple(src.shape[axis] for axis in order)
    # Before 0.4 a destination of lower rank was padded.
    exact = core.version >= (0, 4)
    got, wanted = (tuple(n for n in shape if n > 1 or exact) for shape in (dst.shape, result))
    if got != wanted:
        fail("dma-transpose", f"dst {dst!r} must have shape {list(result)}")
    if dge_mode is modes.hwdge:
        _check_hardware_transpose(src)
    if dge_mode is modes.swdge:
        raise NotModelledError("dma_transpose(dge_mode=swdge) gathers rows, which is not modelled")
    check_disjoint(dst, src)
    _store(core, dst, _load(core, src).transpose(order).copy())
    return _issue(core, "dma_transpose", dst, src, dge_mode)


def _check_hardware_transpose(src):
    shape = src.shape
    legal = src.dtype.itemsize == 2 and shape[-1] <= 128
    if src.ndim == 2:
        legal = legal and shape[0] == 16
    else:
        legal = legal and shape[0] in (1, 2, 4, 8, 16) and shape[0] * shape[-2] % 16 == 0
    if not legal:
        fail(
            "dma-transpose",
            f"hardware DGE transposes 2-byte tensors [16, ≤128] (3- and 4-D: first size 1, 2, 4, "
            f"8 or 16, first x second-last a multiple of 16), got {src!r}",
        )
