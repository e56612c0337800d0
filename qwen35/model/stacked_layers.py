"""Layers whose small tensors are kept as one tensor for all: fewer tensors for the host to handle.

torch-xla handles every argument and every result of a graph one by one, and that takes it longer
on several devices of a process than on one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class StackedLayers(Sequence):
    """A tuple of layers (NamedTuples of tensors), some fields of which are stacked.

    The tensors of a stacked field are one, [ranks, n, ...], of the n layers that have the field,
    in order; those of another field are a tuple. A layer is put together when it is asked for,
    by its index, with slices of the stacks: its tensors have the ranks in dimension 0, as the
    others do. It is a pytree, whose leaves are the stacks and the other tensors, and since
    dimension 0 counts ranks in all of them, `spmd` stacks and splits it like any other tree.
    """

    def __init__(self, kinds: tuple[type, ...], fields: dict[str, Tensor | tuple[Tensor, ...]]):
        self._kinds = kinds
        self._fields = fields

    @classmethod
    def of(cls, layers: Sequence[Any], stacked: Collection[str], ranks: int = 1) -> StackedLayers:
        """Layers with the fields of these names stacked; the shapes within each must agree.

        Args:
            layers: their tensors have `ranks` ranks' one after the other along dimension 0.
            stacked: fields; not every layer needs to have them.
            ranks: 1 for one rank's layers.
        """
        fields: dict[str, Any] = {}
        for layer in layers:
            for name, tensor in zip(layer._fields, layer, strict=True):
                fields.setdefault(name, []).append(tensor)
        for name, tensors in fields.items():
            if name in stacked:
                split = [tensor.unflatten(0, (ranks, -1)) for tensor in tensors]
                fields[name] = torch.stack(split, dim=1)
            else:
                fields[name] = tuple(tensors)
        return cls(tuple(map(type, layers)), fields)

    def replaced_by(self, layers: Sequence[Any]) -> StackedLayers:
        """Other layers, of as many ranks, with the same fields stacked."""
        ranks = next((stack.shape[0] for stack in self.stacks.values()), 1)
        return StackedLayers.of(layers, self.stacks, ranks)

    def map_rows(self, function: Callable[..., Tensor], *others: StackedLayers) -> StackedLayers:
        """Other layers, of tensors function(axis, ours, *theirs): rows are along `axis`."""
        fields: dict[str, Tensor | tuple[Tensor, ...]] = {}
        for name, field in self._fields.items():
            theirs = [other._fields[name] for other in others]
            if isinstance(field, Tensor):  # [ranks, n, rows, ...]
                fields[name] = function(2, field, *theirs)
            else:
                fields[name] = tuple(
                    function(0, *same) for same in zip(field, *theirs, strict=True)
                )
        return StackedLayers(self._kinds, fields)

    def map_field(self, name: str, function: Callable[[Tensor], Tensor]) -> StackedLayers:
        """The same layers with every tensor of a field, which is not stacked, replaced."""
        changed = {name: tuple(map(function, self._fields[name]))}
        return StackedLayers(self._kinds, self._fields | changed)

    @property
    def stacks(self) -> dict[str, Tensor]:
        """The fields that are stacked, by name."""
        return {name: field for name, field in self._fields.items() if isinstance(field, Tensor)}

    @property
    def kinds(self) -> tuple[type, ...]:
        """The kind of each layer."""
        return self._kinds

    def __repr__(self) -> str:
        return f"StackedLayers({len(self)} layers, {len(self.stacks)} fields stacked)"

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        kind, before = self._kinds[index], self._kinds[:index]
        return kind(*(self._tensor(name, before) for name in kind._fields))

    def _tensor(self, name: str, before: tuple[type, ...]) -> Tensor:
        """The field's tensor of the layer that comes after layers of the kinds `before`."""
        field = self._fields[name]
        place = sum(name in kind._fields for kind in before)
        return field[:, place].flatten(0, 1) if isinstance(field, Tensor) else field[place]


def like(old: Sequence[Any], layers: Sequence[Any]) -> Sequence[Any]:
    """Layers kept as those of `old` are: stacked where they are, or a plain tuple."""
    return old.replaced_by(layers) if isinstance(old, StackedLayers) else tuple(layers)


def map_rows(function: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """A tree of one rank's tensors function(axis, tensor, *those of the others in its place).

    Rows of a batch are along `axis`: 0, but where layers keep tensors stacked.
    """

    def of(node: Any, *rest: Any) -> Any:
        if isinstance(node, StackedLayers):
            return node.map_rows(function, *rest)
        return function(0, node, *rest)

    return pytree.tree_map(of, tree, *others, is_leaf=lambda node: isinstance(node, StackedLayers))


def map_field(
    layers: Sequence[Any], name: str, function: Callable[[Tensor], Tensor]
) -> Sequence[Any]:
    """The layers with one field, which is not stacked, replaced in all that have it."""
    if isinstance(layers, StackedLayers):
        return layers.map_field(name, function)
    return tuple(
        layer._replace(**{name: function(getattr(layer, name))}) if name in layer._fields else layer
        for layer in layers
    )


def _flatten(layers: StackedLayers) -> tuple[list[Any], Any]:
    return list(layers._fields.values()), (layers._kinds, tuple(layers._fields))


def _flatten_with_keys(layers: StackedLayers) -> tuple[list[Any], Any]:
    children, context = _flatten(layers)
    return list(zip(map(pytree.GetAttrKey, layers._fields), children, strict=True)), context


def _unflatten(children: Any, context: Any) -> StackedLayers:
    kinds, names = context
    return StackedLayers(kinds, dict(zip(names, children, strict=True)))


pytree.register_pytree_node(
    StackedLayers,
    _flatten,
    _unflatten,
    serialized_type_name="qwen35.StackedLayers",
    flatten_with_keys_fn=_flatten_with_keys,
)
