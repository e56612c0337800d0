"""VectorE instructions that share its accumulator registers, one per lane.

The registers persist from one instruction to the next. `reduce_cmd.idle` leaves them undefined
("even when reduce_cmd is set to idle, the accumulator state may still be modified").
"""

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
from .isa_vector import check_operator, not_both_psum, scalar_operand
from .machine import Core
from .operators import ARITHMETIC, REDUCTIONS, Operator
from .registry import instruction
from .rules import fail
from .tensor import Tensor

_FP32_MIN = -3.4028235e38
_BOUNDS = ("equal", "less", "less_equal", "greater", "greater_equal")
_IDENTITY = {"maximum": -np.inf, "minimum": np.inf, "multiply": 1.0, "add": 0.0, "subtract": 0.0}


def _start(core: Core, command, op: Operator, initial, data: Tensor):
    """The registers' values [P] that an accumulation with `op` over `data` starts from."""
    partitions = data.shape[0]
    if command is commands.reset_reduce:
        return np.full(partitions, _IDENTITY[op.name], np.float32)
    if command is commands.load_reduce:
        loaded = np.ravel(scalar_operand(initial, "initial value", partitions))
        return np.broadcast_to(loaded, (partitions,))
    if command is commands.reduce:
        return core.vector_registers.get(data, "vector-registers", "reduce_cmd.reduce")
    fail("operator", f"{command} is no command of this instruction")


def _finish(core: Core, command, op, initial, data: Tensor, result, reduce_res):
    """Accumulate a result's rows and write the registers out; returns what was written."""
    if command is commands.idle:
        core.vector_registers.forget()
    else:
        state = _start(core, command, op, initial, data)
        rows = REDUCTIONS[op.name].reduce(result, axis=1, dtype=np.float32)
        core.vector_registers.set(data, REDUCTIONS[op.name](state, rows))
    if reduce_res is None:
        return []
    target = destination(core, column(reduce_res, "reduce_res", len(result)), "reduce_res")
    total = core.vector_registers.get(data, "vector-registers", "reduce_res")
    store(target, total[:, None])
    return [target]


def _only_maximum(reduce_op):
    if not isinstance(reduce_op, Operator) or reduce_op.name != "maximum":
        fail("operator", f"this instruction reduces with nl.maximum only, got {reduce_op!r}")


@instruction
def tensor_scalar_cumulative(core: Core, dst, src, op0, op1, imm0, imm1, reduce_cmd, name):
    """Running r = op1(op0(src[i], imm0), r) per partition, every r written."""
    check_operator(op0, "op0", (ARITHMETIC,))
    check_operator(op1, "op1", (_IDENTITY,))
    dst = destination(core, dst)
    src = engine_operand(src, "src")
    same_shape("src", src, dst)
    for tensor in (dst, src):
        if tensor.dtype in ("int32", "uint32"):
            fail("operand-dtype", f"{tensor!r}: 32-bit integers are not supported here")
    columns = [imm for imm in (imm0, imm1) if isinstance(imm, Tensor)]
    check_disjoint(dst, src, *columns)
    state = _start(core, reduce_cmd, op1, imm1, src)
    other = scalar_operand(imm0, "imm0", dst.shape[0])
    steps = np.ascontiguousarray(ARITHMETIC[op0.name](values(src, "src"), other).T)
    result = np.empty_like(steps)
    function = ARITHMETIC[op1.name]
    for i, step in enumerate(steps):
        state = result[i] = function(step, state)
    core.vector_registers.set(src, state)
    store(dst, np.ascontiguousarray(result.T))
    return core.issue(
        "tensor_scalar_cumulative",
        "vector",
        cost.elementwise(dst.elements),
        reads=(src, *columns),
        writes=(dst,),
    )


@instruction
def tensor_scalar_reduce(
    core: Core,
    dst,
    data,
    op0,
    operand0,
    reduce_op,
    reduce_res,
    reverse0,
    reduce_cmd,
    reduce_init,
    reduce_res_negate,
    name,
):
    """dst = data <op0> operand0, and reduce_op over its rows.

    The page's "reset accumulators to 0" is for sums; its formula, and the use as a row maximum in
    AWS's attention, tell that a reset gives the operator's own identity.
    """
    check_operator(op0, "op0", (ARITHMETIC,))
    check_operator(reduce_op, "reduce_op", (REDUCTIONS,))
    if reduce_res_negate:
        raise NotModelledError("tensor_scalar_reduce(reduce_res_negate=True)")
    if reduce_cmd is commands.idle:
        fail("operator", "tensor_scalar_reduce always accumulates; reduce_cmd.idle is not for it")
    dst = destination(core, dst)
    data = engine_operand(data, "data")
    same_shape("data", data, dst)
    columns = [t for t in (operand0, reduce_init) if isinstance(t, Tensor)]
    check_disjoint(dst, data, *columns)
    other = scalar_operand(operand0, "operand0", dst.shape[0])
    array, function = values(data, "data"), ARITHMETIC[op0.name]
    result = function(np.broadcast_to(other, array.shape), array) if reverse0 else None
    result = function(array, other) if result is None else result
    written = _finish(core, reduce_cmd, reduce_op, reduce_init, data, result, reduce_res)
    store(dst, result)
    return core.issue(
        "tensor_scalar_reduce",
        "vector",
        cost.elementwise(dst.elements) + cost.MIN_II,
        reads=(data, *columns),
        writes=(dst, *written),
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
    _only_maximum(reduce_op)
    dst = destination(core, dst)
    predicate = engine_operand(predicate, "predicate")
    if predicate.dtype not in ("int8", "uint8", "int16", "uint16"):
        fail("operand-dtype", f"predicate {predicate!r} must be an 8- or 16-bit integer")
    on_true = engine_operand(on_true, "on_true")
    if on_true.dtype in ("tfloat32", "int32", "uint32"):
        fail("operand-dtype", f"on_true {on_true!r} may not be tfloat32 or a 32-bit integer")
    same_shape("predicate", predicate, dst)
    same_shape("on_true", on_true, dst)
    not_both_psum(predicate, on_true)
    reads = [predicate, on_true] + ([on_false] if isinstance(on_false, Tensor) else [])
    check_disjoint(dst, *reads)
    other = scalar_operand(on_false, "on_false", dst.shape[0])
    keep = (values(predicate, "predicate") != 0) != bool(reverse_pred)
    result = np.where(keep, values(on_true, "on_true"), other)
    written = _finish(core, reduce_cmd, reduce_op, None, on_true, result, reduce_res)
    store(dst, result)
    return core.issue(
        "select_reduce",
        "vector",
        cost.elementwise(dst.elements),
        reads=reads,
        writes=(dst, *written),
    )


@instruction
def range_select(
    core: Core,
    dst,
    on_true_tile,
    comp_op0,
    comp_op1,
    bound0,
    bound1,
    reduce_cmd,
    reduce_res,
    reduce_op,
    range_start,
    on_false_value,
    name,
):
    """dst = on_true where comp0(i, bound0) and comp1(i, bound1), i = range_start + index."""
    _only_maximum(reduce_op)
    check_operator(comp_op0, "comp_op0", (_BOUNDS,))
    check_operator(comp_op1, "comp_op1", (_BOUNDS,))
    if np.float32(on_false_value) != np.float32(_FP32_MIN):
        raise SignatureError(f"range_select: on_false_value must be FP32_MIN, got {on_false_value}")
    dst = destination(core, dst)
    source = engine_operand(on_true_tile, "on_true_tile")
    if source.dtype.integer:
        fail("operand-dtype", f"on_true_tile {source!r} must be a floating-point type")
    same_shape("on_true_tile", source, dst)
    bounds = [
        column(bound, role, dst.shape[0], ("float32",))
        for bound, role in ((bound0, "bound0"), (bound1, "bound1"))
    ]
    check_disjoint(dst, source, *bounds)
    index = np.arange(range_start, range_start + dst.elements, dtype=np.float32)[None]
    keep = np.ones((dst.shape[0], dst.elements), bool)
    for op, bound in zip((comp_op0, comp_op1), bounds, strict=True):
        keep &= ARITHMETIC[op.name](index, values(bound, "bound")) != 0
    result = np.where(keep, values(source, "on_true_tile"), np.float32(_FP32_MIN))
    written = _finish(core, reduce_cmd, reduce_op, None, source, result, reduce_res)
    store(dst, result)
    return core.issue(
        "range_select",
        "vector",
        cost.elementwise(dst.elements),
        reads=(source, *bounds),
        writes=(dst, *written),
    )
