"""The safetensors files of a Hugging Face checkpoint: which there are, and what stands where."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from ..checks import hub
from ..checks.errors import CheckpointError, CheckpointNote
from ..checks.json_file import read_object
from ..checks.stand_ins import other_kind
from ..checks.values import shown
from ..model.config import Config
from ..model.declarations import VISION_PREFIX, Source, declarations
from ..model.params import Params, Runtime
from . import aside
from .faults import Faults
from .quantized import MEMBERS, QuantizedFile, open_weight, scheme_of
from .tensor_file import TensorFile, TensorSlice

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXT_PREFIX, MULTIMODAL_PREFIX = "model.", "model.language_model."

_DTYPES = ("F64", "F32", "F16", "BF16")
# Known to carry nothing that the model reads: the multi-token-prediction head, and a buffer that
# older exporters wrote.
_HEADS = ("", TEXT_PREFIX, MULTIMODAL_PREFIX)  # before the name of the multi-token-prediction head
_SKIPPED = (*(prefix + "mtp.*" for prefix in _HEADS), "*rotary_emb.inv_freq")
_TOWER = ("model.visual.*", "visual.*")


def model_config(directory: Path, vision: bool | None) -> Config:
    """Reads a checkpoint's configuration, that of its text model if the tower is left out.

    Args:
        directory: the checkpoint's.
        vision: whether the tower is wanted; None if there is one. Merges of adapters often save the
            text model's tensors beside the configuration of the whole: a `CheckpointNote` warns.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    config = Config.from_pretrained(directory)
    if vision is None and config.vision is not None:
        vision = CheckpointFiles(directory, tower=True, sparse=True).has_tower
        if not vision:
            warnings.warn(
                f"{directory}: config.json describes a vision tower, of which the files hold "
                "nothing: it is loaded as a text model",
                CheckpointNote,
                stacklevel=4,
            )
    return config.text_only() if vision is False else config


def opened(
    directory: Path, vision: bool | None, runtime: Runtime
) -> tuple[Config, CheckpointFiles]:
    """Opens a checkpoint's files, all of one writer, and reads its configuration (`model_config`).

    Where a rank of `runtime` reads its share, small parts are read.
    """
    sparse = runtime.mesh is not None and runtime.mesh.tp > 1
    for reading in aside.steady(directory, "config.json"):
        with reading:
            config = model_config(directory, vision)
            files = CheckpointFiles(directory, tower=config.vision is not None, sparse=sparse)
    return config, files


def config_of_files(path: str | Path) -> Config:
    """Reads a checkpoint's configuration as `model_config` does where there are weights to look at,
    whole ones; and else as it is, since sizes need no weights.

    Raises:
        CheckpointError: the configuration is missing or damaged.
    """
    config = Config.from_pretrained(path)
    directory = hub.directory_of(path, hub.CONFIG)
    if config.vision is not None and any((directory / name).is_file() for name in (SINGLE, INDEX)):
        with contextlib.suppress(CheckpointError):
            return model_config(directory, None)
    return config


def names_in_files(source: Source) -> tuple[str, ...]:
    """Lists what a source is called in the multimodal form of a checkpoint and in the text-only
    one, or once what has one name in both."""
    name = source.name
    if not name.startswith(TEXT_PREFIX) or name.startswith(VISION_PREFIX):
        return (name,)
    return MULTIMODAL_PREFIX + name.removeprefix(TEXT_PREFIX), name


class CheckpointFiles:
    """The tensors of a checkpoint directory, by their text-only names.

    Args:
        directory: has model.safetensors, or shards and their index.
        tower: whether a vision tower is loaded; its tensors are no part of the model otherwise.
        sparse: small parts of the tensors will be read.

    Raises:
        CheckpointError: files are missing or damaged, or quantised in a way that is not read.
    """

    def __init__(self, directory: Path, *, tower: bool, sparse: bool) -> None:
        self.directory = directory
        try:
            self.scheme = scheme_of(read_object(directory / "config.json", "a configuration"))
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{directory}: {error}") from None
        self.patterns = _SKIPPED if tower else _SKIPPED + _TOWER
        self.sparse = sparse
        self.twice: list[str] = []
        self.tensors: dict[str, tuple[Path, str]] = {}
        self.skipped: list[str] = []
        self.handles: dict[Path, TensorFile] = {}
        files, place = self._shards()
        for file in files:
            self._open(file, place)

    def _shards(self) -> tuple[list[Path], dict[str, str]]:
        """model.safetensors, or else the files that an index names, as transformers looks; and the
        index's file name of each tensor."""
        single = self.directory / SINGLE
        index = self.directory / INDEX
        if single.is_file():
            return [single], {}
        if not index.is_file():
            other = other_kind(self.directory)
            shards = sorted(path.name for path in self.directory.glob("model-*-of-*.safetensors"))
            if shards:
                other = f"shards ({shards[0]}) without their index, {INDEX}"
            raise CheckpointError(f"{self.directory}: {other or f'neither {SINGLE} nor {INDEX}'}")
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
        return files, weight_map

    def _open(self, file: Path, place: dict[str, str]) -> None:
        handle = self.handles[file] = TensorFile(file, self.sparse)
        for name in handle.keys():
            if place.get(name, file.name) != file.name:
                continue  # a copy that the index passes over
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns):
                self.skipped.append(name)
                continue
            ours = name
            if name.startswith(MULTIMODAL_PREFIX):
                ours = TEXT_PREFIX + name.removeprefix(MULTIMODAL_PREFIX)
            elif name.startswith("visual."):
                ours = TEXT_PREFIX + name
            if ours in self.tensors:
                other = self.tensors[ours][0].name
                self.twice.append(f"{file.name}: {name} stands in {other} too")
            else:
                self.tensors[ours] = (file, name)

    def stamp(self) -> str:
        """Digests the files' stamps (`TensorFile.stamp`)."""
        stamps = [self.handles[file].stamp() for file in sorted(self.handles)]
        return hashlib.sha256(" ".join(stamps).encode()).hexdigest()

    def untie(self) -> None:
        """Let the head read the embedding's tensor where the files have none for it."""
        embedding = self.tensors.get("model.embed_tokens.weight")
        if embedding is not None:
            self.tensors.setdefault("lm_head.weight", embedding)

    def read(self, source: Source) -> TensorSlice | QuantizedFile:
        """The tensor of a source, still unread: slicing it reads. Quantised ones give values.

        Raises:
            ValueError: it is quantised in a way that is not read, or does not fit the source.
        """
        members = self._members(source.name)
        if not members or self.scheme is None:
            return self._slice(source.name)
        stem = source.name.removesuffix("weight")
        there = [source.name] if source.name in self.tensors else []
        parts = {name.removeprefix(stem): self._slice(name) for name in (*there, *members)}
        try:
            return open_weight((source.shape[0], source.shape[1]), parts, self.scheme)
        except ValueError as error:
            raise ValueError(f"{stem}{error}") from None

    def _slice(self, name: str) -> TensorSlice:
        file, file_name = self.tensors[name]
        return self.handles[file].get_slice(file_name)

    def _members(self, name: str) -> list[str]:
        """The names of what a quantised weight is made of, its own name aside."""
        if not name.endswith(".weight"):
            return []
        stem = name.removesuffix("weight")
        return [stem + member for member in MEMBERS if stem + member in self.tensors]

    @property
    def dtype(self) -> torch.dtype:
        """The checkpoint's own: bfloat16 where its embedding is, else float32."""
        names = ("model.embed_tokens.weight", "model.norm.weight")  # the first may be quantised
        own = next(self._slice(name).get_dtype() for name in names if name in self.tensors)
        return torch.bfloat16 if own == "BF16" else torch.float32

    def place(self, source: Source) -> str:
        """The tensor of a source as messages call it: its file and its name there."""
        name = next(n for n in (source.name, *self._members(source.name)) if n in self.tensors)
        file, file_name = self.tensors[name]
        return f"{file.name}: {file_name}"

    def check(self, declared: Params) -> None:
        """Raises one CheckpointError with every fault that names, shapes and dtypes show, the cause
        of most of them first."""
        expected = {
            piece.source.name: piece.source
            for parameter in declarations(declared)
            for piece in parameter.pieces
        }
        faults = Faults(others=list(self.twice))
        tower = {name for name in expected if name.startswith(VISION_PREFIX)}
        if tower and not self.has_tower:
            faults.others.append(
                f"none of the {len(tower)} tensors of the vision tower ({VISION_PREFIX}*) that the "
                "config describes is there: it is a text model, which can't be shown a picture"
            )
            expected = {name: expected[name] for name in expected.keys() - tower}
        known = set(expected)
        for name, source in expected.items():
            members = self._members(name)
            if members and self.scheme is not None:
                known.update(members)
                try:
                    self.read(source)
                except ValueError as error:
                    faults.others.append(str(error))
            elif name not in self.tensors:
                faults.missing.append(name)
            else:
                self._check_tensor(source, faults)
        for name in sorted(self.tensors.keys() - known):
            file, file_name = self.tensors[name]
            if name == "lm_head.weight" and declared.config.tie_word_embeddings:
                self._check_tied(file, file_name, faults)
            else:
                faults.unknown.append(file_name)
                faults.where[file_name] = f"{file.name}: {file_name} is not part of this model"
        found = {name.split(".")[2] for name in self.tensors if name.startswith("model.layers.")}
        faults.layers = len(found) or declared.config.num_hidden_layers, len(declared.layers)
        text = faults.text(len(self.tensors))
        if text is not None:
            raise CheckpointError(f"{self.directory}: {text}")

    @property
    def has_tower(self) -> bool:
        """Whether the files hold any of a vision tower's tensors that are not left out."""
        return any(name.startswith(VISION_PREFIX) for name in self.tensors)

    def _check_tensor(self, source: Source, faults: Faults) -> None:
        """Holds the tensor of a source to its shape and to the dtypes that are read."""
        file, file_name = self.tensors[source.name]
        entry = self._slice(source.name)
        shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
        if shape != source.shape:
            faults.shapes[file_name] = shape, source.shape
            faults.where[file_name] = (
                f"{file.name}: {file_name} has shape {list(shape)}, "
                f"the config needs {list(source.shape)}"
            )
        if dtype not in _DTYPES:
            faults.others.append(
                f"{file.name}: {file_name} has dtype {dtype}, not one of {', '.join(_DTYPES)}"
            )

    def _check_tied(self, file: Path, file_name: str, faults: Faults) -> None:
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
            faults.others.append(
                f"{file.name}: {file_name} differs from {embedding_name}, but the config says "
                "tie_word_embeddings"
            )


class Readable(Protocol):
    """A tensor that is read in parts: `TensorSlice`, `QuantizedFile`, `adapter.Merged`."""

    @property
    def by_inputs(self) -> bool:
        """As `QuantizedFile.by_inputs`."""

    @property
    def bytes_per_value(self) -> float:
        """How much of the file a value takes."""

    def __getitem__(self, index: slice | tuple[slice, slice]) -> torch.Tensor:
        """Read some of its rows, and of their columns."""


class Watched:
    """A tensor that is read in parts, as the one in it is.

    `look` sees each part that is read, and how many of the tensor's values it has; scales count as
    none.
    """

    def __init__(self, tensor: Readable, look: Callable[[torch.Tensor, int], None]) -> None:
        self._tensor, self._look = tensor, look
        self.quantized = isinstance(tensor, QuantizedFile)
        self.by_inputs = tensor.by_inputs

    def __getitem__(self, index: slice | tuple[slice, slice]) -> torch.Tensor:
        part = self._tensor[index]
        self._look(part, part.numel())
        return part

    @property
    def _file(self) -> QuantizedFile:
        assert isinstance(self._tensor, QuantizedFile)
        return self._tensor

    @property
    def shape(self) -> tuple[int, int]:
        """As `QuantizedFile.shape`."""
        return self._file.shape

    @property
    def group(self) -> int:
        """As `QuantizedFile.group`."""
        return self._file.group

    def codes(self, rows: range, columns: range) -> torch.Tensor:
        """As `QuantizedFile.codes`."""
        part = self._file.codes(rows, columns)
        self._look(part, part.numel())
        return part

    @property
    def pairs(self) -> Callable[[range, range], torch.Tensor] | None:
        """As `QuantizedFile.pairs`."""
        read = self._file.pairs
        if read is None:
            return None

        def look_at(rows: range, columns: range) -> torch.Tensor:
            part = read(rows, columns)
            self._look(part, 2 * part.numel())
            return part

        return look_at

    @functools.cached_property
    def scales(self) -> torch.Tensor:
        """As `QuantizedFile.scales`."""
        self._look(self._file.scales, 0)
        return self._file.scales

    @property
    def zeros(self) -> torch.Tensor | None:
        """As `QuantizedFile.zeros`."""
        return self._file.zeros
