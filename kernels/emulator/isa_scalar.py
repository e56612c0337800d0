"""ScalarE: activation functions with fused scale, bias and free-axis sum."""

import numpy as np

from . import cost
from .access import check_disjoint, column, destination, engine_operand, same_shape, store, values
from .enums import reduce_cmd as commands
from .errors import SignatureError
from .isa_vector import check_operator, number
from .machine import Core
from .operators import ACTIVATION_RANGES, ACTIVATIONS
from .registry import instruction
from .rules import fail
from .tensor import Tensor


def _table_error(argument, bound):
    """Factors of 1 - bound to 1 + bound, as a table of polynomials errs: by the argument alone.

    exp(0) stays 1 and exp of what underflows 0; the kernels need both, and `qwen35 neuron run` asks
    a device for both.
    """
    bits = np.ascontiguousarray(argument, np.float32).view(np.uint32)
    scrambled = (bits ^ (bits >> 15)) * np.uint32(2654435761)  # Knuth's multiplicative hash
    error = scrambled.astype(np.float64) / 2**31 - 1
    return np.where(argument == 0, 1, 1 + bound * error).astype(np.float32)


def _parameter(value, role, partitions, dtypes=None):
    """scale or bias as float32 [P, 1] values or a constant."""
    if isinstance(value, Tensor):
        tensor = column(value, role, partitions, dtypes)
        if tensor.dtype == "tfloat32":
            fail("operand-dtype", f"{role} {tensor!r} may not be tfloat32")
        return values(tensor, role)
    if not number(value):
        raise SignatureError(f"{role} must be a number or a [P, 1] tensor, got {value!r}")
    return np.float32(value)


def _check_range(op, argument):
    limits = ACTIVATION_RANGES.get(op.name)
    if limits is None:
        return
    checked = np.abs(argument) if op.name == "reciprocal" else argument
    low, high = float(checked.min()), float(checked.max())
    if not (low >= limits[0] and high <= limits[1]):
        fail(
            "activation-range",
            f"{op!r} of values from {low:g} to {high:g}; valid from {limits[0]:g} to {limits[1]:g}",
        )


@instruction
def activation(core: Core, dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd, name):
    """dst = op(data · scale + bias); optionally its row sums, through ScalarE's registers."""
    check_operator(op, "op", (ACTIVATIONS,))
    dst = destination(core, dst)
    data = engine_operand(data, "data")
    same_shape("data", data, dst)
    partitions = dst.shape[0]
    reads = [data, *(t for t in (bias, scale) if isinstance(t, Tensor))]
    check_disjoint(dst, *reads)
    argument = values(data, "data")
    factor = _parameter(scale, "scale", partitions, ("float32",))
    if isinstance(scale, Tensor) or scale != 1:
        argument = argument * factor
    if bias is not None:
        argument = argument + _parameter(bias, "bias", partitions)
    _check_range(op, argument)
    result = ACTIVATIONS[op.name](argument).astype(np.float32, copy=False)
    if op.name == "exp" and core.exp_error:
        result = result * _table_error(argument, core.exp_error)
    _accumulate(core, data, result, reduce_op, reduce_cmd)
    store(dst, result)
    writes = [dst]
    cycles = cost.elementwise(dst.elements)
    if reduce_res is not None:
        _read_registers(core, data, reduce_res, partitions)
        writes.append(reduce_res)
        cycles += cost.MIN_II
    return core.issue("activation", "scalar", cycles, reads=reads, writes=writes)


def _accumulate(core, data, result, reduce_op, command):
    if command not in (commands.idle, commands.reset, commands.reduce, commands.reset_reduce):
        fail("operator", f"activation has no reduce_cmd {command}")
    adds = command in (commands.reduce, commands.reset_reduce)
    if adds and (reduce_op is None or reduce_op.name != "add"):
        fail("operator", f"activation reduces with reduce_op=nl.add only, got {reduce_op!r}")
    registers = core.scalar_registers
    if command in (commands.reset, commands.reset_reduce):
        registers.set(data, 0)
    if adds:
        before = registers.get(data, "scalar-registers", "reduce_cmd.reduce")
        registers.set(data, before + result.sum(axis=1, dtype=np.float32))


def _read_registers(core, data, reduce_res, partitions):
    target = destination(core, column(reduce_res, "reduce_res", partitions), "reduce_res")
    store(target, core.scalar_registers.get(data, "scalar-registers", "reduce_res")[:, None])


@instruction
def activation_reduce(core: Core, dst, op, data, reduce_op, reduce_res, bias, scale, name):
    """activation with reduce_cmd=reset_reduce."""
    return activation(
        core, dst, op, data, bias, scale, reduce_op, reduce_res, commands.reset_reduce, name
    )
