"""Compile a function as one graph, or, where it has a chain in it (`chains`), as several."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree

from . import chains, trees
from .chains import Body, CannotCut
from .devices import device_name, run_pending_of
from .donation import consume
from .executable import Executable, Shape, lower, make_ready, placements
from .target import Target
from .tracing import Trace
from .trees import picker

# Compiles a body for some arguments, unless that has been done: graph_of(body, donates, values),
# where `donates` says whether a run consumes its state.
GraphOf = Callable[[Body, bool, tuple], Executable]
Picker = Callable[[Sequence], tuple]


class Xla:
    """torch-xla as a `backends.Backend`.

    Args:
        graph_of: gives the graph of a chain's body.
    """

    def __init__(self, graph_of: GraphOf):
        self._graph_of = graph_of

    def placements(self, leaves: list[torch.Tensor], frozen: trees.FrozenTrees) -> list[str]:
        """Return how tensors are split over devices."""
        return placements(leaves, frozen)

    def compile(
        self,
        target: Target,
        signature: str,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
        report: Callable[[str], None],
    ) -> Executable | Staged:
        """Compile as `Backend.compile` does."""
        return compile_graph(target, signature, values, leaves, frozen, report, self._graph_of)

    def lower(
        self,
        target: Target,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
    ) -> str:
        """Return the graph as HLO text."""
        return lower(target, values, leaves, frozen)


def compile_graph(
    target: Target,
    signature: str,
    values: tuple,
    leaves: list[torch.Tensor],
    frozen: trees.FrozenTrees,
    report: Callable[[str], None],
    graph_of: GraphOf,
) -> Executable | Staged:
    """Trace `target` on symbolic `values` and compile its graph; run nothing, consume nothing.

    A function with a chain in it gets a graph for what comes before, one for each run that is not
    like another, and one for what follows; or a single one where that can't be: its signature says
    why then.

    Args:
        signature: what to call the graph where the user asks for those compiled.
        leaves, frozen: what `trees.flatten` found in `values`, one value per parameter.
        report: called with "trace" and "compile" before each.
    """
    report("trace")
    try:
        with Trace(target, values, leaves, frozen, chains.stop) as trace:
            report("compile")
            first = Executable(target.name, signature, trace, trace.compile())
        if trace.body is None:
            return first
        return Staged(target, values, leaves, frozen, first, trace.body, graph_of)
    except CannotCut as reason:
        signature = f"{signature} (one graph: {reason})"
    with Trace(target, values, leaves, frozen) as trace:
        return Executable(target.name, signature, trace, trace.compile())


class _Run(NamedTuple):
    """A run of a chain's body.

    Attributes:
        graph: of the body.
        operands: picks what it takes besides the carry.
        states: picks what it consumes.
        computed: picks the tensors of its new state from its results.
    """

    graph: Executable
    operands: Picker
    states: Picker
    computed: Picker


class Staged:
    """The graphs of a function with a chain in it, called as an `Executable` is."""

    def __init__(
        self,
        target: Target,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
        first: Executable,
        body: Body,
        graph_of: GraphOf,
    ):
        """Args: first: the graph of what comes before the chain of this body. The others are those
        of `compile_graph`."""
        self._name = target.name
        self.signature = first.signature
        self.needs_no_grad = first.needs_no_grad
        self._first = first
        self._retired: deque[tuple[torch.Tensor, ...]] = deque(maxlen=2)
        donated, kept = target.split_by_donation(values, trees.of_frozen(frozen))
        self._donated, self._kept = picker(donated), picker(kept)

        pool = _with_stand_ins(first.example(leaves))
        carry, around, runs = first.arranged(pool)
        if len(_pytree.tree_leaves(carry)) != len(trees.tensors(carry)):
            raise CannotCut("what its runs hand on holds more than tensors")
        place = {id(value): index for index, value in enumerate(pool)}
        leaf = {id(value): index for index, value in enumerate(leaves)}
        self._carry = picker([place[id(tensor)] for tensor in trees.tensors(carry)])
        self._runs: list[_Run] = []
        consumed: set[int] = set()
        states: list[Any] = []
        count = 0
        for keep, state in runs:
            rest = trees.tensors((around, keep))
            own = trees.tensors(state)
            consumes = {leaf.get(id(tensor), -1) for tensor in own}
            donates = (
                consumes <= set(donated) - consumed
                and len(consumes) == len(own)
                and consumes.isdisjoint(leaf.get(id(tensor)) for tensor in rest)
            )
            graph = graph_of(body, donates, (carry, around, keep, state))
            consumed |= consumes if donates else set()
            example = graph.example([*trees.tensors(carry), *rest, *own])
            size = len(_pytree.tree_leaves(carry))
            carry = graph.arranged(_with_stand_ins(example[:size]) + example[size:])[0]
            computed = [
                index
                for index, value in enumerate(example)
                if index >= size and isinstance(value, Shape | torch.Tensor)
            ]
            for index in computed:
                example[index] = chains.passed(count)
                count += 1
            states.append(graph.arranged(example)[1])
            operands = picker([place[id(tensor)] for tensor in rest + own])
            gone = picker([place[id(tensor)] for tensor in own] if donates else [])
            self._runs.append(_Run(graph, operands, gone, picker(computed)))
        self._carried = len(trees.tensors(carry))
        self._last = self._rest(target, values, leaves, frozen, carry, states, consumed)

    def _rest(
        self,
        target: Target,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
        carry: Any,
        states: list[Any],
        consumed: set[int],
    ) -> Executable:
        """Compile what follows the chain: a function of the carry and of the same arguments."""

        def rest(carry: Any, /, *args: Any, **kwargs: Any) -> Any:
            with chains.answered_by(chains.once(carry, states)):
                return target.function(*args, **kwargs)

        own = inspect.Parameter("carry_", inspect.Parameter.POSITIONAL_ONLY)
        signature = inspect.Signature([own, *target.signature.parameters.values()])
        following = Target(rest, target.name, signature, target.donate)
        carried = trees.tensors(carry)
        moved = [(start + len(carried), flat) for start, flat in frozen]
        gone = frozenset(index + len(carried) for index in consumed)
        values, leaves = (carry, *values), [*carried, *leaves]
        with Trace(following, values, leaves, moved, consumed=gone) as trace:
            return Executable(target.name, self.signature, trace, trace.compile())

    def __call__(self, leaves: list[torch.Tensor], frozen: trees.FrozenTrees) -> Any:
        donated = self._donated(leaves)
        make_ready(self._name, donated, self._kept(leaves), frozen)
        pool = self._first.results(leaves)
        carry = self._carry(pool)
        computed: list[torch.Tensor] = []
        for run in self._runs:
            results = run.graph.results([*carry, *run.operands(pool)])
            consume(run.states(pool))
            carry = results[: self._carried]
            computed += run.computed(results)
        results = self._last.results([*carry, *leaves], computed)
        consume(donated)
        self._retired.append(donated)  # see `Executable`
        return self._last.arranged(results)


def _with_stand_ins(results: list) -> list:
    """Put a tensor of zeros in place of each `Shape`."""
    made = {
        index: torch.zeros(value.shape, dtype=value.dtype, device=device_name())
        for index, value in enumerate(results)
        if isinstance(value, Shape)
    }
    run_pending_of(list(made.values()))
    return [made.get(index, value) for index, value in enumerate(results)]
