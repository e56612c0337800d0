"""Says of everything that an exported graph takes where it comes from, for any program to read."""

from __future__ import annotations

from typing import Any

from ..files.checkpoint_files import names_in_files
from ..files.materialize import copied_runs
from ..model.config import VisionConfig
from ..model.declarations import Parameter, axis_sizes, declare, declare_vision
from ..model.params import Runtime
from ..sharding.mesh import Mesh
from ..xla import trees
from .export import Graph


def manifest(graph: Graph) -> dict[str, list[dict[str, Any]]]:
    """Describes a graph's parameters and outputs, in its order, as plain values for JSON.

    What `Lowered.signature` says, and of each parameter that the checkpoint or the rank fixes:

    - `checkpoint`: the tensors that it is put together from, as `pieces`, each with the `names`
      that it may have in the files, its `shape` there, and for each rank of the mesh, in `ranks`,
      which indices are copied: for each dimension of the parameter a list of [first of the
      parameter's, first of the file's, how many]. Where it is `transposed`, dimension 0 of the file
      becomes the last, the others are flattened into the first. What nothing is copied to is zero.
      Of a weight that is quantised, `stored` names the part of it that the parameter is, such as
      "values" or "scales", and the rest speaks of the whole matrix.
    - `by_rank`: its value on each rank.

    All else is `captured[…]`, whose values are exported too, or the caller's.
    """
    described = graph.signature
    sources = _sources(graph)
    for entry in described["parameters"]:
        path = entry["path"]
        whole = next((name for name in (path, *_above(path)) if name in sources), None)
        if whole is not None:
            entry["checkpoint"] = _place(sources[whole], graph)
            if whole != path:
                entry["checkpoint"]["stored"] = path.removeprefix(whole + ".")
        elif path == "params.tp_index":
            entry["by_rank"] = [[graph.mesh.coordinates(rank)[1]] for rank in _ranks(graph.mesh)]
    return described


def _sources(graph: Graph) -> dict[str, Parameter]:
    """The declaration of each of the model's tensors, by its path."""
    runtime = Runtime(mesh=graph.mesh, rank=graph.rank)
    if isinstance(graph.part, VisionConfig):
        declared: Any = declare_vision(graph.part, runtime)
    else:
        declared = declare(graph.config.text_only(), runtime)
    return dict(trees.named_leaves(declared, "params"))


def _above(path: str) -> list[str]:
    """The paths of the nodes that a leaf is part of, the nearest first."""
    parts = path.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def _ranks(mesh: Mesh) -> range:
    return range(mesh.size)


def _place(parameter: Parameter, graph: Graph) -> dict[str, Any]:
    sizes = axis_sizes(graph.config)
    of_ranks = [
        list(copied_runs(parameter, sizes, Runtime(mesh=graph.mesh, rank=rank)))
        for rank in _ranks(graph.mesh)
    ]
    pieces = []
    for copies in zip(*of_ranks, strict=True):
        source = copies[0][0].source
        pieces.append(
            {
                "names": list(names_in_files(source)),
                "shape": list(source.shape),
                "ranks": [runs for _, runs in copies],
            }
        )
    return {"transposed": parameter.transposed, "pieces": pieces}
