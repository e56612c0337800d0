"""Loading and saving Hugging Face checkpoints: safetensors files and a config.json."""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils import _pytree as pytree
from tqdm import tqdm

from ..checks.errors import CheckpointError
from ..checks.json_file import read_object, to_text
from ..checks.values import shown
from ..forms import Weight, dense, is_special
from ..model.all_ranks import load_all_ranks
from ..model.config import Config
from ..model.declarations import (
    VISION_PREFIX,
    Parameter,
    Source,
    axis_sizes,
    declarations,
    declare,
    map_declarations,
)
from ..model.moving import place as place_params
from ..model.params import Params, Runtime, as_dtype
from ..xla.devices import device_put, release_host_memory
from . import aside
from .materialize import dematerialize, materialize, place, with_tp_index
from .presharded import is_presharded, load_rank
from .tensor_file import TensorFile, TensorSlice

_DTYPES = ("F64", "F32", "F16", "BF16")
# Known to carry nothing that the model reads: the multi-token-prediction head, and a buffer that
# older exporters wrote.
_SKIPPED = ("mtp.*", "*rotary_emb.inv_freq")
_TOWER = ("model.visual.*", "visual.*")
_TEXT_PREFIX, _MULTIMODAL_PREFIX = "model.", "model.language_model."
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD_PATTERN = "model-[0-9]*-of-[0-9]*.safetensors"
_SHARD_BYTES = 4 * 2**30
_BLOCK = 2**20


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str = "cpu",
    runtime: Runtime = Runtime(),
    check_finite: bool = True,
    vision: bool = True,
    progress: bool = False,
) -> Params:
    """Loads a checkpoint directory, tensor by tensor from memory-mapped files.

    Reads one or several safetensors files, with the multimodal (`model.language_model.*`) or the
    text-only (`model.*`) names. `mtp.*` and `*rotary_emb.inv_freq` are skipped, and so is
    `model.visual.*` where the configuration has no `vision_config`.

    Args:
        path: directory with `config.json` and `*.safetensors`, or rank files of
            `qwen35 convert` for the runtime's tp.
        dtype: float32 or bfloat16, the dtype of all tensors but the DeltaNet layers' `A_log` and
            `dt_bias`: the decay is an exponential of an exponential, so they stay float32.
        device: "cpu" or "xla".
        runtime: static choices; with a mesh, only this rank's share is read.
        check_finite: refuse NaN and infinite weights.
        vision: load the vision tower too if the configuration has one. False gives the text model
            in it, `config.text_only()`, which `save` writes in the text-only form.
        progress: draw a progress bar on standard error.

    Returns:
        The parameter tree. Peak anonymous memory on the CPU is the tree plus one tensor.

    Raises:
        CheckpointError: files or tensors are missing, damaged, of another shape or dtype, double
            or unknown; all of a checkpoint's faults are in the one message.
        ValueError: an unknown dtype or device.
    """
    dtype = as_dtype(dtype)
    if runtime.rank is None:
        load_one = functools.partial(
            load,
            path,
            dtype=dtype,
            check_finite=check_finite,
            vision=vision,
            progress=progress,
        )
        return load_all_ranks(lambda rank: load_one(runtime=rank), runtime, device)
    device_put((), device)  # an unknown device fails before gigabytes are read
    directory = Path(path)
    aside.settle(directory)
    if is_presharded(directory):
        loaded = load_rank(
            directory, dtype=dtype, runtime=runtime, check_finite=check_finite, vision=vision
        )
        return place_params(loaded, device)
    runtime = runtime.on(device)
    config = Config.from_pretrained(directory)
    config = config if vision else config.text_only()
    declared = declare(config, runtime)
    sparse = runtime.mesh is not None and runtime.mesh.tp > 1
    skipped = _SKIPPED if config.vision is not None else _SKIPPED + _TOWER
    files = _Files(directory, skipped, sparse)
    files.check(declared)
    sizes = axis_sizes(config)
    total = sum(1 for _ in declarations(declared))
    bar = tqdm(total=total, desc="load", unit="tensor", disable=not progress, leave=False)

    def build(parameter: Parameter) -> torch.Tensor | Weight:
        tensor = materialize(parameter, files.read, dtype, sizes, runtime)
        if check_finite:
            widths = parameter.local_widths(sizes, runtime.mesh, runtime.own_rank)
            files.check_finite(parameter, tensor.split(widths, -1))
        bar.update()
        moved = place(parameter, tensor, device, runtime)
        if moved is not tensor:
            del tensor
            release_host_memory()
        return moved

    with bar:
        params = with_tp_index(map_declarations(build, declared), device)
    if files.problems:
        raise CheckpointError(
            f"{directory}: {'; '.join(files.problems)} (check_finite=False or --no-check-finite "
            "loads it all the same)"
        )
    return params


class _Files:
    """The tensors of a checkpoint directory by their text-only names; `skipped` has patterns."""

    def __init__(self, directory: Path, skipped: tuple[str, ...], sparse: bool) -> None:
        self.directory = directory
        self.patterns = skipped
        self.sparse = sparse
        self.problems: list[str] = []
        self.tensors: dict[str, tuple[Path, str]] = {}
        self.skipped: list[str] = []
        self.handles: dict[Path, TensorFile] = {}
        for file in self._shards():
            self._open(file)

    def _shards(self) -> list[Path]:
        """model.safetensors, or else the files that an index names, as transformers looks."""
        single = self.directory / _SINGLE
        index = self.directory / _INDEX
        if single.is_file():
            return [single]
        if not index.is_file():
            raise CheckpointError(f"{self.directory}: neither {_SINGLE} nor {_INDEX}")
        weight_map = read_object(index, "an index of safetensors files").get("weight_map")
        values = weight_map.values() if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) for name in values):
            raise CheckpointError(f"{index}: weight_map must hold a file's name for each tensor")
        names = set(values)
        files = [self.directory / name for name in sorted(names)]
        # A downloaded index must not make us read files elsewhere on the machine.
        outside = sorted(name for name in names if Path(name).name != name)
        if outside:
            raise CheckpointError(
                f"{index}: names {', '.join(map(shown, outside))}, which is not beside it"
            )
        beside = set(os.listdir(self.directory))  # a name may be too long to ask for
        missing = [shown(file.name) for file in files if file.name not in beside]
        if missing:
            raise CheckpointError(f"{index}: names {', '.join(missing)}, which is not there")
        return files

    def _open(self, file: Path) -> None:
        handle = self.handles[file] = TensorFile(file, self.sparse)
        for name in handle.keys():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns):
                self.skipped.append(name)
                continue
            ours = name
            if name.startswith(_MULTIMODAL_PREFIX):
                ours = _TEXT_PREFIX + name.removeprefix(_MULTIMODAL_PREFIX)
            elif name.startswith("visual."):
                ours = _TEXT_PREFIX + name
            if ours in self.tensors:
                other = self.tensors[ours][0].name
                self.problems.append(f"{file.name}: {name} stands in {other} too")
            else:
                self.tensors[ours] = (file, name)

    def read(self, source: Source) -> TensorSlice:
        """The tensor of a source, still unread: slicing it reads."""
        file, name = self.tensors[source.name]
        return self.handles[file].get_slice(name)

    def check(self, declared: Params) -> None:
        """Raises one CheckpointError with every fault that names, shapes and dtypes show."""
        expected = {
            piece.source.name: piece.source
            for parameter in declarations(declared)
            for piece in parameter.pieces
        }
        tower = {name for name in expected if name.startswith(VISION_PREFIX)}
        if tower and tower.isdisjoint(self.tensors):
            self.problems.append(
                f"none of the {len(tower)} tensors of the vision tower ({VISION_PREFIX}*) that the "
                "config describes is there (vision=False loads the text model alone)"
            )
            expected = {name: expected[name] for name in expected.keys() - tower}
        for name, source in expected.items():
            if name not in self.tensors:
                self.problems.append(f"{name} is missing")
                continue
            file, file_name = self.tensors[name]
            entry = self.read(source)
            shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
            if shape != source.shape:
                self.problems.append(
                    f"{file.name}: {file_name} has shape {list(shape)}, "
                    f"the config needs {list(source.shape)}"
                )
            if dtype not in _DTYPES:
                self.problems.append(
                    f"{file.name}: {file_name} has dtype {dtype}, not one of {', '.join(_DTYPES)}"
                )
        for name in sorted(self.tensors.keys() - expected.keys()):
            file, file_name = self.tensors[name]
            if name == "lm_head.weight" and declared.config.tie_word_embeddings:
                self._check_tied(file, file_name)
            else:
                self.problems.append(f"{file.name}: {file_name} is not part of this model")
        if self.problems:
            raise CheckpointError(f"{self.directory}: " + "; ".join(self.problems))

    def _check_tied(self, file: Path, file_name: str) -> None:
        """A head beside a tied embedding must be the same tensor."""
        if "model.embed_tokens.weight" not in self.tensors:
            return
        embedding_file, embedding_name = self.tensors["model.embed_tokens.weight"]
        head = self.handles[file].get_slice(file_name)
        embedding = self.handles[embedding_file].get_slice(embedding_name)
        shape, dtype = head.get_shape(), head.get_dtype()
        alike = (shape, dtype) == (embedding.get_shape(), embedding.get_dtype())
        readable = len(shape) == 2 and dtype in _DTYPES
        same = (
            alike
            and readable
            and all(
                torch.equal(head[start : start + 4096], embedding[start : start + 4096])
                for start in range(0, shape[0], 4096)
            )
        )
        if not same:
            self.problems.append(
                f"{file.name}: {file_name} differs from {embedding_name}, but the config says "
                "tie_word_embeddings"
            )

    def check_finite(self, parameter: Parameter, parts: Sequence[torch.Tensor]) -> None:
        """Adds a problem for each of the checkpoint's tensors that hold a NaN or an Inf."""
        for piece, part in zip(parameter.pieces, parts, strict=True):
            # isfinite's temporaries are larger than its input: blocks keep them to a few MB.
            rows = max(1, _BLOCK // max(1, part[0].numel()))
            if not all(block.isfinite().all() for block in part.split(rows)):
                file, name = self.tensors[piece.source.name]
                self.problems.append(f"{file.name}: {name} holds NaN or infinite values")


def save(params: Params, directory: str | Path) -> None:
    """Writes safetensors files and config.json that `load` and transformers read.

    Names are multimodal if there is a vision tower, else text-only. All files take the place of
    an earlier checkpoint's as one switch (`aside`), whenever the process dies; other files in the
    directory stay.

    Args:
        params: unsplit parameters on any device.
        directory: made if it is not there.

    Raises:
        ValueError: the parameters are one rank's share.
    """
    if params.runtime.mesh is not None and params.runtime.mesh.tp > 1:
        raise ValueError(f"these parameters are one rank's share of {params.runtime.mesh}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with aside.switched(directory, "config.json", (_SINGLE, _INDEX, _SHARD_PATTERN)) as new:
        shards = []
        for number, tensors in enumerate(_shards(params)):
            save_file(tensors, new / str(number), metadata={"format": "pt"})
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
            (new / _INDEX).write_bytes(to_text({"metadata": {}, "weight_map": weight_map}))
        (new / "config.json").write_bytes(to_text(_config_dict(params)))


def _shards(params: Params) -> Iterator[dict[str, torch.Tensor]]:
    """The checkpoint's tensors by file name, in groups of at most about `_SHARD_BYTES`."""
    multimodal = params.config.vision is not None
    tensors: dict[str, torch.Tensor] = {}
    size = 0
    declared = declare(params.config, params.runtime)
    leaves = pytree.tree_leaves(params, is_leaf=is_special)
    for parameter, leaf in zip(declarations(declared), leaves, strict=True):
        for source, tensor in dematerialize(parameter, dense(device_put(leaf, "cpu"))):
            if size and size + tensor.nbytes > _SHARD_BYTES:
                yield tensors
                tensors, size = {}, 0
            name = source.name
            of_text = name.startswith(_TEXT_PREFIX) and not name.startswith(VISION_PREFIX)
            if multimodal and of_text:
                name = _MULTIMODAL_PREFIX + name.removeprefix(_TEXT_PREFIX)
            tensors[name] = tensor
            size += tensor.nbytes
    yield tensors


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [_SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _config_dict(params: Params) -> dict[str, Any]:
    return params.config.to_dict() | {"dtype": str(params.dtype).removeprefix("torch.")}
