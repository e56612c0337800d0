"""VectorE elementwise instructions (some may also run on ScalarE or GpSimd)."""

import numpy as np

from . import cost
from .access import (
    ON_CHIP,
    cells,
    check_disjoint,
    check_partitions,
    check_written,
    column,
    destination,
    engine_operand,
    partition_of,
    same_shape,
    store,
    store_cells,
    values,
)
from .enums import engine as engines
from .errors import NotModelledError, SignatureError
from .machine import Core
from .operators import ARITHMETIC, BITWISE, UNARY, UNMODELLED, Operator
from .registry import instruction
from .rules import fail
from .tensor import Tensor

_INT32 = ("int32", "uint32")


def number(value) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def pick_engine(op, requested, default, allowed):
    """The engine an instruction runs on; unknown lets the compiler choose, here `default`."""
    if requested is engines.unknown:
        return default
    if requested.name not in allowed:
        fail("engine", f"{op} runs on {' or '.join(allowed)}, got {requested.name}")
    return requested.name


def spaces_of(engine):
    return ("sbuf",) if engine == "gpsimd" else ON_CHIP


def check_operator(op, role, tables):
    if not isinstance(op, Operator):
        raise SignatureError(f"{role} must be an operator such as nl.add, got {op!r}")
    if op.name in UNMODELLED:
        raise NotModelledError(f"{role}={op!r} is not modelled")
    if not any(op.name in table for table in tables):
        fail("operator", f"{role}={op!r} is not an operator of this instruction")


def not_both_psum(a: Tensor, b: Tensor):
    if a.space == "psum" and b.space == "psum":
        fail("two-psum-sources", f"{a!r} and {b!r} are both in PSUM; move one to SBUF")


def integers_only(*tensors):
    for tensor in tensors:
        if not tensor.dtype.integer:
            fail("operand-dtype", f"{tensor!r} of a bit operator must be an integer type")


def _flat(array):
    return array.reshape(array.shape[0], -1)


@instruction
def tensor_copy(core: Core, dst, src, engine, name):
    """dst = src: bits if the dtypes agree, else through float32."""
    on = pick_engine("tensor_copy", engine, "vector", ("vector", "scalar", "gpsimd"))
    dst = destination(core, dst, "dst", spaces_of(on))
    src = engine_operand(src, "src", spaces_of(on))
    same_shape("src", src, dst)
    check_disjoint(dst, src)
    if src.dtype == dst.dtype and not (on == "scalar" and src.dtype in _INT32):
        stored = _flat(cells(src, "src"))
        store_cells(dst, stored.copy() if src.storage is dst.storage else stored)
    else:
        store(dst, values(src, "src"))
    cycles = cost.copy_like(dst, src) if on == "vector" else cost.elementwise(dst.elements)
    return core.issue("tensor_copy", on, cycles, reads=(src,), writes=(dst,))


@instruction
def memset(core: Core, dst, value, engine, name):
    """Fill with a compile-time constant that dst's dtype holds exactly."""
    on = pick_engine("memset", engine, "vector", ("vector", "gpsimd"))
    dst = destination(core, dst, "dst", spaces_of(on))
    if not number(value):
        raise SignatureError(f"memset value must be a number, got {value!r}")
    if dst.dtype.integer and not (
        isinstance(value, int | np.integer)
        and dst.dtype.limits.min <= value <= dst.dtype.limits.max
    ):
        fail("memset-type", f"memset of {value!r} into {dst!r}; pass an int that fits")
    kind = np.float64 if dst.dtype.integer else np.float32
    store(dst, np.full(dst.shape, value, kind))
    return core.issue("memset", on, cost.memset(dst, value), writes=(dst,))


@instruction
def reciprocal(core: Core, dst, data, name):
    """dst = 1 / data in float32 on VectorE."""
    dst = destination(core, dst)
    data = engine_operand(data, "data")
    same_shape("data", data, dst)
    check_disjoint(dst, data)
    store(dst, np.float32(1) / values(data, "data"))
    return core.issue(
        "reciprocal", "vector", cost.elementwise(8 * dst.elements), reads=(data,), writes=(dst,)
    )


@instruction
def tensor_tensor(core: Core, dst, data1, data2, op, engine, name):
    """dst = data1 <op> data2, elementwise, no broadcasting."""
    check_operator(op, "op", (ARITHMETIC, BITWISE))
    exact = all(isinstance(t, Tensor) and t.dtype in _INT32 for t in (dst, data1, data2))
    in_psum = any(isinstance(t, Tensor) and t.space == "psum" for t in (dst, data1, data2))
    default = "vector"
    if op.name == "power" or (exact and not in_psum and op.name in ARITHMETIC):
        default = "gpsimd"
    on = pick_engine("tensor_tensor", engine, default, ("vector", "gpsimd"))
    if op.name == "power" and on != "gpsimd":
        fail("engine", "nl.power runs on gpsimd only")
    dst = destination(core, dst, "dst", spaces_of(on))
    data1 = engine_operand(data1, "data1", spaces_of(on))
    data2 = engine_operand(data2, "data2", spaces_of(on))
    same_shape("data1", data1, dst)
    same_shape("data2", data2, dst)
    not_both_psum(data1, data2)
    check_disjoint(dst, data1, data2)
    if op.name in BITWISE:
        integers_only(dst, data1, data2)
        if on != "vector" or len({dst.dtype, data1.dtype, data2.dtype}) > 1:
            raise NotModelledError("bit operators: VectorE and one dtype for all operands only")
        function = BITWISE[op.name]
        store_cells(dst, function(_flat(cells(data1, "data1")), _flat(cells(data2, "data2"))))
    elif exact and on == "gpsimd":
        _exact_integer(dst, data1, data2, op)
    else:
        function = ARITHMETIC[op.name]
        store(dst, function(values(data1, "data1"), values(data2, "data2")))
    cycles = cost.tensor_tensor(dst, data1, data2)
    return core.issue("tensor_tensor", on, cycles, reads=(data1, data2), writes=(dst,))


def _exact_integer(dst, data1, data2, op):
    """GpSimd's native 32-bit integers; a result outside of the range is not documented."""
    if op.name == "power":
        raise NotModelledError("nl.power on 32-bit integers")
    wide = [_flat(cells(t, "data")).astype(np.int64) for t in (data1, data2)]
    result = ARITHMETIC[op.name](*wide).astype(np.int64)
    limits = dst.dtype.limits
    if result.min() < limits.min or result.max() > limits.max:
        raise NotModelledError(f"32-bit integer overflow in {op!r} into {dst!r}")
    store_cells(dst, result.astype(dst.dtype.storage))


def scalar_operand(value, role, partitions):
    """operand0/operand1 of tensor_scalar and its kin: float32 [P, 1] values, or a number."""
    if isinstance(value, Tensor):
        return values(column(value, role, partitions, ("float32",)), role)
    if not number(value):
        raise SignatureError(f"{role} must be a number or a float32 [P, 1] tensor, got {value!r}")
    return np.float32(value)


def _apply(op, operand, role, reverse, data, partitions):
    """One stage of tensor_scalar on float32 values."""
    if op.name in UNARY:
        if operand is not None and (isinstance(operand, Tensor) or operand != 0):
            raise SignatureError(f"{role} of the unary {op!r} must be None or 0, got {operand!r}")
        return UNARY[op.name](data)
    other = scalar_operand(operand, role, partitions)
    function = ARITHMETIC[op.name]
    return function(np.broadcast_to(other, data.shape), data) if reverse else function(data, other)


@instruction
def tensor_scalar(
    core: Core, dst, data, op0, operand0, reverse0, op1, operand1, reverse1, engine, name
):
    """dst = (data <op0> operand0) <op1> operand1, operands per partition or constant."""
    tables = (ARITHMETIC, UNARY, BITWISE)
    check_operator(op0, "op0", tables)
    if op1 is not None:
        check_operator(op1, "op1", tables)
        if (op0.name in BITWISE) != (op1.name in BITWISE):
            fail("operator", f"{op0!r} and {op1!r} mix a bit and an arithmetic operator")
    elif operand1 is not None:
        raise SignatureError("operand1 without op1")
    on = pick_engine("tensor_scalar", engine, "vector", ("vector", "scalar", "gpsimd"))
    names = (op0.name, op1.name if op1 else None)
    if on == "scalar" and names not in (("multiply", "add"), ("multiply", None), ("add", None)):
        fail("operator", f"on trn2 ScalarE does multiply, add or multiply+add, got {names}")
    if on == "gpsimd" and names != ("rsqrt", None):
        fail("operator", f"GpSimd does tensor_scalar for rsqrt only, got {names}")
    if "power" in names:
        fail("engine", "nl.power runs on gpsimd only")
    dst = destination(core, dst, "dst", spaces_of(on))
    data = engine_operand(data, "data", spaces_of(on))
    same_shape("data", data, dst)
    operands = [t for t in (operand0, operand1) if isinstance(t, Tensor)]
    check_disjoint(dst, data, *operands)
    if op0.name in BITWISE:
        _bit_scalar(dst, data, ((op0, operand0, reverse0), (op1, operand1, reverse1)))
    else:
        result = _apply(op0, operand0, "operand0", reverse0, values(data, "data"), dst.shape[0])
        if op1 is not None:
            result = _apply(op1, operand1, "operand1", reverse1, result, dst.shape[0])
        store(dst, result)
    if on == "vector":
        cycles = cost.copy_like(dst, data)
    else:
        cycles = cost.elementwise(dst.elements * (4 if on == "gpsimd" else 1))
    return core.issue("tensor_scalar", on, cycles, reads=(data, *operands), writes=(dst,))


def _bit_scalar(dst, data, stages):
    integers_only(dst, data)
    if dst.dtype != data.dtype:
        raise NotModelledError("bit operators: one dtype for data and dst only")
    result = _flat(cells(data, "data"))
    for op, operand, reverse in stages:
        if op is None:
            continue
        if not isinstance(operand, int | np.integer):
            raise NotModelledError(f"bit operators take integer constants, got {operand!r}")
        operand = dst.dtype.storage.type(operand)
        function = BITWISE[op.name]
        result = function(operand, result) if reverse else function(result, operand)
    store_cells(dst, result.astype(dst.dtype.storage))


@instruction
def scalar_tensor_tensor(
    core: Core, dst, data, op0, operand0, op1, operand1, reverse0, reverse1, name
):
    """dst = (data <op0> operand0[P, 1]) <op1> operand1[P, N]."""
    check_operator(op0, "op0", (ARITHMETIC,))
    check_operator(op1, "op1", (ARITHMETIC,))
    if "power" in (op0.name, op1.name):
        fail("engine", "nl.power runs on gpsimd only")
    dst = destination(core, dst)
    data = engine_operand(data, "data")
    operand1 = engine_operand(operand1, "operand1")
    same_shape("data", data, dst)
    same_shape("operand1", operand1, dst)
    not_both_psum(data, operand1)
    columns = [operand0] if isinstance(operand0, Tensor) else []
    check_disjoint(dst, data, operand1, *columns)
    result = _apply(op0, operand0, "operand0", reverse0, values(data, "data"), dst.shape[0])
    other = values(operand1, "operand1")
    function = ARITHMETIC[op1.name]
    store(dst, function(other, result) if reverse1 else function(result, other))
    return core.issue(
        "scalar_tensor_tensor",
        "vector",
        cost.scalar_tensor_tensor(data, op0.name, operand1, op1.name),
        reads=(data, operand1, *columns),
        writes=(dst,),
    )


@instruction
def tensor_copy_predicated(core: Core, dst, src, predicate, reverse_pred, name):
    """dst = src where predicate ≠ 0 (== 0 if reversed); elsewhere dst keeps its value."""
    dst = destination(core, dst)
    predicate = engine_operand(predicate, "predicate")
    if predicate.dtype not in ("uint8", "uint16", "uint32"):
        fail("operand-dtype", f"predicate {predicate!r} must be uint8, uint16 or uint32")
    if not isinstance(src, Tensor):
        raise NotModelledError("tensor_copy_predicated with a scalar src")
    src = engine_operand(src, "src")
    if src.dtype != dst.dtype:
        fail("operand-dtype", f"src {src!r} and dst {dst!r} must share a dtype")
    same_shape("src", src, dst)
    same_shape("predicate", predicate, dst)
    not_both_psum(src, predicate)
    check_disjoint(dst, src, predicate)
    keep = (_flat(cells(predicate, "predicate")) != 0) == bool(reverse_pred)
    stored = np.where(keep, _flat(cells(dst, "dst")), _flat(cells(src, "src")))
    store_cells(dst, stored)
    return core.issue(
        "tensor_copy_predicated",
        "vector",
        cost.elementwise(dst.elements * (2 if src.space == predicate.space else 1)),
        reads=(src, predicate, dst),
        writes=(dst,),
    )


def _same_columns(a: Tensor, b: Tensor):
    """Whether two views are of the same elements of their partitions, of one storage."""
    columns = [
        (tensor.extent()[0], tensor.shape[1:], tensor.strides[1:], tensor.storage.block.number)
        for tensor in (a, b)
    ]
    return columns[0] == columns[1]


@instruction
def nc_stream_shuffle(core: Core, dst, src, shuffle_mask, name):
    """In every quadrant of 32 partitions: dst[i] = src[mask[i]]; 255 leaves dst[i] alone."""
    dst = destination(core, dst)
    src = engine_operand(src, "src")
    mask = list(shuffle_mask)
    if len(mask) != 32 or any(not (0 <= entry < 32 or entry == 255) for entry in mask):
        fail("shuffle-mask", f"mask {mask} must have 32 entries of 0 to 31, or 255")
    if src.dtype != dst.dtype:
        fail("operand-dtype", f"src {src!r} and dst {dst!r} must share a dtype")
    if src.elements != dst.elements:
        fail("operand-shape", f"src {src!r} and dst {dst!r} differ in elements per partition")
    active = -(-max(src.shape[0], dst.shape[0]) // 32) * 32
    check_partitions(src, "src", active)
    check_partitions(dst, "dst", active)
    if not _same_columns(dst, src):  # in place, rows may move within the tile
        check_disjoint(dst, src)
    places = [i for i in range(dst.shape[0]) if mask[i % 32] != 255]
    rows = [i - i % 32 + mask[i % 32] for i in places]
    if max(rows) >= src.shape[0]:
        raise NotModelledError(
            f"nc_stream_shuffle reads partition {max(rows)} of src {src!r}, outside of it"
        )
    check_written(src, "src", rows)
    moved = src.view_of(src.storage.cells)[rows]
    if len(places) == dst.shape[0]:
        store_cells(dst, moved)
        reads = (src,)
    else:
        for place, row in zip(places, moved, strict=True):
            store_cells(partition_of(dst, place), row)
        reads = (src, dst)
    return core.issue(
        "nc_stream_shuffle",
        "vector",
        cost.elementwise(dst.elements),
        reads=reads,
        writes=(dst,),
    )
