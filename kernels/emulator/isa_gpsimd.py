"""GpSimd: index patterns and affine masks."""

import numpy as np

from . import cost, isa_limits
from .access import check_disjoint, destination, engine_operand, same_shape, store, values
from .errors import SignatureError
from .isa_vector import check_operator, number
from .machine import Core
from .operators import ARITHMETIC, COMPARISONS
from .registry import instruction
from .rules import fail


def _affine(dst, pattern, offset, channel_multiplier):
    """int64 [P, N]: offset + p · channel_multiplier + Σ index · step."""
    pairs = [tuple(pair) for pair in pattern]
    sizes = [count for _, count in pairs]
    if not 1 <= len(pairs) <= 4 or int(np.prod(sizes)) != dst.elements:
        fail(
            "affine-pattern",
            f"pattern {pattern} has {int(np.prod(sizes))} elements in {len(pairs)} pairs, dst "
            f"{dst!r} has {dst.elements} per partition",
        )
    total = np.zeros(sizes, np.int64)
    for axis, (step, count) in enumerate(pairs):
        shape = [1] * len(pairs)
        shape[axis] = count
        total = total + (np.arange(count) * step).reshape(shape)
    channel = np.arange(dst.shape[0])[:, None] * channel_multiplier
    return offset + channel + total.reshape(1, -1)


@instruction
def iota(core: Core, dst, pattern, offset, channel_multiplier, name):
    """dst[p, i] = offset + p · channel_multiplier + the pattern's i-th value."""
    dst = destination(core, dst, "dst", ("sbuf",))
    store(dst, _affine(dst, pattern, offset, channel_multiplier).astype(np.float64))
    return core.issue("iota", "gpsimd", cost.gpsimd_pattern(dst), writes=(dst,))


@instruction
def affine_select(
    core: Core,
    dst,
    pattern,
    channel_multiplier,
    on_true_tile,
    on_false_value,
    cmp_op,
    offset,
    name,
):
    """dst = on_true_tile where cmp_op(affine value, 0), else on_false_value."""
    check_operator(cmp_op, "cmp_op", (COMPARISONS,))
    if core.strict:
        isa_limits.check_comparison(cmp_op)
    dst = destination(core, dst, "dst", ("sbuf",))
    source = engine_operand(on_true_tile, "on_true_tile", ("sbuf",))
    same_shape("on_true_tile", source, dst)
    check_disjoint(dst, source)
    if not number(on_false_value):
        raise SignatureError(f"on_false_value must be a number, got {on_false_value!r}")
    affine = _affine(dst, pattern, offset, channel_multiplier)
    keep = ARITHMETIC[cmp_op.name](affine, 0) != 0
    store(dst, np.where(keep, values(source, "on_true_tile"), np.float32(on_false_value)))
    return core.issue(
        "affine_select", "gpsimd", cost.gpsimd_pattern(dst), reads=(source,), writes=(dst,)
    )
