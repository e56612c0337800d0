"""View methods of tensors: `.ap` and `.reshape` of every version, the others from 0.5 on.

Source: language: NkiTensor; the language guide's "Tensor Values"; aps. A view that would need a
copy, strides on partitions or dynamic addresses is refused.
"""

import itertools

import numpy as np

from .errors import NotModelledError, SignatureError
from .rules import fail
from .running import current
from .signatures import TENSOR, bind
from .tensor import Tensor, on_chip_2d

_METHODS = {}


def _method(function):
    _METHODS[function.__name__] = function
    return function


@_method
def ap(tensor, pattern, offset, scalar_offset, vector_offset, indirect_dim, dtype):
    """The access pattern [[stride, count], …] on the tensor's elements, from `offset`."""
    if tensor.indexed:
        fail("ap-on-allocation", f".ap on {tensor!r}, which is a view; call it on the tensor")
    if scalar_offset is not None or vector_offset is not None or indirect_dim != 0:
        raise NotModelledError(".ap with dynamic offsets is not modelled")
    if dtype is not None and dtype != tensor.dtype:
        raise NotModelledError(".ap(dtype=...) (reinterpretation) is not modelled")
    pairs = [tuple(pair) for pair in pattern]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise SignatureError(f".ap pattern {pattern!r}: [stride, count] pairs, at least one")
    offset = 0 if offset is None else offset
    strides, shape = zip(*pairs, strict=True)
    if any(count < 1 for count in shape) or any(stride < 0 for stride in strides):
        raise NotModelledError(f".ap pattern {pattern!r}: counts ≥ 1 and strides ≥ 0 only")
    last = offset + sum((n - 1) * s for s, n in pairs)
    if offset < 0 or last >= tensor.storage.size:
        fail("bounds", f".ap reaches element {last} of {tensor!r}, which has {tensor.storage.size}")
    if tensor.on_chip:
        row = tensor.storage.row
        if strides[0] != row:
            fail(
                "partition-stride",
                f".ap on {tensor!r}: the first stride must be the {row} elements of a partition, "
                f"got {strides[0]}",
            )
        inside = offset % row + sum((n - 1) * s for s, n in pairs[1:])
        if inside >= row:
            fail("bounds", f".ap on {tensor!r} reaches element {inside} of a partition's {row}")
    return on_chip_2d(tensor, offset, shape, strides)


@_method
def reshape(tensor, shape):
    """The same elements with another shape; on chip the partition dimension stays."""
    shape = tuple(shape)
    if int(np.prod(shape, dtype=np.int64)) != tensor.size:
        fail("bounds", f"reshape of {tensor!r} to {list(shape)} changes the number of elements")
    if tensor.on_chip and shape[0] != tensor.shape[0]:
        fail("partition-stride", f"reshape of {tensor!r} to {list(shape)} moves partitions")
    keep = 1 if tensor.on_chip else 0
    strides = _reshaped(tensor.shape[keep:], tensor.strides[keep:], shape[keep:])
    if strides is None:
        fail("view-copy", f"reshape of {tensor!r} to {list(shape)} needs a copy")
    return Tensor(
        tensor.storage, tensor.offset, shape, (*tensor.strides[:keep], *strides), tensor.indexed
    )


def _reshaped(old, strides, new):
    """Strides of `new` over the same elements, or None if no strides give them."""
    # Dimensions of size 1 carry no information; the others are matched in groups of equal size.
    dims = [(n, s) for n, s in zip(old, strides, strict=True) if n > 1]
    result, place = [], 0
    pending: list[int] = []
    for size in new:
        pending.append(size)
        count = int(np.prod(pending, dtype=np.int64))
        group, total = place, 1
        while total < count and group < len(dims):
            total *= dims[group][0]
            group += 1
        if total != count:
            continue
        for (_, outer), (inner, stride) in itertools.pairwise(dims[place:group]):
            if outer != inner * stride:
                return None
        step = dims[group - 1][1] if group > place else 1
        parts = []
        for part in reversed(pending):
            parts.append(step)
            step *= part
        result += reversed(parts)
        place, pending = group, []
    return result if not pending and place == len(dims) else None


@_method
def view(tensor, dtype):
    """Reinterpretation of the bits."""
    if dtype != tensor.dtype:
        raise NotModelledError(".view(dtype) (reinterpretation) is not modelled")
    return tensor


def _dim(tensor, dim):
    if not -tensor.ndim <= dim < tensor.ndim:
        fail("bounds", f"dimension {dim} of {tensor!r}")
    return dim % tensor.ndim


@_method
def slice(tensor, dim, start, end, step):
    """t[..., start:end:step, ...] on dimension `dim`."""
    index = [np.s_[:]] * tensor.ndim
    index[_dim(tensor, dim)] = np.s_[start:end:step]
    return tensor[tuple(index)]


@_method
def select(tensor, dim, index):
    """One index of a dimension, which is dropped."""
    if isinstance(index, Tensor):
        raise NotModelledError(".select with a tensor index (dynamic) is not modelled")
    picked = [np.s_[:]] * tensor.ndim
    picked[_dim(tensor, dim)] = index
    return tensor[tuple(picked)]


@_method
def permute(tensor, dims):
    """Dimensions in another order; on chip dimension 0 stays first."""
    dims = tuple(dims)
    if sorted(dims) != list(range(tensor.ndim)):
        fail("bounds", f"permute{dims} of {tensor!r} is not an order of its dimensions")
    if tensor.on_chip and dims[0] != 0:
        fail("partition-stride", f"permute{dims} of {tensor!r} moves the partition dimension")
    shape = [tensor.shape[dim] for dim in dims]
    return Tensor(tensor.storage, tensor.offset, shape, [tensor.strides[dim] for dim in dims])


@_method
def broadcast(tensor, dim, size):
    """A free dimension of size 1 read `size` times."""
    dim = _dim(tensor, dim)
    if tensor.on_chip and dim == 0:
        fail("partition-stride", f"{tensor!r} can't be broadcast over partitions")
    if tensor.shape[dim] != 1:
        fail("bounds", f"broadcast of dimension {dim} of {tensor!r}, whose size is not 1")
    shape, strides = list(tensor.shape), list(tensor.strides)
    shape[dim], strides[dim] = size, 0
    return Tensor(tensor.storage, tensor.offset, shape, strides)


@_method
def expand_dim(tensor, dim):
    """A new dimension of size 1 at `dim`."""
    if not (1 if tensor.on_chip else 0) <= dim <= tensor.ndim:
        fail("bounds", f"expand_dim({dim}) of {tensor!r}")
    shape, strides = list(tensor.shape), list(tensor.strides)
    shape.insert(dim, 1)
    strides.insert(dim, 1)
    return Tensor(tensor.storage, tensor.offset, shape, strides, tensor.indexed)


@_method
def squeeze_dim(tensor, dim):
    """Without the dimension `dim` of size 1."""
    dim = _dim(tensor, dim)
    if tensor.shape[dim] != 1 or (tensor.on_chip and (dim == 0 or tensor.ndim == 2)):
        fail("bounds", f"squeeze_dim({dim}) of {tensor!r}")
    shape, strides = list(tensor.shape), list(tensor.strides)
    del shape[dim], strides[dim]
    return Tensor(tensor.storage, tensor.offset, shape, strides, tensor.indexed)


@_method
def reshape_dim(tensor, dim, shape):
    """One dimension split into several."""
    dim = _dim(tensor, dim)
    return reshape(tensor, (*tensor.shape[:dim], *shape, *tensor.shape[dim + 1 :]))


@_method
def flatten_dims(tensor, start_dim, end_dim):
    """Dimensions start_dim to end_dim (inclusive) merged."""
    start, end = _dim(tensor, start_dim), _dim(tensor, end_dim)
    merged = int(np.prod(tensor.shape[start : end + 1], dtype=np.int64))
    return reshape(tensor, (*tensor.shape[:start], merged, *tensor.shape[end + 1 :]))


@_method
def rearrange(tensor, src, dst, sizes):
    """Split, permute and merge by names, as einops does with tuples for groups."""
    split, names = [], []
    for size, group in zip(tensor.shape, src, strict=True):
        group = group if isinstance(group, tuple) else (group,)
        known = {name: (sizes or {}).get(name) for name in group}
        rest = size // int(np.prod([n for n in known.values() if n]))
        split += [known[name] or rest for name in group]
        names += group
    parts = reshape(tensor, split)
    flat = [name for group in dst for name in (group if isinstance(group, tuple) else (group,))]
    if sorted(flat) != sorted(names):
        raise SignatureError(f"rearrange: {dst!r} does not name the dimensions of {src!r}")
    parts = permute(parts, [names.index(name) for name in flat])
    shape, place = [], 0
    for group in dst:
        count = len(group) if isinstance(group, tuple) else 1
        shape.append(int(np.prod(parts.shape[place : place + count])))
        place += count
    return reshape(parts, shape)


@_method
def is_contiguous(tensor):
    """Dense row-major in its storage."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


@_method
def get_pattern(tensor):
    """[[stride, count], …] of the view."""
    return [[s, n] for s, n in zip(tensor.strides, tensor.shape, strict=True)]


def _install(name):
    def method(self, *args, **kwargs):
        arguments = bind(TENSOR, "NkiTensor", name, current().version, args, kwargs)
        if name not in _METHODS:
            raise NotModelledError(f"NkiTensor.{name} is not modelled by this emulator")
        return _METHODS[name](self, **arguments)

    method.__name__ = name
    method.__doc__ = _METHODS[name].__doc__ if name in _METHODS else None
    setattr(Tensor, name, method)


for _name in TENSOR:
    _install(_name)
