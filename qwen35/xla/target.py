"""Describe a function under jit: what every backend has to know of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from . import trees


@dataclass(frozen=True)
class Target:
    """A function under jit, the names of its parameters, and those that it may consume."""

    function: Callable
    name: str
    signature: inspect.Signature
    donate: frozenset[str]

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(self.signature.parameters)

    def named_leaves(self, values: tuple) -> Iterator[tuple[str, Any]]:
        """Yield (path, leaf) for the values of the parameters, static leaves too."""
        for name, value in zip(self.parameters, values, strict=True):
            yield from trees.named_leaves(value, name)

    def path_of(self, values: tuple, wanted: Callable[[Any], bool]) -> str:
        """Return the path of the first leaf that is `wanted`."""
        paths = (path for path, leaf in self.named_leaves(values) if wanted(leaf))
        return next(paths, "(static content of a node)")

    def refuse_gradients(self, values: tuple) -> NoReturn:
        """Raise ValueError that names the first tensor which requires gradients."""
        path = self.path_of(values, lambda x: isinstance(x, torch.Tensor) and x.requires_grad)
        raise ValueError(
            f"{self.name}: argument {path} requires gradients, which do not pass through jit: "
            "call it under torch.no_grad(), or differentiate inside the function"
        )

    def split_by_donation(
        self, values: tuple, frozen: Container[int]
    ) -> tuple[list[int], list[int]]:
        """Return the indices of the tensors that a call consumes, and of those that it keeps.

        Tensors at the indices `frozen` belong to frozen trees and are in neither. Raises
        ValueError where a parameter that is to be consumed holds one.
        """
        donated: list[int] = []
        kept: list[int] = []
        start = 0
        for name, value in zip(self.parameters, values, strict=True):
            indices = range(start, start + len(trees.tensors(value)))
            loose = [index for index in indices if index not in frozen]
            if name not in self.donate:
                kept += loose
            elif len(loose) == len(indices):
                donated += loose
            else:
                raise ValueError(
                    f"{self.name}: argument {name} can't be donated, it contains a frozen tree"
                )
            start = indices.stop
        return donated, kept
