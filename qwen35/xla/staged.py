"""Compile a function as one graph, or, where it has a chain in it (`chains`), as several."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree

from . import chains, private, trees
from .chains import Body, CannotCut
from .devices import device_name, run_pending_of
from .donation import consume
from .executable import Executable, Shape, lower, make_ready, placements
from .launches import Program
from .target import Target
from .tracing import Trace
from .trees import picker

# Compiles a body for some arguments, unless that has been done: graph_of(body, donates, values),
# where `donates` says whether a run consumes its state.
GraphOf = Callable[[Body, bool, tuple], Executable]


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
    compiles = False
    try:
        with Trace(target, values, leaves, frozen, chains.stop) as trace:
            report("compile")
            compiles = True
            first = Executable(target.name, signature, trace, trace.compile())
        if trace.body is None:
            return first
        return Staged(target, values, leaves, frozen, first, trace.body, graph_of)
    except CannotCut as reason:
        signature = f"{signature} (one graph: {reason})"
    with Trace(target, values, leaves, frozen) as trace:
        if not compiles:
            report("compile")
        return Executable(target.name, signature, trace, trace.compile())


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
        self._retired: deque[tuple[torch.Tensor, ...]] = deque(maxlen=2)
        donated, kept = target.split_by_donation(values, trees.of_frozen(frozen))
        self._donated, self._kept = picker(donated), picker(kept)

        program = Program(len(leaves))
        numbers = program.add(first, range(len(leaves)))
        pool = _with_stand_ins(first.results(leaves, first.statics, first.shapes))
        number = {id(value): place for value, place in zip(pool, numbers, strict=True)}
        carry, around, runs = first.arranged(pool)
        carried = [number[id(tensor)] for tensor in trees.tensors(carry)]
        size = len(carried)
        if len(_pytree.tree_leaves(carry)) != size:
            raise CannotCut("what its runs hand on holds more than tensors")
        consumed: set[int] = set()
        states: list[Any] = []
        computed: list[int] = []
        for keep, state in runs:
            rest, own = trees.tensors((around, keep)), trees.tensors(state)
            taken, owned = ([number[id(tensor)] for tensor in some] for some in (rest, own))
            free = set(donated) - consumed - set(taken)
            donates = free.issuperset(owned) and len(set(owned)) == len(owned)
            graph = graph_of(body, donates, (carry, around, keep, state))
            gone = owned if donates else []
            consumed.update(gone)
            numbers = program.add(graph, [*carried, *taken, *owned], gone)
            example = [*trees.tensors(carry), *rest, *own]
            example = graph.results(example, graph.statics, graph.shapes)
            carry = graph.arranged(_with_stand_ins(example[:size]) + example[size:])[0]
            carried = numbers[:size]
            for index in range(size, len(example)):
                if isinstance(example[index], Shape | torch.Tensor):
                    example[index] = chains.passed(len(computed))
                    computed.append(numbers[index])
            states.append(graph.arranged(example)[1])
        self._last = self._rest(target, values, leaves, frozen, carry, states, consumed)
        numbers = program.add(self._last, [*carried, *range(len(leaves))], passed=computed)
        self._launches, self._results = program.launches(numbers), picker(numbers)

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
        values: list[Any] = [*leaves]
        for launch in self._launches:
            values += launch.fixed
            values += launch.graph.launch(launch.inputs(values))
            consume(launch.consumed(values))
            for place in launch.done_with:
                values[place] = None
        consume(donated)
        self._retired.append(donated)  # see `Executable`
        return self._last.arranged(list(self._results(values)))


def _with_stand_ins(results: list) -> list:
    """Put a tensor of zeros in place of each `Shape`."""
    made = {
        index: torch.zeros(value.shape, dtype=value.dtype, device=device_name())
        for index, value in enumerate(results)
        if isinstance(value, Shape)
    }
    for index, zeros in made.items():
        if results[index].split is not None:
            private._xla_mark_sharding(zeros, results[index].split)
    run_pending_of(list(made.values()))
    return [made.get(index, value) for index, value in enumerate(results)]
