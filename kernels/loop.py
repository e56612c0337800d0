"""Loops of constant length, which XLA compiles as one body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree


def scan(function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """`carry, y = function(carry, x)` for every x along dimension 0 of the tensors in `xs`.

    `carry`, `xs` and every `y` are a tensor or a tuple of tensors, floating point or int32. On XLA
    it is one loop, whose body is compiled once and whose temporaries are those of one round;
    XLA:CPU also runs it faster than the same rounds one after the other in the graph, where it
    computes what several rounds read once for each of them. Where gradients are asked for, on XLA
    too, and for a single round, it is a loop in Python.

    Returns:
        the last carry, and all y stacked along a new dimension 0.
    """
    tensors, structure = pytree.tree_flatten(xs)
    in_python = len(tensors[0]) == 1 or tensors[0].device.type != "xla"
    if in_python or tracked(*tensors, *pytree.tree_leaves(carry)):
        ys = []
        # Unbound once: an index per round would make a backward pass of as many full-size sums.
        for x in zip(*(tensor.unbind(0) for tensor in tensors), strict=True):
            carry, y = function(carry, pytree.tree_unflatten(x, structure))
            ys.append(y)
        return carry, pytree.tree_map(lambda *rounds: torch.stack(rounds), *ys)
    from ..xla import private  # here, as in `neuron`: this package has to import without a parent

    # The public `scan` would keep what a backward pass needs, the temporaries of all rounds.
    return private._scan_impl_pytree(function, carry, xs)


def tracked(*tensors: torch.Tensor) -> bool:
    """Whether gradients are asked for of any of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def loop_map(function: Callable[[Any, Any], Any], shared: Any, xs: Any) -> Any:
    """`function(shared, x)` for every x along dimension 0 of `xs`, stacked: a `scan`."""
    return scan(lambda carry, x: (carry, function(carry, x)), shared, xs)[1]
