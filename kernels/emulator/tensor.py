"""`Tensor`: a view on a storage, as kernels see it (`NkiTensor` of the documentation).

A view is (offset, shape, strides) in elements of the storage; on chip the storage is row-major
[partitions, row], so the stride of dimension 0 is always `row`. Views copy nothing.
"""

import numpy as np

from .errors import LanguageError, NotModelledError, SignatureError
from .rules import fail

_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul "
    "rmatmul and rand or ror xor rxor lshift rlshift rshift rrshift neg pos abs invert iadd isub "
    "imul itruediv imatmul lt le gt ge eq ne bool float int len iter contains"
).split()


class Tensor:
    """A tensor or a view of one. `buffer` is "sbuf", "psum" or "hbm"; `dtype` a DType."""

    __slots__ = ("buffer", "dtype", "indexed", "offset", "shape", "storage", "strides")

    def __init__(self, storage, offset, shape, strides, indexed=True):
        self.storage = storage
        self.offset = offset
        self.shape = tuple(shape)
        self.strides = tuple(strides)
        self.indexed = indexed
        self.dtype = storage.dtype
        self.buffer = storage.block.space

    @classmethod
    def whole(cls, storage):
        return cls(storage, 0, storage.shape, contiguous(storage.shape), indexed=False)

    # What kernels read.

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def name(self):
        return self.storage.block.name

    def __repr__(self):
        return f"{self.name}{list(self.shape)} {self.dtype} in {self.buffer}"

    # Places, for checks and messages.

    @property
    def on_chip(self):
        return self.buffer != "hbm"

    @property
    def partition(self):
        """First partition of an on-chip view."""
        return self.offset // self.storage.row

    @property
    def free_offset(self):
        """First element inside a partition."""
        return self.offset % self.storage.row

    @property
    def elements(self):
        """Elements per partition (on chip), or in all (HBM)."""
        count = 1
        for size in self.shape[1:] if self.on_chip else self.shape:
            count *= size
        return count

    def extent(self):
        """Half-open interval of element offsets inside a partition (HBM: inside the tensor)."""
        first = self.free_offset if self.on_chip else self.offset
        skip = 1 if self.on_chip else 0
        last = first
        for size, stride in zip(self.shape[skip:], self.strides[skip:], strict=True):
            last += (size - 1) * stride
        return first, last + 1

    def view_of(self, cells: np.ndarray) -> np.ndarray:
        """This view of an array that has one entry per element of the storage."""
        item = cells.itemsize
        return np.ndarray(
            self.shape,
            cells.dtype,
            cells,
            self.offset * item,
            [stride * item for stride in self.strides],
        )

    # Indexing.

    def __getitem__(self, index):
        from .machine import current

        if self.indexed and current().version < (0, 5):
            fail("nested-index", f"{self!r} is a slice already; index the tensor itself once")
        if not isinstance(index, tuple):
            index = (index,)
        index = self._expand_ellipsis(index)
        offset, shape, strides = self.offset, [], []
        for dim, item in enumerate(index):
            size, stride = self.shape[dim], self.strides[dim]
            start, count, step = self._resolve(item, dim, size)
            if dim == 0 and self.on_chip and step != 1:
                fail(
                    "partition-stride",
                    f"{self!r} is sliced with step {step} on its partition dimension; use step 1",
                )
            offset += start * stride
            if isinstance(item, slice) or (dim == 0 and self.on_chip):
                shape.append(count)
                strides.append(stride * step)
        if self.on_chip and len(shape) == 1:
            shape.append(1)
            strides.append(1)
        return Tensor(self.storage, offset, shape, strides)

    def _expand_ellipsis(self, index):
        count = sum(1 for item in index if item is Ellipsis)
        if count > 1:
            raise SignatureError(f"an index has at most one '...', got {count}")
        missing = len(self.shape) - (len(index) - count)
        if missing < 0:
            fail("bounds", f"{self!r} has {self.ndim} dimensions, the index {len(index) - count}")
        fill = (slice(None),) * missing
        if count:
            place = next(i for i, item in enumerate(index) if item is Ellipsis)
            return index[:place] + fill + index[place + 1 :]
        return index + fill

    def _resolve(self, item, dim, size):
        """(start, count, step) of one index entry, checked against the dimension's size."""
        if isinstance(item, slice):
            step = 1 if item.step is None else item.step
            start = 0 if item.start is None else item.start
            stop = size if item.stop is None else item.stop
            for part in (start, stop, step):
                if not isinstance(part, int | np.integer) or isinstance(part, bool):
                    raise NotModelledError(f"a slice bound of {self!r} is {part!r}, not an int")
            start = start + size if start < 0 else start
            stop = stop + size if stop < 0 else stop
            if step < 1:
                raise NotModelledError(f"slice step {step} on {self!r}: only positive steps")
            if not 0 <= start < stop <= size:
                fail("bounds", f"slice {start}:{stop} of dimension {dim} (size {size}) of {self!r}")
            return start, -(-(stop - start) // step), step
        if isinstance(item, int | np.integer) and not isinstance(item, bool):
            start = item + size if item < 0 else item
            if not 0 <= start < size:
                fail("bounds", f"index {item} of dimension {dim} (size {size}) of {self!r}")
            return start, 1, 1
        raise NotModelledError(
            f"index {item!r} on {self!r} is not modelled; use ints, slices, '...' or nl.ds"
        )

    def ap(
        self,
        pattern,
        offset=None,
        scalar_offset=None,
        vector_offset=None,
        indirect_dim=0,
        dtype=None,
    ):
        """The access pattern [[stride, count], …] on this tensor's elements, from `offset`."""
        if self.indexed:
            fail("ap-on-allocation", f".ap on {self!r}, which is a view; call it on the tensor")
        if scalar_offset is not None or vector_offset is not None or indirect_dim != 0:
            raise NotModelledError(".ap with dynamic offsets is not modelled")
        if dtype is not None and dtype != self.dtype:
            raise NotModelledError(".ap(dtype=...) (reinterpretation) is not modelled")
        if not pattern:
            raise SignatureError(".ap needs a pattern of [stride, count] pairs")
        pairs = [tuple(pair) for pair in pattern]
        if any(len(pair) != 2 for pair in pairs):
            raise SignatureError(f".ap pattern {pattern!r}: every entry is [stride, count]")
        offset = 0 if offset is None else offset
        shape = [count for _, count in pairs]
        strides = [stride for stride, _ in pairs]
        if any(count < 1 for count in shape) or any(stride < 0 for stride in strides):
            raise NotModelledError(f".ap pattern {pattern!r}: counts ≥ 1 and strides ≥ 0 only")
        last = offset + sum((n - 1) * s for s, n in pairs)
        if offset < 0 or last >= self.storage.size:
            fail(
                "bounds",
                f".ap reaches element {last} of {self!r}, which has {self.storage.size}",
            )
        if self.on_chip:
            row = self.storage.row
            if strides[0] != row:
                fail(
                    "partition-stride",
                    f".ap on {self!r}: the first stride must be the {row} elements of a "
                    f"partition, got {strides[0]}",
                )
            inside = offset % row + sum((n - 1) * s for s, n in pairs[1:])
            if inside >= row:
                fail(
                    "bounds",
                    f".ap on {self!r} reaches element {inside} of a partition's {row}",
                )
            if len(shape) == 1:
                shape.append(1)
                strides.append(1)
        return Tensor(self.storage, offset, shape, strides)

    def reshape(self, shape):
        """The same elements with another shape; on chip the partition dimension stays."""
        shape = tuple(shape)
        if not self._is_contiguous():
            raise NotModelledError(f"reshape of {self!r}, which is not contiguous")
        if int(np.prod(shape)) != int(np.prod(self.shape)):
            fail("bounds", f"reshape of {self!r} to {list(shape)} changes the number of elements")
        if self.on_chip and shape[0] != self.shape[0]:
            fail("partition-stride", f"reshape of {self!r} to {list(shape)} moves partitions")
        strides = contiguous(shape)
        if self.on_chip:
            strides = (self.storage.row, *strides[1:])
        return Tensor(self.storage, self.offset, shape, strides, self.indexed)

    def _is_contiguous(self):
        expected = 1
        dims = list(zip(self.shape, self.strides, strict=True))
        for size, stride in reversed(dims[1:] if self.on_chip else dims):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

    def __setitem__(self, index, value):
        raise LanguageError(
            "tensor-arithmetic",
            f"assignment into {self!r}; write with an instruction such as nisa.tensor_copy",
        )


def _refuse(name):
    def method(self, *args):
        raise LanguageError(
            "tensor-arithmetic",
            f"Python's __{name}__ on {self!r}; tensors are computed with nki.isa instructions",
        )

    return method


for _name in _OPERATORS:
    setattr(Tensor, f"__{_name}__", _refuse(_name))
Tensor.__hash__ = object.__hash__
# `is` is not part of the language before 0.7, so kernels compare optional tensors with None.
Tensor.__eq__ = lambda self, other: False if other is None else _refuse("eq")(self, other)
Tensor.__ne__ = lambda self, other: True if other is None else _refuse("ne")(self, other)


def contiguous(shape):
    """Row-major strides of a shape."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
