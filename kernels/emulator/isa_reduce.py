"""VectorE reductions, scans and statistics along the free dimensions."""

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
from .errors import NotModelledError, SignatureError
from .isa_vector import check_operator, not_both_psum, number
from .machine import Core
from .operators import ARITHMETIC, OTHER_REDUCTIONS, REDUCTIONS
from .registry import instruction
from .rules import fail
from .tensor import Tensor


@instruction
def tensor_reduce(core: Core, dst, op, data, axis, negate, keepdims, name):
    """dst = ± reduction of data's last free dimensions."""
    check_operator(op, "op", (REDUCTIONS, OTHER_REDUCTIONS))
    if op.name in OTHER_REDUCTIONS:
        raise NotModelledError(f"tensor_reduce(op={op!r})")
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
def bn_stats(core: Core, dst, data, name):
    """dst[P, 6]: count, mean, variance · count of the even, then of the odd elements."""
    dst = destination(core, dst)
    data = engine_operand(data, "data")
    if not 2 <= data.elements <= 512:
        fail("statistics-size", f"bn_stats of {data!r}: 2 to 512 elements per partition")
    if dst.shape[0] != data.shape[0] or dst.elements != 6:
        fail("operand-shape", f"dst {dst!r} of bn_stats must be [{data.shape[0]}, 6]")
    check_disjoint(dst, data)
    array = values(data, "data")
    columns = []
    for part in (array[:, 0::2], array[:, 1::2]):
        mean = part.mean(axis=1, dtype=np.float32)
        spread = np.square(part - mean[:, None]).sum(axis=1, dtype=np.float32)
        columns += [np.full_like(mean, part.shape[1]), mean, spread]
    store(dst, np.stack(columns, axis=1))
    return core.issue(
        "bn_stats", "vector", cost.elementwise(data.elements), reads=(data,), writes=(dst,)
    )


@instruction
def bn_aggr(core: Core, dst, data, name):
    """dst[P, 2]: mean and variance of all elements behind (count, mean, variance · count)s."""
    dst = destination(core, dst)
    data = engine_operand(data, "data")
    if data.elements % 3:
        fail("statistics-size", f"bn_aggr of {data!r}: triples, so a multiple of 3 elements")
    if dst.shape[0] != data.shape[0] or dst.elements != 2:
        fail("operand-shape", f"dst {dst!r} of bn_aggr must be [{data.shape[0]}, 2]")
    check_disjoint(dst, data)
    triples = values(data, "data").reshape(data.shape[0], -1, 3)
    count, mean, spread = (triples[:, :, i] for i in range(3))
    total = count.sum(axis=1, dtype=np.float32)
    center = (count * mean).sum(axis=1, dtype=np.float32) / total
    around = spread + count * np.square(mean - center[:, None])
    store(dst, np.stack([center, around.sum(axis=1, dtype=np.float32) / total], axis=1))
    return core.issue(
        "bn_aggr",
        "vector",
        cost.elementwise(13 * data.elements / 3),
        reads=(data,),
        writes=(dst,),
    )
