"""Splits a checkpoint into one file per rank ahead of time (`presharded` has their form)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..checks import hub
from ..checks.errors import CheckpointError
from ..checks.json_file import to_text
from ..model.config import Config
from ..model.declarations import declare
from ..model.dtypes import as_dtype
from ..model.params import Runtime
from ..sharding.mesh import Mesh
from . import aside, likeness
from .adapter import Adapter
from .checkpoint import load, save
from .checkpoint_files import CheckpointFiles, model_config
from .extras import Extras, check_free, copy_extras
from .presharded import facts_of, is_complete, rank_file, write_rank


def convert(
    source: str | Path,
    directory: str | Path,
    tp: int,
    *,
    dtype: torch.dtype | str = torch.bfloat16,
    vision: bool | None = None,
    weights: str | None = None,
    head: str | None = None,
    adapter: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the rank files of a checkpoint. Started again, it goes on where it was stopped.

    Memory is one rank's share. Ranks that are there, complete and of this model are left alone;
    nothing is written before it is known that no other conversion stands there.

    Args:
        source: the checkpoint's directory, or a hub's name.
        directory: the ranks', made if it is not there.
        tp: how many ranks share the tensors.
        dtype: float32 or bfloat16, of the files and of what `qwen35.load` must be asked for.
        vision, weights, head, adapter: those of `qwen35.load`.
        report: takes a line for each rank.

    Raises:
        CheckpointError, ValueError: as `qwen35.load`, or another conversion stands in `directory`.
    """
    source, directory = hub.directory_of(source), Path(directory)
    aside.settle(source)
    aside.settle(directory)
    config, mesh = model_config(source, vision), Mesh(tp=tp)
    vision = config.vision is not None
    made = {"weights": weights, "head": head}
    files = [rank_file(directory, tp, rank) for rank in range(tp)]
    others = sorted(set(directory.glob("rank-*-of-*.safetensors")) - set(files))
    if others:
        raise CheckpointError(f"{directory}: holds {others[0].name}, of a conversion to another tp")
    check_free(source, directory, {file.name for file in files})
    source_files = CheckpointFiles(source, tower=vision, sparse=True)
    source_files.check(declare(config))
    digest = None
    if adapter is not None:
        merging = Adapter(adapter)
        config, digest = merging.config(config), merging.digest()
    made_of = made | {"adapter": digest, "source": source_files.stamp()}
    facts = [facts_of(config, tp, rank, as_dtype(dtype)) | made_of for rank in range(tp)]
    there = [
        file.is_file() and is_complete(file, expected)
        for file, expected in zip(files, facts, strict=True)
    ]
    aside.make_directory(directory)
    copy_extras(source, directory)
    content = (source / "config.json").read_bytes()
    if config != Config.from_pretrained(source):  # a tower is left out, a head is its own
        content = to_text(config.to_dict())
    aside.write(directory / "config.json", content)
    of_source = {} if all(there) else {"content": likeness.digest(source, adapter)}
    for rank, file in enumerate(files):
        if there[rank]:
            report(f"{file.name}: there already")
            continue
        runtime = Runtime(mesh=mesh, rank=rank) if tp > 1 else Runtime()
        params = load(source, dtype=dtype, runtime=runtime, vision=vision, adapter=adapter, **made)
        written = write_rank(file, params, facts[rank] | of_source)
        report(f"{file.name}: {file.stat().st_size:,} bytes, sha256 {written[:12]}")


def merge(
    source: str | Path, directory: str | Path, adapter: str | Path, *, vision: bool | None = None
) -> None:
    """Writes a checkpoint with a LoRA adapter merged into it, in its own dtype, with what stands
    beside the weights (tokenizer, processor).

    Memory is the model's.

    Args:
        source: the checkpoint's directory, or a hub's name; quantised weights become dense.
        directory: the merged checkpoint's, made if it is not there.
        adapter, vision: those of `qwen35.load`.

    Raises:
        CheckpointError, ValueError: as `qwen35.load`, or both directories are one.
    """
    source, directory = hub.directory_of(source), Path(directory)
    if directory.exists() and directory.samefile(source):
        raise ValueError(f"{directory}: merging into the checkpoint itself would lose it")
    params = load(source, adapter=adapter, vision=vision, weights="dense")
    save(params, directory, tokenizer=Extras(source))
