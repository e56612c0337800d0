"""Reading and writing operands, with every check that does not depend on the instruction."""

import numpy as np

from .dtypes import decode, encode
from .errors import NotModelledError, SignatureError, UninitializedError
from .machine import Core
from .rules import fail
from .tensor import Tensor, free_dimensions

ON_CHIP = ("sbuf", "psum")


def operand(value, role, spaces=ON_CHIP) -> Tensor:
    """`value` checked to be a tensor in one of `spaces`, at legal partitions if on chip."""
    if not isinstance(value, Tensor):
        raise SignatureError(f"{role} must be a tensor, got {value!r}")
    if value.space not in spaces:
        fail("operand-space", f"{role} {value!r} must be in {' or '.join(spaces)}")
    return value


def engine_operand(value, role, spaces=ON_CHIP) -> Tensor:
    """An operand of a compute engine: also obeys the start-partition and pattern limits."""
    tensor = operand(value, role, spaces)
    if not tensor.checked:
        check_partitions(tensor, role)
        _check_pattern(tensor, role)
        tensor.checked = True
    return tensor


def _check_pattern(tensor: Tensor, role):
    if len(tensor.shape) > 5 and free_dimensions(tensor) > 4:
        fail(
            "free-dimensions",
            f"{role} {tensor!r} needs {free_dimensions(tensor)} free dimensions, at most 4",
        )
    limit = 4096 if tensor.space == "psum" else 65536
    if tensor.elements > limit:
        fail("access-pattern", f"{role} {tensor!r} has more than {limit} elements per partition")
    for size, stride in zip(tensor.shape[1:], tensor.strides[1:], strict=True):
        if size > 65535 or (size > 1 and stride > 32767):
            fail("access-pattern", f"{role} {tensor!r}: count {size}, stride {stride} elements")


def check_partitions(tensor: Tensor, role, count=None):
    """The start-partition rule for `count` active partitions (the tensor's own by default)."""
    start, count = tensor.partition, count or tensor.shape[0]
    if start == 0:
        return
    legal = (0,) if count > 64 else (0, 64) if count > 32 else (0, 32, 64, 96)
    if start not in legal:
        fail(
            "start-partition",
            f"{role} {tensor!r} starts at partition {start}; {count} partitions may start at "
            f"{', '.join(map(str, legal))}",
        )


def destination(core: Core, value, role="dst", spaces=ON_CHIP) -> Tensor:
    """An operand that a compute engine writes."""
    tensor = engine_operand(value, role, spaces)
    check_writable(tensor, role)
    return tensor


def check_writable(tensor: Tensor, role):
    if tensor.storage.readonly:
        fail("input-write", f"{role} {tensor!r} is an input or a constant")
    if not tensor.indexed:
        return
    reach = 0
    for stride, size in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                fail("destination-broadcast", f"{role} {tensor!r} writes an element twice")
            reach += (size - 1) * stride


def same_shape(role, tensor: Tensor, reference: Tensor):
    """Same partitions and elements per partition (free dimensions count flattened)."""
    if tensor.shape[0] != reference.shape[0] or tensor.elements != reference.elements:
        fail(
            "operand-shape",
            f"{role} {tensor!r} has {tensor.shape[0]} partitions x {tensor.elements} elements, "
            f"{reference!r} has {reference.shape[0]} x {reference.elements}",
        )


def column(value, role, partitions, dtypes=None):
    """A per-partition operand [P, 1]."""
    tensor = engine_operand(value, role)
    if tensor.shape[0] != partitions or tensor.elements != 1:
        fail("vector-operand", f"{role} {tensor!r} must have shape [{partitions}, 1]")
    if dtypes and tensor.dtype not in dtypes:
        fail("operand-dtype", f"{role} {tensor!r} must be {' or '.join(dtypes)}")
    return tensor


def check_disjoint(dst: Tensor, *sources):
    """Refuse an instruction that reads, elsewhere in its order, what it writes."""
    for source in sources:
        if not isinstance(source, Tensor) or source.storage is not dst.storage:
            continue
        if source.offset == dst.offset and source.shape[0] == dst.shape[0]:
            if (source.shape, source.strides) == (dst.shape, dst.strides):
                continue
        views = (tensor.view_of(dst.storage.cells) for tensor in (source, dst))
        try:
            overlap = np.shares_memory(*views, max_work=10**6)
        except np.exceptions.TooHardError:
            raise NotModelledError(
                f"whether {source!r} and dst {dst!r} overlap is too hard to tell"
            ) from None
        if overlap:
            fail("overlapping-operands", f"{source!r} and dst {dst!r} overlap but differ")


def partition_of(tensor: Tensor, row: int) -> Tensor:
    """One partition of an on-chip view (for instructions that treat partitions apart)."""
    offset = tensor.offset + row * tensor.strides[0]
    return Tensor(tensor.storage, offset, (1, *tensor.shape[1:]), tensor.strides)


def check_written(tensor: Tensor, role, rows=None):
    """Poison: every element that is read (of `rows`, if given) was written before."""
    storage = tensor.storage
    if not storage.full:
        written = tensor.view_of(storage.written)
        if rows is not None:
            if written[rows].all():
                return
        if not written.all():
            place = np.unravel_index(int(np.argmin(written)), tensor.shape)
            raise UninitializedError(
                "uninitialized",
                f"{role} {tensor!r} reads uninitialised storage: {tensor.name} (allocated at line "
                f"{storage.block.line}), first at element {[int(i) for i in place]} of this view, "
                f"{int(written.size - np.count_nonzero(written))} of {written.size} elements",
            )
        if not tensor.indexed:
            storage.full = True


def cells(tensor: Tensor, role) -> np.ndarray:
    """The stored cells of a view, checked against poison."""
    check_written(tensor, role)
    return tensor.view_of(tensor.storage.cells)


def values(tensor: Tensor, role) -> np.ndarray:
    """float32 values of an on-chip view as [partitions, elements per partition]."""
    array = decode(cells(tensor, role), tensor.dtype)
    return array if array.ndim == 2 else array.reshape(array.shape[0], -1)


def store(dst: Tensor, result: np.ndarray):
    """Round float32 values to dst's dtype and write them."""
    store_cells(dst, encode(result, dst.dtype))


def store_cells(dst: Tensor, stored: np.ndarray):
    storage = dst.storage
    if stored.shape != dst.shape:
        stored = stored.reshape(dst.shape)
    dst.view_of(storage.cells)[...] = stored
    if not storage.full:
        if stored.size == storage.size:
            storage.full = True
        else:
            dst.view_of(storage.written)[...] = True
    if storage.from_matmul is not None:
        dst.view_of(storage.from_matmul)[...] = False
    for rival, box in storage.rivals:
        rival.poison(box)
