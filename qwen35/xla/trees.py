"""Flatten argument trees into tensors and a hashable key of everything that is not a tensor.

`torch.utils._pytree` defines what a tree is; this module walks the same trees in the same order,
but builds the leaf list and the cache key of `jit` in one pass, and remembers the flattening of
*frozen* trees (a model's parameters), so that a decode step does not visit hundreds of parameters
in Python.
"""

from __future__ import annotations

import dataclasses
import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree


class FlatTree:
    """A frozen tree, flattened once.

    `leaves` are its tensors in order, `ids` their identities, `key` an object that is the same for
    every tree of equal structure, shapes, dtypes, devices and static content. The rest is jit's:
    `ready` once the leaves are known to hold values rather than pending computations, `sharding`
    once it has asked how they are split over devices, `strides` and `memory`, what
    identifies that, once it has asked for those.
    """

    __slots__ = ("ids", "key", "leaves", "memory", "ready", "reference", "sharding", "strides")

    def __init__(self, reference: weakref.ref, leaves: list[torch.Tensor], key: FrozenKey):
        self.reference = reference  # kept for its callback, which drops this entry
        self.leaves = leaves
        self.ids = frozenset(map(id, leaves))
        self.key = key
        self.ready = False
        self.sharding: str | None = None
        self.strides: tuple[tuple[int, ...], ...] | None = None
        self.memory: frozenset[int] | None = None


class FrozenKey:
    """The full key of a frozen tree, compared and hashed by identity, hence cheap."""

    __slots__ = ("__weakref__", "full", "text")

    def __init__(self, full: tuple, text: str):
        self.full = full
        self.text = text


# The frozen trees in some arguments, each with the index of its first leaf among all leaves.
FrozenTrees = list[tuple[int, FlatTree]]


def of_frozen(frozen: FrozenTrees) -> set[int]:
    """Return the indices of the leaves that belong to frozen trees."""
    return {start + offset for start, flat in frozen for offset in range(len(flat.leaves))}


_frozen_classes: set[type] = set()
_backends: dict[type, Callable[[Any], str | None]] = {}
_flat_trees: dict[int, FlatTree] = {}
_frozen_keys: weakref.WeakValueDictionary[tuple, FrozenKey] = weakref.WeakValueDictionary()


def register_frozen(cls: type, backend: Callable[[Any], str | None] | None = None) -> type:
    """Declare that instances of `cls` never change after construction. Usable as a decorator.

    `cls` must be a node type of `torch.utils._pytree` (register it there first), allow weak
    references, and never replace a tensor that it holds. jit then flattens each instance once and
    recognises it by identity afterwards. `backend` tells of an instance which backend of jit is
    wanted for functions of it, None if none in particular (`compiled`). Raises ValueError when
    `cls` is not a registered node.
    """
    if cls not in _pytree.SUPPORTED_NODES:
        raise ValueError(
            f"{cls.__qualname__} is not a pytree node: call "
            "torch.utils._pytree.register_dataclass (or another) before register_frozen"
        )
    _frozen_classes.add(cls)
    if backend is not None:
        _backends[cls] = backend
    return cls


def backend_of(values: Sequence[Any]) -> str | None:
    """Return the backend that the first of these values wants which is a frozen tree and has a
    say."""
    for value in values:
        wanted = _backends.get(type(value))
        if wanted is not None:
            return wanted(value)
    return None


def flatten(tree: Any, leaves: list[torch.Tensor], key: list, frozen: FrozenTrees) -> None:
    """Append the tensors of `tree` to `leaves`, and to `key` what tells it from other trees.

    The key holds node types, lengths, static contexts and leaves as `_identity` tells them apart,
    and per tensor its shape, dtype, device and requires_grad. Frozen trees met on the way are
    appended to `frozen`, with the index of their first leaf. Raises `NotHashable` for a leaf that
    is neither tensor nor hashable.
    """
    kind = type(tree)
    if kind is torch.Tensor:
        leaves.append(tree)
        key += (tree.shape, tree.dtype, tree.device, tree.requires_grad)
    elif tree is None or kind is bool or kind is int or kind is str:
        key += (kind, tree)
    elif kind is float:
        key += (kind, tree.hex())
    elif kind in _frozen_classes:
        flat = flatten_frozen(tree)
        frozen.append((len(leaves), flat))
        leaves += flat.leaves
        key.append(flat.key)
    elif kind is dict:
        key += (kind, tuple(map(_identity, tree)))
        for child in tree.values():
            flatten(child, leaves, key, frozen)
    elif kind is tuple or kind is list or (isinstance(tree, tuple) and hasattr(tree, "_fields")):
        key += (kind, len(tree))
        for child in tree:
            flatten(child, leaves, key, frozen)
    elif isinstance(tree, torch.Tensor):
        leaves.append(tree)
        with torch._C.DisableTorchFunctionSubclass():
            key += (tree.shape, tree.dtype, tree.device, tree.requires_grad)
    elif kind in _pytree.SUPPORTED_NODES:
        children, context = _pytree.SUPPORTED_NODES[kind].flatten_fn(tree)
        key += (kind, _identity(context), len(children))
        for child in children:
            flatten(child, leaves, key, frozen)
    else:
        key.append(_identity(tree))


def flatten_frozen(tree: Any) -> FlatTree:
    """Return the flattening of an instance of a frozen class, computed once per instance."""
    flat = _flat_trees.get(id(tree))
    if flat is not None:
        return flat
    leaves: list[torch.Tensor] = []
    key: list = []
    children, context = _pytree.SUPPORTED_NODES[type(tree)].flatten_fn(tree)
    key += (type(tree), _identity(context), len(children))
    for child in children:
        flatten(child, leaves, key, [])
    full = tuple(key)
    frozen_key = _frozen_keys.get(full)
    if frozen_key is None:
        frozen_key = FrozenKey(full, f"{type(tree).__name__}({summary(leaves)})")
        _frozen_keys[full] = frozen_key
    # The weak reference's callback drops the entry with the tree, before its id can be reused.
    address = id(tree)
    reference = weakref.ref(tree, lambda _: _flat_trees.pop(address, None))
    flat = FlatTree(reference, leaves, frozen_key)
    _flat_trees[address] = flat
    return flat


class NotHashable(ValueError):
    """A leaf or static context that is neither a tensor nor hashable; `value` is it."""

    def __init__(self, value: Any):
        super().__init__(f"{type(value).__name__} is neither a tensor nor hashable")
        self.value = value


def _identity(value: Any) -> Any:
    """Return what stands for a static value in a key: equal for two of one type and of equal bits.

    By `==`, 1, 1.0 and True are one value and so are 0.0 and -0.0, and no NaN is found again. Here
    they are told apart, inside of containers and dataclasses too; objects of other classes are
    what their own `==` says.
    """
    kind = type(value)
    if value is None or kind is str or kind is bool or kind is int:
        return kind, value
    if isinstance(value, float):
        return kind, float.hex(value)
    if isinstance(value, complex | Decimal | np.generic):
        return kind, repr(value)
    if isinstance(value, tuple) or kind is list:
        return kind, *map(_identity, value)
    if kind is dict:
        return kind, *((_identity(key), _identity(entry)) for key, entry in value.items())
    if kind is frozenset:
        return kind, frozenset(map(_identity, value))
    if kind is range or kind is slice:
        return kind, *map(_identity, (value.start, value.stop, value.step))
    if dataclasses.is_dataclass(kind) and kind.__hash__ not in (None, object.__hash__):
        compared = (field.name for field in dataclasses.fields(value) if field.compare)
        return kind, *(_identity(getattr(value, name)) for name in compared)
    try:
        hash(value)
    except TypeError:
        raise NotHashable(value) from None
    return kind, value


def named_leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) for every leaf of `tree`, static ones too, in the order of `flatten`."""
    kind = type(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        children = [(f".{name}", child) for name, child in zip(tree._fields, tree, strict=True)]
    elif kind is tuple or kind is list:
        children = [(f"[{i}]", child) for i, child in enumerate(tree)]
    elif kind in _pytree.SUPPORTED_NODES:
        node = _pytree.SUPPORTED_NODES[kind]
        if node.flatten_with_keys_fn is not None:
            children = [(str(key), child) for key, child in node.flatten_with_keys_fn(tree)[0]]
        else:
            children = [(f"[{i}]", child) for i, child in enumerate(node.flatten_fn(tree)[0])]
    else:
        yield path, tree
        return
    for step, child in children:
        yield from named_leaves(child, path + step)


def tensors(tree: Any) -> list[torch.Tensor]:
    """Return the tensors of `tree`, in the order of `flatten`."""
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def first_tensor(tree: Any) -> torch.Tensor | None:
    """Return the first tensor of `tree`, in the order of `flatten`, or None; the rest is not
    visited."""
    if isinstance(tree, torch.Tensor):
        return tree
    kind = type(tree)
    if kind in _frozen_classes:
        return next(iter(flatten_frozen(tree).leaves), None)
    if kind is dict:
        children = tree.values()
    elif isinstance(tree, tuple | list):
        children = tree
    elif kind in _pytree.SUPPORTED_NODES:
        children, _ = _pytree.SUPPORTED_NODES[kind].flatten_fn(tree)
    else:
        return None
    found = (first_tensor(child) for child in children)
    return next((tensor for tensor in found if tensor is not None), None)


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Return `tree` with every tensor t, in the order of `flatten`, replaced by `function(t)`."""
    return _pytree.tree_map_only(torch.Tensor, function, tree)


def picker(indices: Sequence[int]) -> Callable[[Sequence], tuple]:
    """Return a function that picks these elements of a sequence, as a tuple."""
    if len(indices) == 1:
        (index,) = indices
        return lambda sequence: (sequence[index],)
    return itemgetter(*indices) if indices else lambda sequence: ()


def describe(tree: Any) -> str:
    """Describe a tree in one short line: dtypes and shapes, or a summary where there are many."""
    kind = type(tree)
    if kind in _frozen_classes:
        key = flatten_frozen(tree).key
        digest = hashlib.sha256(repr(key.full).encode()).hexdigest()[:8]
        return f"{key.text[:-1]} #{digest})"
    leaves = _pytree.tree_leaves(tree, is_leaf=_is_one_item)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if len(tensors) > 8:
        return f"{kind.__name__}({summary(tensors)})"
    if isinstance(tree, torch.Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')}{list(tree.shape)}"
    if len(leaves) == 1 and leaves[0] is tree:
        return repr(tree)
    return f"{kind.__name__}({', '.join(map(describe, leaves))})"


def _is_one_item(node: Any) -> bool:
    """Tell whether a description takes a node as a whole: a frozen tree or a constant."""
    return type(node) in _frozen_classes or _pytree.is_constant_class(type(node))


def summary(tensors: list[torch.Tensor]) -> str:
    """Return the number and size of tensors, for example "271 tensors, 3.20 GB"."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{len(tensors)} tensors, {size:.3g} {unit}"
        size /= 1000
    return f"{len(tensors)} tensors, {size:.2f} GB"
