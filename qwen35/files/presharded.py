"""Checkpoints split ahead of time: one file per rank, read from start to end.

`rank-00003-of-00008.safetensors` holds rank 3's tensors as they stand in memory, under their
paths in the tree; `rank-00003-of-00008.json` beside it says of which model and mesh they are, and
the file's SHA-256. A file with the first's name is complete, and the second beside it is its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..checks.choices import KINDS
from ..checks.errors import CheckpointError
from ..checks.json_file import read_object, to_text
from ..checks.values import all_finite, integer, shown
from ..forms import Part, Weight, abstract, is_special, parts_of
from ..model.config import Config
from ..model.dtypes import as_dtype
from ..model.params import Params, Runtime
from ..xla import trees
from . import aside
from .materialize import abstract_params
from .tensor_file import TensorFile, write_tensors


def is_presharded(directory: Path) -> bool:
    """Tells whether the directory holds rank files instead of a Hugging Face checkpoint."""
    return any(directory.glob("rank-*-of-*.safetensors"))


def recorded_dtype(directory: Path) -> torch.dtype:
    """The dtype that the directory's rank files were made for.

    Raises:
        CheckpointError: no record is there, or it names none.
    """
    records = sorted(directory.glob("rank-*-of-*.json"))
    if not records:
        raise CheckpointError(f"{directory}: rank files without their records")
    try:
        return as_dtype(str(read_object(records[0], "a rank's record").get("dtype")))
    except ValueError as error:
        raise CheckpointError(f"{records[0]}: {error}") from None


def rank_file(directory: Path, tp: int, rank: int) -> Path:
    """Names the file of a rank's tensors."""
    return directory / f"rank-{rank:05d}-of-{tp:05d}.safetensors"


def load_rank(
    directory: Path, *, dtype: torch.dtype, runtime: Runtime, check_finite: bool, vision: bool
) -> Params:
    """One rank's parameters, on the CPU, from its file in one sequential read.

    Arguments are those of `qwen35.load`.

    Raises:
        CheckpointError: the file is missing, damaged, or of another tp, dtype or configuration.
    """
    config = Config.from_pretrained(directory)
    tp = 1 if runtime.mesh is None else runtime.mesh.tp
    rank = 0 if runtime.mesh is None else runtime.mesh.coordinates(runtime.rank)[1]
    file = rank_file(directory, tp, rank)
    if not file.is_file():
        present = sorted(path.name for path in directory.glob("rank-*-of-*.safetensors"))
        made_for = sorted({int(name[14:19]) for name in present})
        reason = (
            f"the directory was converted for tp {', '.join(map(str, made_for))}, not {tp}"
            if tp not in made_for
            else f"of its {tp} ranks only {len(present)} are there: qwen35 convert completes it"
        )
        raise CheckpointError(f"{file}: no such file; {reason}")
    digest = _check_facts(file, facts_of(config, tp, rank, dtype))
    _check_alike(directory, tp)
    tensors = TensorFile(file).read_verified(digest)
    config = config if vision else config.text_only()
    declared = abstract_params(config, dtype=dtype, runtime=runtime)
    record = read_object(file.with_suffix(".json"), "a rank's record")
    declared = _stored_as(declared, record, file)

    infinite = []

    def take(path: str, expected: Tensor) -> Tensor:
        tensor = tensors.get(path)
        if tensor is None or tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            seen = "missing" if tensor is None else f"{list(tensor.shape)} {tensor.dtype}"
            raise CheckpointError(
                f"{file}: {path} is {seen}, the config needs {list(expected.shape)} "
                f"{expected.dtype}"
            )
        if check_finite and not all_finite(tensor):
            infinite.append(path)
        return tensor

    taken = iter([take(path, leaf) for path, leaf in _named(declared)])
    if infinite:
        raise CheckpointError(
            f"{file}: NaN or infinite values in {', '.join(infinite)} "
            "(check_finite=False or --no-check-finite loads it all the same)"
        )
    return trees.map_tensors(lambda _: next(taken), declared)


def _stored_as(params: Params, record: dict[str, Any], file: Path) -> Params:
    """Declared parameters, those stored in a special way that the record says are."""
    stated = record.get("stored", {})
    if not isinstance(stated, dict):
        raise CheckpointError(f"{file.with_suffix('.json')}: stored is {shown(stated)}, no object")

    def one(path: Any, leaf: Tensor) -> Weight:
        name = pytree.keystr(path).removeprefix(".")
        if name not in stated:
            return leaf
        try:
            parts = list(map(_part, stated[name]))
            if sum(part.width for part in parts) != leaf.shape[1]:
                raise ValueError(f"its parts are not {leaf.shape[1]} columns")
            return abstract(leaf.shape[0], parts, leaf.dtype)
        except (TypeError, ValueError, LookupError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"{file.with_suffix('.json')}: no way to store {name} ({error})"
            ) from None

    return pytree.tree_map_with_path(one, params)


def _part(stated: Any) -> Part:
    """Reads how columns are stored, as a record has it.

    Raises:
        ValueError, TypeError: it is nothing of the kind.
    """
    if not isinstance(stated, dict) or not stated.keys() <= set(Part._fields):
        raise ValueError(f"{shown(stated)} is no part of a weight")
    part = Part(**stated)
    sizes = integer("width", part.width), integer("group", part.group, 1 if part.kind else 0)
    if part.kind not in (*KINDS, "") or not isinstance(part.zeros, bool):
        raise ValueError(f"{shown(stated)} is no part of a weight")
    return part._replace(width=sizes[0], group=sizes[1])


def _stored(params: Params) -> dict[str, list[dict[str, Any]]]:
    """How weights are stored that are not tensors, by their paths, as a record has it."""
    leaves, _ = pytree.tree_flatten_with_path(params, is_leaf=is_special)
    return {
        pytree.keystr(path).removeprefix("."): [part._asdict() for part in parts_of(leaf)]
        for path, leaf in leaves
        if is_special(leaf)
    }


def _named(params: Params) -> Iterator[tuple[str, Tensor]]:
    for path, leaf in trees.named_leaves(params, ""):
        yield path.removeprefix("."), leaf


def facts_of(config: Config, tp: int, rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """Lists what a rank's file depends on, as its record has it; how it is quantised aside."""
    name = str(dtype).removeprefix("torch.")
    return {"tp": tp, "rank": rank, "dtype": name, "config": config.to_dict()}


def _check_facts(file: Path, expected: dict[str, Any]) -> str:
    """The file's recorded SHA-256; raises CheckpointError if it was made for something else."""
    sidecar = file.with_suffix(".json")
    facts = read_object(sidecar, "a rank's record")
    digest = facts.get("sha256")
    if not isinstance(digest, str):
        raise CheckpointError(f"{sidecar}: no SHA-256 in it, so not a rank's record")
    expected = json.loads(json.dumps(expected))  # tuples as lists
    for name, value in expected.items():
        seen = facts.get(name)
        if name == "config" and isinstance(seen, dict) and seen != value:
            fields = sorted(
                name
                for name in seen.keys() | value.keys()
                if (name in seen, seen.get(name)) != (name in value, value.get(name))
            )
            first = fields[0]
            raise CheckpointError(
                f"{file}: made for another config: {first[:80]} is {shown(seen.get(first))} there "
                f"and {shown(value.get(first))} in config.json"
            )
        if name == "source" and seen != value:
            raise CheckpointError(
                f"{file}: made of other weights than those of now, whose files have another size, "
                "header or time of change: convert into another directory, or remove it"
            )
        if seen != value:
            raise CheckpointError(f"{file}: made for {name} {shown(seen)}, not {shown(value)}")
    return digest


def _check_alike(directory: Path, tp: int) -> None:
    """Raises CheckpointError if the ranks that are there were not made of one checkpoint."""
    sources: dict[Any, Path] = {}
    for rank in range(tp):
        record = rank_file(directory, tp, rank).with_suffix(".json")
        if record.is_file():
            source = read_object(record, "a rank's record").get("source")
            sources.setdefault(shown(source), record)
    if len(sources) > 1:
        names = " and ".join(sorted(record.name for record in sources.values()))
        raise CheckpointError(f"{directory}: {names} are of different weights: convert them anew")


def is_complete(file: Path, facts: dict[str, Any]) -> bool:
    """Tells whether a rank's file is undamaged.

    Raises:
        CheckpointError: it was made for something else than `facts`, or its record is damaged.
    """
    digest = _check_facts(file, facts)
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == digest


def write_rank(file: Path, params: Params, facts: dict[str, Any]) -> str:
    """Writes a rank's file and its record as one switch; returns the file's SHA-256.

    Memory beside the parameters: none with safetensors 0.8, as much again with 0.5.
    """
    tensors = {path: tensor.contiguous() for path, tensor in _named(params)}
    with aside.switched(file.parent, file.name) as new:
        write_tensors(new / file.name, tensors, {"format": "pt"})
        with open(new / file.name, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        record = to_text(facts | {"stored": _stored(params), "sha256": digest})
        (new / file.with_suffix(".json").name).write_bytes(record)
    return digest
