"""VectorE reductions, scans and selections along the free dimensions."""

import numpy as np

from . import cost
from .access import (
    check_disjoint,
    column,
    destination,
    engine_operand,
    same_shape,
    store,
    values,
)
from .enums import reduce_cmd as commands
from .errors import NotModelledError, SignatureError
from .isa_vector import check_operator, not_both_psum, number, scalar_operand
from .machine import Core
from .operators import ARITHMETIC, REDUCTIONS
from .registry import instruction
from .rules import fail
from .tensor import Tensor


@instruction
def tensor_reduce(core: Core, dst, op, data, axis, negate, keepdims, name):
    """dst = ± reduction of data's last free dimensions."""
    check_operator(op, "op", (REDUCTIONS,))
    dst = destination(core, dst)
    data = engine_operand(data, "data")
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    wanted = tuple(range(data.ndim - len(axes), data.ndim))
    axes = tuple(sorted(a + data.ndim if a < 0 else a for a in axes))
    if axes != wanted or 0 in axes or not axes:
        fail("reduce-axis", f"axis {axis} of {data!r}; must be its last free dimensions")
    kept = data.shape[: data.ndim - len(axes)]
    count = int(np.prod(kept[1:], dtype=np.int64))
    if dst.shape[0] != data.shape[0] or dst.elements != count:
        fail("operand-shape", f"dst {dst!r} of a reduction of {data!r} over {axes}")
    check_disjoint(dst, data)
    array = values(data, "data").reshape(data.shape[0], count, -1)
    result = REDUCTIONS[op.name].reduce(array, axis=2, dtype=np.float32)
    store(dst, -result if negate else result)
    return core.issue(
        "tensor_reduce", "vector", cost.reduce(data, op.name), reads=(data,), writes=(dst,)
    )


@instruction
def tensor_tensor_scan(core: Core, dst, data0, data1, initial, op0, op1, reverse0, reverse1, name):
    """r[i] = (data0[i] <op0> r[i-1]) <op1> data1[i] per partition, r[-1] = initial."""
    check_operator(op0, "op0", (ARITHMETIC,))
    check_operator(op1, "op1", (ARITHMETIC,))
    dst = destination(core, dst)
    data0 = engine_operand(data0, "data0")
    data1 = engine_operand(data1, "data1")
    same_shape("data0", data0, dst)
    same_shape("data1", data1, dst)
    not_both_psum(data0, data1)
    columns = [initial] if isinstance(initial, Tensor) else []
    check_disjoint(dst, data0, data1, *columns)
    a = np.ascontiguousarray(values(data0, "data0").T)
    b = np.ascontiguousarray(values(data1, "data1").T)
    first, second = ARITHMETIC[op0.name], ARITHMETIC[op1.name]
    state = np.broadcast_to(_initial(initial, dst.shape[0]), (dst.shape[0],))
    result = np.empty_like(a)
    for i in range(len(a)):
        inner = first(state, a[i]) if reverse0 else first(a[i], state)
        state = second(b[i], inner) if reverse1 else second(inner, b[i])
        result[i] = state
    store(dst, np.ascontiguousarray(result.T))
    return core.issue(
        "tensor_tensor_scan",
        "vector",
        cost.elementwise(2 * dst.elements),
        reads=(data0, data1, *columns),
        writes=(dst,),
    )


def _initial(initial, partitions):
    if isinstance(initial, Tensor):
        return values(column(initial, "initial", partitions), "initial")[:, 0]
    if not number(initial):
        raise SignatureError(f"initial must be a number or a [P, 1] tensor, got {initial!r}")
    return np.float32(initial)


@instruction
def tensor_scalar_cumulative(core: Core, dst, src, op0, op1, imm0, imm1, reduce_cmd, name):
    """Running r = op1(op0(src[i], imm0), r) per partition, every r written."""
    check_operator(op0, "op0", (ARITHMETIC,))
    check_operator(op1, "op1", (("add", "subtract", "multiply", "maximum", "minimum"),))
    dst = destination(core, dst)
    src = engine_operand(src, "src")
    same_shape("src", src, dst)
    for tensor in (dst, src):
        if tensor.dtype in ("int32", "uint32"):
            fail("operand-dtype", f"{tensor!r}: 32-bit integers are not supported here")
    identity = {"maximum": -np.inf, "minimum": np.inf, "multiply": 1.0}.get(op1.name, 0.0)
    columns = [imm for imm in (imm0, imm1) if isinstance(imm, Tensor)]
    if reduce_cmd is commands.reset_reduce:
        state = np.float32(identity)
    elif reduce_cmd is commands.load_reduce:
        state = np.ravel(scalar_operand(imm1, "imm1", dst.shape[0]))
    else:
        raise NotModelledError(f"tensor_scalar_cumulative(reduce_cmd={reduce_cmd})")
    check_disjoint(dst, src, *columns)
    other = scalar_operand(imm0, "imm0", dst.shape[0])
    steps = np.ascontiguousarray(ARITHMETIC[op0.name](values(src, "src"), other).T)
    result = np.empty_like(steps)
    function = ARITHMETIC[op1.name]
    for i, step in enumerate(steps):
        state = result[i] = function(step, state)
    store(dst, np.ascontiguousarray(result.T))
    return core.issue(
        "tensor_scalar_cumulative",
        "vector",
        cost.elementwise(dst.elements),
        reads=(src, *columns),
        writes=(dst,),
    )


@instruction
def select_reduce(
    core: Core,
    dst,
    predicate,
    on_true,
    on_false,
    reduce_res,
    reduce_cmd,
    reduce_op,
    reverse_pred,
    name,
):
    """dst = on_true where predicate, else on_false; optionally the row maximum of dst."""
    dst = destination(core, dst)
    predicate = engine_operand(predicate, "predicate")
    if predicate.dtype not in ("int8", "uint8", "int16", "uint16"):
        fail("operand-dtype", f"predicate {predicate!r} must be an 8- or 16-bit integer")
    on_true = engine_operand(on_true, "on_true")
    same_shape("predicate", predicate, dst)
    same_shape("on_true", on_true, dst)
    not_both_psum(predicate, on_true)
    reads = [predicate, on_true] + ([on_false] if isinstance(on_false, Tensor) else [])
    check_disjoint(dst, *reads)
    other = scalar_operand(on_false, "on_false", dst.shape[0])
    keep = (values(predicate, "predicate") != 0) != bool(reverse_pred)
    result = np.where(keep, values(on_true, "on_true"), other)
    writes = [dst]
    if reduce_res is not None:
        if reduce_op.name != "maximum":
            fail("operator", f"select_reduce reduces with nl.maximum only, got {reduce_op!r}")
        if reduce_cmd is not commands.reset_reduce:
            raise NotModelledError(f"select_reduce(reduce_res=..., reduce_cmd={reduce_cmd})")
        target = column(reduce_res, "reduce_res", dst.shape[0])
        store(destination(core, target, "reduce_res"), result.max(axis=1, keepdims=True))
        writes.append(target)
    elif reduce_cmd is not commands.idle:
        raise NotModelledError(f"select_reduce(reduce_cmd={reduce_cmd}) without reduce_res")
    store(dst, result)
    return core.issue(
        "select_reduce", "vector", cost.elementwise(dst.elements), reads=reads, writes=writes
    )
