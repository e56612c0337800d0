"""Counts what a step costs that is cut into graphs, beside the same step as one graph."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..reports.tables import markdown_table
from .costs import count_costs
from .export import Graph
from .lowering import Slot
from .summary import short_bytes

_BETWEEN = ("carry", "around")  # what passes from a launch to later ones, of the step's own trees


def count_launches(launches: Sequence[Graph], whole: Graph) -> dict[str, Any]:
    """Counts graphs, launches and what passes between them, as plain values for JSON.

    Args:
        launches: those of `export.trace_launches`.
        whole: the same step as one graph.

    Returns:
        `graphs`: for each graph its instructions and how often a step launches it. Then, with
        those of one graph in `whole`: `instructions` to compile, of all graphs; `executables`,
        which are NEFFs on Neuron; `launches` of a step; `passed_bytes`, which go through the
        device's memory between launches, written once and read by each that takes them; and
        `passed_share`, their part of all bytes that a step reads and writes.
    """
    counts = Counter(graph.phase for graph in launches)
    graphs = {
        name: {"instructions": len(graph.module.instructions), "launches": counts[name]}
        for name, graph in distinct(launches).items()
    }
    passed = sum(
        slot.bytes
        for graph in launches
        for slot in (*graph.inputs, *graph.outputs)
        if _passes(slot)
    )
    costs = count_costs(whole)
    rest = costs["bytes_read"] + costs["bytes_written"]
    return {
        "graphs": graphs,
        "instructions": sum(entry["instructions"] for entry in graphs.values()),
        "executables": len(graphs),
        "launches": len(launches),
        "passed_bytes": passed,
        "passed_share": passed / (passed + rest),
        "whole": {
            "instructions": len(whole.module.instructions),
            "executables": 1,
            "launches": 1,
            "passed_bytes": 0,
            "passed_share": 0.0,
        },
    }


def distinct(launches: Sequence[Graph]) -> dict[str, Graph]:
    """Returns each graph once, by its phase, at the paths of its first launch."""
    graphs: dict[str, Graph] = {}
    for graph in launches:
        graphs.setdefault(graph.phase, graph)
    return graphs


def with_known_names(launches: Sequence[Graph], known: Mapping[str, Graph]) -> list[Graph]:
    """Returns the launches, but those of a graph that is among the known ones under its name."""
    names = {
        name: next((old for old, graph in known.items() if graph.same_graph(new)), name)
        for name, new in distinct(launches).items()
    }
    return [dataclasses.replace(graph, phase=names[graph.phase]) for graph in launches]


def _passes(slot: Slot) -> bool:
    return slot.path.startswith(_BETWEEN)


def render(counted: Mapping[str, Mapping[str, Any]]) -> str:
    """Renders the counts of steps, by name, as a Markdown table: each as one graph, and cut."""
    rows = [
        (
            name,
            f"{costs['instructions']:,}",
            str(costs["executables"]),
            str(costs["launches"]),
            short_bytes(costs["passed_bytes"]),
            f"{costs['passed_share']:.2%}",
        )
        for step, counts in counted.items()
        for name, costs in ((f"{step}, one graph", counts["whole"]), (f"{step}, cut", counts))
    ]
    head = ("", "instructions to compile", "graphs", "launches of a step", "passed", "of a step")
    return markdown_table(head, rows)
