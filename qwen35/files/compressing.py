"""Writes a checkpoint again with its weights quantised, in the form of compressed-tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checks import hub
from ..checks.choices import KINDS
from ..checks.errors import CheckpointError
from ..checks.json_file import read_object, to_text
from ..checks.values import all_finite, shown
from ..forms.quantizing import GROUP, encode
from ..model.config import Config
from ..model.declarations import declarations, declare
from . import aside
from .checkpoint_files import INDEX, SINGLE, CheckpointFiles, model_config
from .extras import check_free, copy_extras
from .quantized import compressed
from .quantized.choice import kind_of
from .tensor_file import TensorFile, write_tensors

_FACTS = "qwen35.made_of"  # in a file's metadata: of what it was made, and how


def compress(
    source: str | Path,
    directory: str | Path,
    weights: str,
    *,
    head: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes a checkpoint with its text layers' matrices quantised; started again, it goes on.

    What `load(weights=…)` leaves dense stays as it is, and so does what this package does not read.
    Every file that has its final name is complete, and config.json, without which nobody reads the
    others, comes last. Memory is that of one of the source's files.

    Args:
        source: the checkpoint's directory, or a hub's name.
        directory: made if it is not there.
        weights: one of `checks.choices.KINDS`.
        head: the same of the head, or None; a tied one can't be.
        report: takes a line for each file.

    Raises:
        CheckpointError: the source is damaged, holds NaN or infinity, or is quantised already; or
            something else stands in `directory`.
        ValueError: an unknown kind of weights; or a tied head.
    """
    source, directory = hub.directory_of(source), Path(directory)
    for name, kind in (("weights", weights), ("head", head)):
        if kind not in (*KINDS, *((None,) if name == "head" else ())):
            raise ValueError(f"{name} must be one of {', '.join(KINDS)}, not {shown(kind)}")
    aside.settle(source)
    aside.settle(directory)
    config = model_config(source, None)
    if head and config.tie_word_embeddings:
        raise ValueError(
            f"head={head!r}: the head is the embedding here, which compressed-tensors keeps dense"
        )
    files = CheckpointFiles(source, tower=config.vision is not None, sparse=False)
    if files.scheme is not None:
        raise CheckpointError(f"{source}: its weights are quantised already, as config.json says")
    files.check(declare(config))
    kinds = _kinds(config, weights, head)
    content = read_object(source / "config.json", "a configuration")
    whole = to_text(content | {"quantization_config": _configuration(files, kinds)})
    there = directory / "config.json"
    check_free(source, directory, {SINGLE, *(file.name for file in files.handles)})
    if there.exists() and there.read_bytes() != whole:
        raise CheckpointError(f"{directory}: another checkpoint stands there")
    made_of = {file: _facts(file, files, weights, head) for file in files.handles}
    done = {file for file in made_of if _is_done(directory / file.name, made_of[file])}
    aside.make_directory(directory)
    names: dict[str, str] = {}
    for file, facts in made_of.items():
        target = directory / file.name
        if file in done:
            report(f"{file.name}: there already")
        else:
            tensors = dict(_tensors(files, file, kinds))
            with aside.replaced(target) as new:
                write_tensors(new, tensors, {"format": "pt", _FACTS: facts})
            report(f"{file.name}: {target.stat().st_size:,} bytes")
        names |= dict.fromkeys(TensorFile(target).keys(), file.name)
    copy_extras(source, directory)
    if set(names.values()) != {SINGLE}:
        aside.write(directory / INDEX, to_text({"metadata": {}, "weight_map": names}))
    aside.write(there, whole)


def _kinds(config: Config, weights: str, head: str | None) -> dict[str, str]:
    """The kind of each tensor that is quantised, by its text-only name."""
    kinds = {}
    for parameter in declarations(declare(config.text_only())):
        for piece in parameter.pieces:
            if kind := kind_of(parameter, piece, weights, head):
                kinds[piece.source.name] = kind
    return kinds


def _configuration(files: CheckpointFiles, kinds: dict[str, str]) -> dict[str, Any]:
    """What config.json says of it, modules by their names in the files."""
    modules, ignored = {}, ["lm_head"]
    for ours, (file, name) in files.tensors.items():
        module = name.removesuffix(".weight")
        if ours in kinds:
            group = GROUP if kinds[ours] == "int4" else None
            modules[module] = compressed.Form(kinds[ours], group)
        elif len(files.handles[file].get_slice(name).get_shape()) == 2:
            ignored.append(module)
    return compressed.configuration(modules, sorted({*ignored} - {*modules}))


def _tensors(
    files: CheckpointFiles, file: Path, kinds: dict[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the new file that takes the place of one of the source's."""
    ours = {name: our for our, (where, name) in files.tensors.items() if where == file}
    for name in files.handles[file].keys():
        kind = kinds.get(ours.get(name, ""))
        weight = files.handles[file].get_slice(name).read()
        if kind is None:
            yield name, weight
            continue
        if not all_finite(weight):
            raise CheckpointError(f"{file}: {name} holds NaN or infinite values")
        shape = weight.shape[0], weight.shape[1]
        codes = encode(weight, shape, kind, files.dtype)
        coded = compressed.Coded(codes.values, codes.scales, None, codes.group)
        for part, tensor in compressed.tensors(coded, files.dtype).items():
            yield name.removesuffix("weight") + part, tensor


def _facts(file: Path, files: CheckpointFiles, weights: str, head: str | None) -> str:
    """What a file's conversion depends on, as a digest of the source's stamp, and the kinds."""
    facts = {"source": files.handles[file].stamp(), "weights": weights, "head": head}
    return hashlib.sha256(to_text(facts)).hexdigest()


def _is_done(target: Path, facts: str) -> bool:
    """Whether a file stands there that was made of these facts.

    Raises:
        CheckpointError: another file stands there.
    """
    if not target.exists():
        return False
    try:
        found = TensorFile(target).metadata.get(_FACTS)
    except CheckpointError:
        found = None
    if found != facts:
        raise CheckpointError(f"{target}: not a part of this conversion, but stands in its place")
    return True
