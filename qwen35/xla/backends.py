"""What `jit` needs of what compiles for it: torch-xla (`staged`), torch.compile (`dynamo`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch

from . import trees
from .target import Target


class Graph(Protocol):
    """A compiled function, for arguments of one signature.

    Attributes:
        signature: one readable line.
        needs_no_grad: whether an argument requires gradients, so that grad mode has to be off.
    """

    signature: str
    needs_no_grad: bool

    def __call__(self, leaves: list[torch.Tensor], frozen: trees.FrozenTrees) -> Any:
        """Run on what `trees.flatten` found in the arguments; return the function's result."""


class Backend(Protocol):
    """Compiles functions of tensors.

    `values` holds one value for each parameter of the target, `leaves` and `frozen` are what
    `trees.flatten` found in them.
    """

    def placements(
        self, leaves: list[torch.Tensor], frozen: trees.FrozenTrees
    ) -> Sequence[Hashable]:
        """Return what a graph is compiled for besides structure, shapes, dtypes and devices."""

    def compile(
        self,
        target: Target,
        signature: str,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
        report: Callable[[str], None],
    ) -> Graph:
        """Compile a target; run nothing, consume nothing.

        Args:
            signature: what to call the graph where the user asks for those compiled.
            report: called with "trace" and "compile" before each.
        """

    def lower(
        self,
        target: Target,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
    ) -> str:
        """Return the target's graph as text, without compiling or running it."""
