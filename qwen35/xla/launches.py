"""The order in which a function's graphs are launched, and which values each takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .executable import Executable
from .trees import picker

Picker = Callable[[Sequence], tuple]


class Launch(NamedTuple):
    """A run of a graph, on values that are numbered: first a call's leaves, then for each launch
    what is `fixed` and the graph's outputs.

    Attributes:
        graph: that is run.
        fixed: its constants and static values, where it is launched for the first time.
        inputs: picks its inputs.
        consumed: picks those whose memory it takes.
        done_with: numbers of what launches before it computed, and nothing after it needs.
    """

    graph: Executable
    fixed: list[Any]
    inputs: Picker
    consumed: Picker
    done_with: list[int]


class Program:
    """Launches that are added one after the other: what a call does is found out once.

    Args:
        count: of the values that there are at first.
    """

    def __init__(self, count: int):
        self._count = count
        self._fixed: dict[Executable, range] = {}
        self._added: list[tuple[Executable, list[Any], tuple[int, ...], Sequence[int]]] = []
        self._outputs: dict[int, int] = {}  # of each the last launch that has to do with it

    def add(
        self,
        graph: Executable,
        leaves: Sequence[int],
        consumed: Sequence[int] = (),
        passed: Sequence[int] = (),
    ) -> list[int]:
        """Add a launch of a graph on leaves of these numbers; return those of its results."""
        fixed: list[Any] = []
        if graph not in self._fixed:
            fixed = [*graph.constants, *graph.statics]
            self._fixed[graph] = self._numbered(len(fixed))
        constants = self._fixed[graph][: len(graph.constants)]
        statics = self._fixed[graph][len(graph.constants) :]
        inputs = graph.inputs(leaves, constants)
        outputs = self._numbered(len(graph.shapes))
        own = [*outputs, *(self._outputs.keys() & inputs)]
        self._outputs |= dict.fromkeys(own, len(self._added))
        self._added.append((graph, fixed, inputs, consumed))
        return graph.results(leaves, statics, outputs, passed)

    def launches(self, results: Sequence[int]) -> list[Launch]:
        """Return what was added, where the values of these numbers are what is wanted."""
        done_with: dict[int, list[int]] = defaultdict(list)
        for place in self._outputs.keys() - set(results):
            done_with[self._outputs[place]].append(place)
        return [
            Launch(graph, fixed, picker(inputs), picker(consumed), done_with[number])
            for number, (graph, fixed, inputs, consumed) in enumerate(self._added)
        ]

    def _numbered(self, count: int) -> range:
        """Number as many values more."""
        self._count += count
        return range(self._count - count, self._count)
