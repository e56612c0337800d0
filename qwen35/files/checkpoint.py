"""Loading and saving Hugging Face checkpoints: safetensors files and a config.json."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from ..checks import hub
from ..checks.choices import KINDS
from ..checks.errors import CheckpointError
from ..checks.json_file import to_text
from ..checks.values import all_finite, integer, shown
from ..forms import Weight, compact, dense, is_special
from ..model.all_ranks import load_all_ranks
from ..model.declarations import (
    Parameter,
    Piece,
    Source,
    axis_sizes,
    declarations,
    declare,
)
from ..model.dtypes import as_dtype
from ..model.moving import place as place_params
from ..model.params import Params, Runtime
from ..sharding.launch import join_ranks
from ..xla.devices import device_put
from ..xla.progress import progress_bar
from . import aside
from .adapter import Adapter
from .checkpoint_files import (
    INDEX,
    SINGLE,
    TEXT_PREFIX,
    Readable,
    Watched,
    names_in_files,
    opened,
)
from .extras import PROCESSOR_FILES, TOKENIZER_FILES
from .likeness import check_same_checkpoint
from .materialize import build_all, dematerialize, keep, materialize, values_to_read, with_tp_index
from .presharded import is_presharded, load_rank, recorded_dtype
from .quantized import QuantizedFile, Quantizing, compressed
from .quantized.choice import kind_of
from .tensor_file import write_tensors

_SHARD_PATTERN = "model-[0-9]*-of-[0-9]*.safetensors"
_GENERATION = "generation_config.json"
_SHARD_BYTES = 4 * 2**30


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str = "cpu",
    runtime: Runtime = Runtime(),
    check_finite: bool = True,
    vision: bool | None = None,
    weights: str | None = None,
    head: str | None = None,
    adapter: str | Path | None = None,
    progress: bool = False,
    tp: int | None = None,
) -> Params:
    """Loads a checkpoint directory, tensor by tensor from memory-mapped files.

    Reads one or several safetensors files, with the multimodal (`model.language_model.*`) or the
    text-only (`model.*`) names. `mtp.*`, with either prefix too, and `*rotary_emb.inv_freq` are
    skipped, and so is `model.visual.*` where the configuration has no `vision_config`.

    Args:
        path: directory with `config.json` and `*.safetensors`, or rank files of
            `qwen35 convert` for the runtime's tp; or a hub's name, such as "Qwen/Qwen3.5-0.8B",
            whose files are downloaded into huggingface_hub's cache unless they are there.
        dtype: float32 or bfloat16, the dtype of all tensors but the DeltaNet layers' `A_log` and
            `dt_bias`: the decay is an exponential of an exponential, so they stay float32. None, or
            "auto", is the checkpoint's own: bfloat16 where its embedding is, else float32.
        device: "cpu" or "xla".
        runtime: static choices; with a mesh, only this rank's share is read.
        check_finite: refuse NaN and infinite weights.
        vision: load the vision tower too, if the configuration has one. None does so if the files
            hold it, and warns where they do not. False gives the text model, `config.text_only()`,
            which `save` writes in the text-only form.
        weights: None keeps weights that are quantised as the files have them, "dense" makes them
            tensors of `dtype`. Both give the same values, but for rounding to `dtype`. "int8",
            "fp8" (a scale per output) and "int4" (a scale for 128 inputs of an output) quantise
            the text layers' matrices, but for DeltaNet's small projections to its gates
            (`in_proj_a`, `in_proj_b`). A rank's share is that of the whole.
        head: "int8", "fp8" or "int4" quantises the head too, and with it a tied embedding.
        adapter: directory of a LoRA adapter in PEFT's form, merged into the tensors as they are
            read: in float32, before they become of `dtype` or are quantised. Weights that the files
            hold quantised have to become dense (or of another kind) for that, `weights="dense"`.
        progress: draw a progress bar on standard error.
        tp: short for the ranks of `sharding.launch.join_ranks`, on which it also sets `device`:
            under torchrun this process is one of tp, and the others load the same; otherwise all
            are here, on virtual devices of XLA:CPU, which must come before anything else uses XLA.

    Returns:
        The parameter tree. Peak anonymous memory on the CPU is the tree plus one tensor.

    Raises:
        CheckpointError: files or tensors are missing, damaged, of another shape or dtype, double
            or unknown; all of a checkpoint's faults are in the one message. The adapter is of
            another kind or model, or changes weights that stay quantised.
        ValueError: an unknown dtype, device or form of weights; ranks that can't be had; or
            quantising rank files, or merging into them.
    """
    wanted = None if dtype is None or dtype == "auto" else as_dtype(dtype)
    if weights not in (None, "dense", *KINDS):
        known = ", ".join(map(repr, ("dense", *KINDS)))
        raise ValueError(f"weights must be None or one of {known}, not {shown(weights)}")
    if head not in (None, *KINDS):
        known = ", ".join(map(repr, KINDS))
        raise ValueError(f"head must be None or one of {known}, not {shown(head)}")
    if tp is not None:
        if runtime.mesh is not None:
            raise ValueError(f"tp = {tp} stands for a mesh, but the runtime has {runtime.mesh}")
        ranks = join_ranks(integer("tp", tp), "xla" if device == "xla" else None)
        device = ranks.device
        runtime = dataclasses.replace(runtime, mesh=ranks.mesh, rank=ranks.rank)
        if ranks.processes > 1:
            check_same_checkpoint(path, adapter)
    directory = hub.directory_of(path)
    made = next((kind for kind in (weights, head) if kind in KINDS), None)
    if made and is_presharded(directory):
        raise ValueError(f"{made} is made of a whole checkpoint's matrices, not of rank files")
    if adapter is not None and is_presharded(directory):
        raise ValueError("an adapter is merged into a whole checkpoint, not into rank files")
    if runtime.rank is None:
        load_one = functools.partial(
            load,
            directory,
            dtype=wanted,
            check_finite=check_finite,
            vision=vision,
            weights=weights,
            head=head,
            adapter=adapter,
            progress=progress,
        )
        return load_all_ranks(lambda rank: load_one(runtime=rank), runtime, device)
    device_put((), device)  # an unknown device fails before gigabytes are read
    aside.settle(directory)
    if is_presharded(directory):
        own = wanted or recorded_dtype(directory)
        loaded = load_rank(
            directory,
            dtype=own,
            runtime=runtime,
            check_finite=check_finite,
            vision=vision is not False,
        )
        if weights == "dense":
            loaded = pytree.tree_map(dense, loaded, is_leaf=is_special)
        return place_params(loaded, device)
    runtime = runtime.on(device)
    config, files = opened(directory, vision, runtime)
    merging = None if adapter is None else Adapter(adapter, check_finite=check_finite)
    own_head = config.tie_word_embeddings
    if merging is not None:
        config = merging.config(config)
    own_head = own_head and not config.tie_word_embeddings
    declared = declare(config, runtime)

    def stays_quantized(parameter: Parameter, piece: Piece) -> bool:
        file = files.read(piece.source)
        made = weights == "dense" or kind_of(parameter, piece, weights, head)
        return isinstance(file, QuantizedFile) and not made

    if own_head:
        files.untie()
    files.check(declared)
    if merging is not None:
        merging.check(declared, stays_quantized)
    own = wanted or files.dtype
    sizes = axis_sizes(config)
    total = sum(
        count * files.read(source).bytes_per_value
        for parameter in declarations(declared)
        for source, count in values_to_read(parameter, sizes, runtime)
    )
    bar = progress_bar("load", total, "B", progress, unit_scale=True, leave=False)
    counting = threading.Lock()
    infinite: set[Source] = set()

    def read(source: Source, kept: torch.dtype) -> Watched:
        tensor: Readable = files.read(source)
        if merging is not None:
            tensor = merging.merged(source, tensor)

        def look(block: torch.Tensor, values: int) -> None:
            with counting:  # other tensors are read at the same time
                bar.update(values * tensor.bytes_per_value)
            if check_finite and not all_finite(block, kept):
                infinite.add(source)

        return Watched(tensor, look)

    def build(parameter: Parameter) -> torch.Tensor | Weight:
        read_as = functools.partial(read, kept=parameter.dtype or own)
        kinds = {p.source: kind_of(parameter, p, weights, head) for p in parameter.pieces}
        if not any(kinds.values()):
            build_one = materialize if weights == "dense" else keep
            return build_one(parameter, read_as, own, sizes, runtime, device)

        @functools.cache  # a tensor can be several pieces
        def quantized(source: Source) -> Any:
            kind, tensor = kinds[source], read_as(source)
            shape = source.shape[0], source.shape[1]
            return Quantizing(tensor, shape, kind) if kind else tensor

        return keep(parameter, quantized, own, sizes, runtime, device)

    with bar:
        params = build_all(build, declared)
    if infinite:
        named = "; ".join(
            f"{place} holds NaN or infinite values" for place in sorted(map(files.place, infinite))
        )
        raise CheckpointError(
            f"{directory}: {named} (check_finite=False or --no-check-finite loads it all the same)"
        )
    return with_tp_index(params, device)


class Saved(Protocol):
    """A `Tokenizer`, a `Processor`, or one of transformers'."""

    def save_pretrained(self, directory: Path) -> Any:
        """Write its files."""


def save(params: Params, directory: str | Path, *, tokenizer: Saved | None = None) -> None:
    """Writes safetensors files and config.json that `load` and transformers read.

    Names are multimodal if there is a vision tower, else text-only. Quantised weights keep their
    codes, in the form of compressed-tensors; a tied head that is quantised becomes dense. All files
    take the place of an earlier checkpoint's as one switch (`aside`), whenever the process dies;
    other files in the directory stay. Where no generation_config.json is there, one with the end
    tokens is written.

    Args:
        params: unsplit parameters on any device.
        directory: made if it is not there.
        tokenizer: written beside the weights, so that the directory is whole; a `Processor` with
            its settings of pictures. None leaves what is there.

    Raises:
        ValueError: the parameters are one rank's share, or rank files stand in the directory.
        OSError: it can't be written; then nothing has changed.
    """
    if params.runtime.mesh is not None and params.runtime.mesh.tp > 1:
        raise ValueError(f"these parameters are one rank's share of {params.runtime.mesh}")
    directory = Path(directory)
    if is_presharded(directory):
        raise ValueError(
            f"{directory}: holds a conversion's rank files, which load would take instead of what "
            "is saved"
        )
    aside.make_directory(directory)
    old = [SINGLE, INDEX, _SHARD_PATTERN, *(() if tokenizer is None else TOKENIZER_FILES)]
    with aside.switched(directory, "config.json", old) as new:
        shards, modules = [], dict[str, compressed.Form]()
        for number, tensors in enumerate(_shards(params, modules)):
            write_tensors(new / str(number), tensors, {"format": "pt"})
            shards.append(list(tensors))
        targets = _shard_names(len(shards))
        for number, target in enumerate(targets):
            (new / str(number)).rename(new / target)
        if len(shards) > 1:
            weight_map = {
                name: target
                for target, names in zip(targets, shards, strict=True)
                for name in names
            }
            (new / INDEX).write_bytes(to_text({"metadata": {}, "weight_map": weight_map}))
        config = _config_dict(params)
        if modules:
            named = {name for names in shards for name in names if name.endswith(".weight")}
            ignored = {name.removesuffix(".weight") for name in named} | {"lm_head"}
            stated = compressed.configuration(modules, sorted(ignored - modules.keys()))
            config["quantization_config"] = stated
        (new / "config.json").write_bytes(to_text(config))
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
            if any((new / name).exists() for name in PROCESSOR_FILES):
                old += PROCESSOR_FILES  # another processor's
        if not any((place / _GENERATION).exists() for place in (directory, new)):
            (new / _GENERATION).write_bytes(to_text(_generation_dict(params, tokenizer)))


def _shards(
    params: Params, modules: dict[str, compressed.Form]
) -> Iterator[dict[str, torch.Tensor]]:
    """The checkpoint's tensors by file name, in groups of at most about `_SHARD_BYTES`.

    Notes in `modules` how those are stored that are quantised.
    """
    multimodal = params.config.vision is not None
    tensors: dict[str, torch.Tensor] = {}
    size = 0
    declared = declare(params.config, params.runtime)
    leaves = pytree.tree_leaves(params, is_leaf=is_special)
    for parameter, leaf in zip(declarations(declared), leaves, strict=True):
        weight = compact(device_put(leaf, "cpu"))
        if parameter.pieces[0].source.name == TEXT_PREFIX + "embed_tokens.weight":
            weight = dense(weight)  # the library has no form of an embedding
        for source, tensor in dematerialize(parameter, weight):
            name = names_in_files(source)[0 if multimodal else -1]
            if isinstance(tensor, compressed.Coded):
                stem = name.removesuffix("weight")
                modules[stem.removesuffix(".")] = tensor.form
                parts = compressed.tensors(tensor, torch.float32)
                new = {stem + part: one for part, one in parts.items()}
            else:
                new = {name: tensor}
            more = sum(one.nbytes for one in new.values())
            if size and size + more > _SHARD_BYTES:
                yield tensors
                tensors, size = {}, 0
            tensors |= new
            size += more
    yield tensors


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _config_dict(params: Params) -> dict[str, Any]:
    content = params.config.to_dict() | {"dtype": str(params.dtype).removeprefix("torch.")}
    for section in (content, content.get("text_config", {})):
        section.pop("quantization_config", None)  # of the files that were loaded
    return content


def _generation_dict(params: Params, tokenizer: Saved | None) -> dict[str, Any]:
    ends = [*params.config.eos_token_ids, *getattr(tokenizer, "end_token_ids", ())]
    ends, pad = list(dict.fromkeys(ends)), params.config.pad_token_id
    named = {"eos_token_id": ends or None, "pad_token_id": pad}
    return {name: value for name, value in named.items() if value is not None}
