"""`Tensor`: a view on a storage, as kernels see it (`NkiTensor` of the documentation).

A view is (offset, shape, strides) in elements of the storage; on chip the storage is row-major
[partitions, row], so the stride of dimension 0 is always `row`. Views copy nothing. The view
methods themselves (`.ap`, `.reshape`, …) are in `views`.
"""

import numpy as np

from .errors import LanguageError, NotModelledError, SignatureError
from .rules import fail
from .running import current

_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul "
    "rmatmul and rand or ror xor rxor lshift rlshift rshift rrshift neg pos abs invert iadd isub "
    "imul itruediv imatmul lt le gt ge bool float int len iter contains setitem"
).split()


class Tensor:
    """A tensor or a view of one. `space` is "sbuf", "psum" or "hbm"; `dtype` a DType.

    `indexed` tells a slice or another narrowed view from an allocated tensor (or a reshape of
    one). `buffer` is the `nl.sbuf` … object that the kernel allocated with.
    """

    __slots__ = ("checked", "dtype", "indexed", "offset", "shape", "space", "storage", "strides")

    def __init__(self, storage, offset, shape, strides, indexed=True):
        self.storage = storage
        self.offset = offset
        self.shape = tuple(shape)
        self.strides = tuple(strides)
        self.indexed = indexed
        self.dtype = storage.dtype
        self.space = storage.block.space
        self.checked = False  # engine access rules hold (see access.engine_operand)

    @classmethod
    def whole(cls, storage):
        return cls(storage, 0, storage.shape, contiguous(storage.shape), indexed=False)

    # What kernels read, next to shape, strides, offset and dtype.

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def size(self):
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def name(self):
        return self.storage.block.name

    @property
    def buffer(self):
        return self.storage.buffer

    def __repr__(self):
        return f"{self.name}{list(self.shape)} {self.dtype} in {self.space}"

    # Places, for checks and messages.

    @property
    def on_chip(self):
        return self.space != "hbm"

    @property
    def partition(self):
        """First partition of an on-chip view."""
        return self.offset // self.storage.row

    @property
    def elements(self):
        """Elements per partition (on chip), or in all (HBM)."""
        count = 1
        for size in self.shape[1:] if self.on_chip else self.shape:
            count *= size
        return count

    def extent(self):
        """Half-open interval of element offsets inside a partition (HBM: inside the tensor)."""
        skip = 1 if self.on_chip else 0
        first = last = self.offset % self.storage.row if skip else self.offset
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

    # Indexing with ints, slices and "...".

    def __getitem__(self, index):
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
        return on_chip_2d(self, offset, shape, strides)

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


def _refuse(name):
    def method(self, *args):
        raise LanguageError(
            "tensor-arithmetic",
            f"Python's __{name}__ on {self!r}; tensors are computed with nki.isa instructions",
        )

    return method


for _name in _OPERATORS:
    setattr(Tensor, f"__{_name}__", _refuse(_name))
# `is` is not part of the language before 0.7, so kernels compare optional tensors with None.
Tensor.__eq__ = lambda self, other: False if other is None else _refuse("eq")(self, other)
Tensor.__ne__ = lambda self, other: True if other is None else _refuse("ne")(self, other)
Tensor.__hash__ = object.__hash__


def contiguous(shape):
    """Row-major strides of a shape."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def free_dimensions(tensor: Tensor) -> int:
    """Free dimensions of the access pattern, after merging those that are one stride."""
    count, merged = 0, None
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.strides[1:]), strict=True):
        if size == 1:
            continue
        if merged is None or stride != merged:
            count += 1
        merged = stride * size
    return count


def on_chip_2d(base: Tensor, offset, shape, strides) -> Tensor:
    """A narrowed view of `base`; on chip the last dimension is kept so that it stays 2-D."""
    if base.on_chip and len(shape) == 1:
        shape, strides = [*shape, 1], [*strides, 1]
    return Tensor(base.storage, offset, shape, strides)
