"""Writes an exported graph's files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ..files import aside
from .costs import count_costs
from .export import Graph
from .manifest import manifest


def write_graph(directory: Path, graph: Graph) -> tuple[dict[str, Any], dict[str, int]]:
    """Writes PHASE.hlo.pb, .hlo.txt, .stablehlo, .captured.safetensors and .json, as one switch.

    Args:
        directory: made if it is not there.
        graph: traced with its StableHLO.

    Returns:
        What PHASE.json holds: `manifest`, `count_costs` and, in `lint`, `Graph.lint`; and the bytes
        of each file by its path.
    """
    content = manifest(graph) | count_costs(graph) | {"lint": graph.lint()}
    captured = {f"captured[{index}]": tensor for index, tensor in enumerate(graph.captured)}
    files = {
        "hlo.pb": graph.proto,
        "hlo.txt": graph.text.encode(),
        "stablehlo": graph.stablehlo,
        "captured.safetensors": save(captured),
        "json": as_text(content),
    }
    aside.make_directory(directory)
    with aside.switched(directory, f"{graph.phase}.json") as new:
        for ending, data in files.items():
            (new / f"{graph.phase}.{ending}").write_bytes(data)
    written = {str(directory / f"{graph.phase}.{end}"): len(data) for end, data in files.items()}
    return content, written


def write_launches(
    directory: Path, phase: str, launches: Sequence[Graph], counted: dict[str, Any]
) -> dict[str, int]:
    """Writes PHASE.json of a step that is cut into graphs, whose own files are there already.

    It has `launches`, in their order: of each the name of its `graph`, and the parameters and
    outputs of `manifest` at the paths that this launch takes and gives; and in `counts` what
    `count_launches` counted. Files of an earlier export of the phase as one graph are removed.

    Returns:
        The bytes of the file by its path.
    """
    entries = [{"graph": graph.phase, **manifest(graph)} for graph in launches]
    text = as_text({"phase": phase, "launches": entries, "counts": counted})
    with aside.switched(directory, f"{phase}.json", stale=[f"{phase}.*"]) as new:
        (new / f"{phase}.json").write_bytes(text)
    return {str(directory / f"{phase}.json"): len(text)}


def as_text(content: dict[str, Any]) -> bytes:
    """Returns JSON with an entry a line, but lists of numbers on one."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\[\s+([-\d,\s]+?)\s+\]", _on_one_line, text).encode() + b"\n"


def _on_one_line(match: re.Match[str]) -> str:
    return f"[{' '.join(match[1].split())}]"
