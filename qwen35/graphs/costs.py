"""Counts what an exported graph holds and costs."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from .export import Graph
from .hlo import Module


def count_costs(graph: Graph) -> dict[str, Any]:
    """Counts what a graph holds and costs, as plain values for JSON; bytes and FLOPs of one rank.

    `bytes_read` counts every argument once, of a lookup table the rows that are looked up;
    `bytes_written` the outputs, of a KV cache the new tokens. `peak_bytes` is arguments plus
    outputs that no argument gives its memory to, plus the temporaries of an unfused run.
    """
    module = graph.module
    kinds = {"params": "weights"}
    arguments: dict[str, dict[str, int]] = {
        kind: {"count": 0, "bytes": 0, "bytes_read": 0}
        for kind in ("weights", "state", "tokens", "captured")
    }
    for path, parameter in zip(graph.arguments, module.parameters, strict=True):
        tree = re.split(r"[.\[]", path, maxsplit=1)[0]
        empty = {"count": 0, "bytes": 0, "bytes_read": 0}
        entry = arguments.setdefault(kinds.get(tree, tree), empty)
        entry["count"] += 1
        entry["bytes"] += parameter.bytes
        entry["bytes_read"] += module.bytes_read(parameter)
    aliased = {output for _, output in graph.donated}
    outputs = [module.entry[name] for name in module.root.operands]
    fresh = sum(out.bytes for index, out in enumerate(outputs) if index not in aliased)
    argument_bytes = sum(entry["bytes"] for entry in arguments.values())
    temporaries = module.temporary_bytes()
    read = sum(entry["bytes_read"] for entry in arguments.values())
    return {
        "phase": graph.phase,
        "mesh": dataclasses.asdict(graph.mesh),
        "rank": graph.rank,
        "batch": graph.batch,
        "tokens": graph.tokens,
        "capacity": graph.capacity,
        "dtype": graph.dtype,
        "kernels": graph.kernels,
        "arguments": arguments,
        "argument_bytes": argument_bytes,
        "flops": module.flops(),
        "bytes_read": read,
        "bytes_read_per_token": read / (graph.batch * graph.tokens),
        "bytes_written": sum(_written(module, out) for out in outputs),
        "collectives": module.collectives(),
        "donated": [
            {"argument": graph.arguments[number], "parameter": number, "output": output}
            for number, output in graph.donated
        ],
        "histogram": module.histogram(),
        "custom_calls": module.custom_calls(),
        "constant_bytes": module.constant_bytes(),
        "temporary_bytes": temporaries,
        "peak_bytes": argument_bytes + fresh + temporaries,
    }


def _written(module: Module, output: Any) -> int:
    """Counts bytes that an output takes to write: a scatter into a donated buffer its updates."""
    while output.opcode in ("reshape", "transpose") and output.operands:
        output = module.entry[output.operands[0]]
    if output.opcode == "scatter":
        return module.entry[output.operands[2]].bytes
    return output.bytes
