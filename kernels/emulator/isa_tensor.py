"""TensorE: nc_matmul, and nc_transpose on TensorE or VectorE."""

import numpy as np

from . import cost, isa_limits
from .access import cells, check_disjoint, destination, engine_operand, store_cells, values
from .enums import engine as engines
from .enums import matmul_perf_mode
from .errors import NotModelledError
from .machine import Core
from .registry import instruction
from .rules import fail
from .tensor import Tensor

_WIDE = ("float32", "tfloat32")
_MATMUL_DTYPES = ("bfloat16", "float16", "tfloat32", "float32")


def _one_bank(core: Core, dst: Tensor):
    """The bytes that dst touches in a partition, and so its bank, are one bank's."""
    size = core.target.psum_bank_bytes
    lo, hi = dst.extent()
    if lo * dst.dtype.itemsize // size != (hi * dst.dtype.itemsize - 1) // size:
        fail(
            "matmul-bank",
            f"dst {dst!r} covers bytes {lo * dst.dtype.itemsize} to {hi * dst.dtype.itemsize} of "
            f"its tensor; a bank has {size}",
        )


@instruction
def nc_matmul(
    core: Core,
    dst,
    stationary,
    moving,
    is_stationary_onezero,
    is_moving_onezero,
    is_transpose,
    accumulate,
    tile_position,
    tile_size,
    perf_mode,
    name,
):
    """dst[M, N] (+)= stationary[K, M]ᵀ @ moving[K, N], float32 accumulation."""
    if perf_mode is not matmul_perf_mode.none:
        raise NotModelledError("nc_matmul(perf_mode=double_row) needs fp8, which is not modelled")
    stationary = engine_operand(stationary, "stationary", ("sbuf",))
    moving = engine_operand(moving, "moving", ("sbuf",))
    dst = destination(core, dst, "dst", ("psum",))
    _check_tiling(stationary, tile_position, tile_size)
    if is_transpose:
        return _matmul_transpose(core, dst, stationary, moving)
    for role, tensor in (("stationary", stationary), ("moving", moving)):
        if tensor.dtype not in _MATMUL_DTYPES:
            fail("operand-dtype", f"{role} {tensor!r} must be one of {', '.join(_MATMUL_DTYPES)}")
    if (stationary.dtype in _WIDE) != (moving.dtype in _WIDE):
        fail(
            "operand-dtype",
            f"stationary is {stationary.dtype} and moving {moving.dtype}; a 32-bit operand needs "
            "a 32-bit partner",
        )
    if dst.dtype != "float32":
        fail("operand-dtype", f"dst {dst!r} must be float32 on {core.target.name}")
    k, m, n = stationary.shape[0], stationary.elements, moving.elements
    if moving.shape[0] != k or m > 128 or n > 512 or dst.shape[0] != m or dst.elements != n:
        fail(
            "matmul-size",
            f"stationary [{k}, {m}], moving [{moving.shape[0]}, {n}], dst "
            f"[{dst.shape[0]}, {dst.elements}]; need [K, M], [K, N], [M, N] with M ≤ 128, N ≤ 512",
        )
    if stationary.partition != moving.partition:
        raise NotModelledError(
            f"stationary starts at partition {stationary.partition}, moving at "
            f"{moving.partition}; the documentation describes operands on the same rows only"
        )
    if core.strict:
        isa_limits.check_matmul_shape(dst, moving)
    _one_bank(core, dst)
    for role, tensor, hint in (
        ("stationary", stationary, is_stationary_onezero),
        ("moving", moving, is_moving_onezero),
    ):
        if hint and not np.isin(values(tensor, role), (0.0, 1.0)).all():
            fail("onezero", f"{role} {tensor!r} holds values other than 0 and 1")
    product = values(stationary, "stationary").T @ values(moving, "moving")
    handle = core.issue(
        "nc_matmul",
        "tensor",
        cost.matmul(stationary, moving),
        reads=(stationary, moving),
        writes=(dst,),
    )
    _accumulate(core, dst, product, accumulate)
    return handle


def _check_tiling(stationary, tile_position, tile_size):
    if not tile_position and not tile_size:
        return
    if not tile_position or not tile_size:
        fail("matmul-tile", "tile_position and tile_size are set together or not at all")
    (row, column), (rows, columns) = tile_position, tile_size
    if rows not in (32, 64, 128) or columns != 128 or column != 0:
        fail(
            "matmul-tile",
            f"tile_size {tile_size} at {tile_position}: rows 32, 64 or 128, columns 128 from 0",
        )
    if row % rows or row >= 128 or stationary.shape[0] > rows:
        fail(
            "matmul-tile",
            f"tile_position {tile_position} with tile_size {tile_size} and "
            f"{stationary.shape[0]} contraction rows",
        )


def _accumulate(core: Core, dst: Tensor, product, accumulate):
    storage = dst.storage
    target = dst.view_of(storage.cells)
    started = dst.view_of(storage.from_matmul)
    product = product.reshape(dst.shape)
    if accumulate is False:
        target[...] = product
    elif accumulate is not None and accumulate is not True:
        raise NotModelledError(f"accumulate must be True, False or None, got {accumulate!r}")
    else:
        # Auto-detection overwrites what was never written; True adds to whatever is there.
        assumed = True if accumulate or storage.full else dst.view_of(storage.written)
        loose = assumed & ~started
        if np.any(loose):
            fail(
                "matmul-accumulate",
                f"dst {dst!r}: accumulate={accumulate} on "
                f"{np.count_nonzero(np.broadcast_to(loose, dst.shape))} elements that no matmul "
                "wrote last (unwritten, or set by memset, a copy or a transpose); start the group "
                "with accumulate=False",
            )
        target[...] = np.where(started, target + product, product)
    if core.strict:
        isa_limits.note_product(dst, False if accumulate is False else started)
    started[...] = True
    if not storage.full:
        dst.view_of(storage.written)[...] = True
        storage.full = product.size == storage.size
    for rival, box in storage.rivals:
        rival.poison(box)


def _matmul_transpose(core, dst, data, moving):
    """nc_matmul(is_transpose=True): `moving` must be the identity; the result is dataᵀ."""
    identity = values(moving, "moving")
    if not np.array_equal(identity, np.eye(data.shape[0], dtype=np.float32)):
        raise NotModelledError("nc_matmul(is_transpose=True) with a moving tile not the identity")
    return _pe_transpose(core, dst, data, "nc_matmul")


def _pe_transpose(core, dst, data, op):
    engine_operand(data, "data", ("sbuf",))
    destination(core, dst, "dst", ("psum",))
    _check_transpose(dst, data, 128)
    _one_bank(core, dst)
    stored = cells(data, "data").reshape(data.shape[0], -1).T
    handle = core.issue(op, "tensor", cost.pe_transpose(data), reads=(data,), writes=(dst,))
    store_cells(dst, stored)
    return handle


def _check_transpose(dst, data, limit):
    if data.shape[0] > limit or data.elements > limit:
        fail("transpose-size", f"data {data!r} is larger than {limit} x {limit}")
    if dst.dtype != data.dtype:
        fail("operand-dtype", f"dst {dst!r} must have the dtype of data {data!r}")
    if dst.shape[0] != data.elements or dst.elements != data.shape[0]:
        fail("operand-shape", f"dst {dst!r} is not the transpose of data {data!r}")


@instruction
def nc_transpose(core: Core, dst, data, engine, name):
    """dst[F, P] = data[P, F]ᵀ, bit for bit."""
    data = engine_operand(data, "data")
    dst = destination(core, dst)
    if engine is engines.unknown:
        on_pe = data.space == "sbuf" and dst.space == "psum"
    elif engine in (engines.tensor, engines.vector):
        on_pe = engine is engines.tensor
    else:
        fail("engine", f"nc_transpose runs on tensor or vector, got {engine}")
    if on_pe:
        return _pe_transpose(core, dst, data, "nc_transpose")
    _check_transpose(dst, data, 32)
    check_disjoint(dst, data)
    stored = cells(data, "data").reshape(data.shape[0], -1).T.copy()
    handle = core.issue(
        "nc_transpose",
        "vector",
        cost.elementwise(data.elements),
        reads=(data,),
        writes=(dst,),
    )
    store_cells(dst, stored)
    return handle
