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

    def check_tensors(self, values: tuple, device: str, instead: str) -> None:
        """Refuse tensors that no graph can take.

        Args:
            device: the kind of device that all have to be on.
            instead: what the error says of a tensor elsewhere.

        Raises:
            ValueError: a tensor is elsewhere, or requires gradients while grad mode is on.
        """
        for path, leaf in self.named_leaves(values):
            if not isinstance(leaf, torch.Tensor):
                continue
            if leaf.device.type != device:
                raise ValueError(f"{self.name}: argument {path} is on {leaf.device}, but {instead}")
            if leaf.requires_grad and torch.is_grad_enabled():
                self.refuse_gradients(values)

    def refuse_reading(self) -> NoReturn:
        """Raise RuntimeError: the function depends on a tensor's value."""
        raise RuntimeError(
            f"{self.name} reads the value of a tensor while it is traced (item(), "
            "bool(), int(), cpu(), printing, or an operation that XLA lacks): a compiled "
            "function can't depend on values"
        )

    def refuse_modified(self, path: str) -> NoReturn:
        """Raise ValueError: the function modifies an argument."""
        raise ValueError(f"{self.name} modifies its argument {path} in place: return the new value")

    def refuse_result(self, device: torch.device, wanted: str) -> NoReturn:
        """Raise ValueError: a result is on another device than those that are wanted."""
        raise ValueError(
            f"{self.name} returns a tensor on {device}: results have to be on {wanted}"
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
