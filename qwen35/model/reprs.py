"""Short texts of parameters and states for who looks at them: shapes and sizes, not values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def of_layer(layer: Any) -> str:
    """Names a layer's tensors (of a NamedTuple) with their shapes."""
    parts = []
    for name, leaf in zip(layer._fields, layer, strict=True):
        shape = getattr(leaf, "shape", None)
        # What is no tensor is a declaration, or a place that something holds for one.
        parts.append(f"{name} {type(leaf).__name__ if callable(shape) else list(shape or ())}")
    return f"{type(layer).__name__}({', '.join(parts)})"


def of_tree(tree: Any, layers: Sequence[Any], **facts: Any) -> str:
    """Names what a tree of parameters or a state is: facts, layers by kind, dtypes, bytes, device.

    Args:
        tree: the parameters or the state.
        layers: its layers.
        facts: what tells it from others, in this order; those that are None are left out.
    """
    types = getattr(layers, "kinds", None) or map(type, layers)  # stacks are not taken apart
    kinds = Counter(kind.__name__ for kind in types)
    parts = [f"{name}={value}" for name, value in facts.items() if value is not None]
    parts.append(" + ".join(f"{count} {kind}" for kind, count in kinds.items()))
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    if tensors:
        dtypes = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
        size = sum(tensor.nbytes for tensor in tensors)
        parts += ["/".join(dtypes), f"{size / 2**20:,.1f} MiB on {tensors[0].device.type}"]
    return f"{type(tree).__name__}({', '.join(parts)})"
