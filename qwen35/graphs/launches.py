"""Traces a step as the graphs that jit cuts it into (`xla.chains`), in the order of their launches.

A launch takes and gives tensors by their paths: those of the step, and "carry" and "around", what
the first graph computes for the runs of layers, and each run hands on to the next.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..xla import chains, trees
from ..xla.devices import numbers_as_constants
from .design import FIRST, LAST
from .lowering import Lowered, Slot, lowered, named_tensors, placeholder


class Launch(NamedTuple):
    """A launch of a graph.

    Attributes:
        name: of the graph: "first", "run_0", "run_1" and so on, "last". Equal names are one graph.
        graph: with the paths that this launch takes and gives.
    """

    name: str
    graph: Lowered


def lower_launches(
    step: Callable[..., Any],
    arguments: Mapping[str, Any],
    returns: Sequence[str],
    *,
    stablehlo: bool = False,
) -> list[Launch]:
    """Traces `step(**arguments)` as `lowering.lower_call` does, cut into graphs.

    Raises:
        ValueError: it can't be cut, with the reason; or it has no layers that run in a chain.
    """
    traced = trees.map_tensors(placeholder, dict(arguments))
    try:
        with torch.no_grad(), numbers_as_constants():
            return list(_launches(step, traced, returns, stablehlo))
    except chains.CannotCut as reason:
        raise ValueError(f"the step is one graph: {reason}") from None


def _launches(
    step: Callable[..., Any], traced: dict[str, Any], returns: Sequence[str], stablehlo: bool
) -> Iterator[Launch]:
    link = _reached(step, traced)
    source = {id(leaf): path for name in traced for path, leaf in named_tensors(traced[name], name)}
    carry = link.carry
    computed = named_tensors(carry, "carry") + named_tensors(link.around, "around")
    computed = [pair for pair in computed if id(pair[1]) not in source]
    source |= {id(tensor): path for path, tensor in computed}
    yield Launch(FIRST, lowered(traced, dict(computed), stablehlo=stablehlo))

    graphs: dict[tuple, tuple[str, Lowered, Any]] = {}
    states, given = [], []
    for kept, state in link.runs:
        operands = {"carry": carry, "around": link.around, "kept": kept, "state": state}
        key: list[Any] = []
        trees.flatten(tuple(operands.values()), [], key, [])
        if tuple(key) not in graphs:
            own = trees.map_tensors(placeholder, operands)
            results = dict(zip(("carry", "state"), link.body(*own.values()), strict=True))
            graph = lowered(own, results, replaces=("state",), stablehlo=stablehlo)
            graphs[tuple(key)] = f"run_{len(graphs)}", graph, results["carry"]
        name, graph, after = graphs[tuple(key)]
        local = [pair for each in operands for pair in named_tensors(operands[each], each)]
        paths = {path: source[id(tensor)] for path, tensor in local}
        yield Launch(name, _renamed(graph, paths))
        carry = after
        source |= {id(tensor): path for path, tensor in named_tensors(carry, "carry")}
        places = itertools.count(len(given))
        given += [paths[path] for path, _ in named_tensors(state, "state")]
        states.append(trees.map_tensors(lambda _, at=places: chains.passed(next(at)), state))

    carry = trees.map_tensors(placeholder, carry)
    with chains.answered_by(chains.once(carry, states)):
        result = step(*traced.values())
    results = dict(zip(returns, result if len(returns) > 1 else (result,), strict=True))
    left = {}
    for name, tree in results.items():
        for path, tensor in named_tensors(tree, name):
            if not isinstance(tensor, chains.Passed):
                left[path] = tensor
            elif given[tensor.place] != path:
                raise chains.CannotCut(f"{path} is the successor of {given[tensor.place]}")
    yield Launch(LAST, lowered({"carry": carry} | traced, left, stablehlo=stablehlo))


def _reached(step: Callable[..., Any], traced: dict[str, Any]) -> chains.Link:
    """What a step calls its chain with."""
    try:
        with chains.answered_by(chains.stop):
            step(*traced.values())
    except chains.Reached as reached:
        return reached.link
    raise chains.CannotCut("it has one run of layers")


def _renamed(graph: Lowered, paths: Mapping[str, str]) -> Lowered:
    """The graph with other paths for what it takes and gives."""

    def renamed(slots: Sequence[Slot]) -> tuple[Slot, ...]:
        return tuple(slot._replace(path=paths.get(slot.path, slot.path)) for slot in slots)

    inputs, outputs = renamed(graph.inputs), renamed(graph.outputs)
    own = tuple(paths[path] for path in graph.paths)
    return dataclasses.replace(graph, inputs=inputs, outputs=outputs, paths=own)
