"""LoRA adapters in the form of PEFT, merged into a checkpoint's tensors as those are read.

A weight W [out, in] becomes W + s·B·A, with A [r, in], B [out, r] and s = alpha / r, or alpha / √r
of a rank-stabilised adapter (Hu et al. 2021, Kalajdzievski 2023). With a magnitude m [out] it
becomes the rows of that, each brought to its length in m (DoRA, Liu et al. 2024). Whole tensors
that were trained beside it (`modules_to_save`, `bias`) take the place of the checkpoint's.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..checks import hub
from ..checks.errors import CheckpointError
from ..checks.json_file import read_object
from ..checks.values import all_finite, as_integer, is_number, shown
from ..model.config import Config
from ..model.declarations import VISION_PREFIX, Parameter, Piece, Source, declarations
from ..model.params import Params
from .checkpoint_files import MULTIMODAL_PREFIX, TEXT_PREFIX, Readable
from .tensor_file import TensorFile, TensorSlice

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

_MOST = 8  # faults that a message lists
_ROWS = 2**10  # of a weight whose rows' lengths are taken
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(\.default)?(\.weight)?"
)
# What an adapter_config.json says that decides nothing here, or is read below. All else that is set
# is refused by its name: it would change what the tensors mean.
_KNOWN = frozenset(
    {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
    | {"bias", "modules_to_save", "target_modules", "exclude_modules", "layers_to_transform"}
    | {"layers_pattern", "init_lora_weights", "eva_config", "lora_dropout", "inference_mode"}
    | {"task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"}
    | {"megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"}
    | {"loftq_config", "corda_config", "lora_ga_config"}  # init_lora_weights says if they count
)
# Ways to draw A and B that leave the weights under them alone.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True, eq=False)
class Change:
    """What an adapter makes of one tensor of the checkpoint.

    Attributes:
        whole: what takes the checkpoint's place, or None.
        down: A [r, in], float32, or None where nothing is added.
        up: B [out, r] times the scale.
        magnitude: the length [out] of each row of the sum, or None.
    """

    whole: TensorSlice | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    magnitude: Tensor | None = None


class Adapter:
    """A directory with an adapter: what it changes, by the text-only names of a checkpoint.

    Args:
        directory: has adapter_config.json and adapter_model.safetensors; or a hub's name.
        check_finite: refuse NaN and infinity among what is added.

    Raises:
        CheckpointError: a file is missing or damaged, or the adapter is of a kind that is not read;
            the text names it.
    """

    def __init__(self, directory: str | Path, *, check_finite: bool = True) -> None:
        self.directory = hub.directory_of(directory)
        if not self.directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; an adapter is a directory")
        self._settings = read_object(self.directory / CONFIG, "an adapter's configuration")
        self._check_settings()
        if not (self.directory / TENSORS).is_file():
            old = (self.directory / "adapter_model.bin").is_file()
            hint = ": adapter_model.bin is a pickle, which PEFT writes as safetensors when it saves"
            raise CheckpointError(f"{self.directory}: no {TENSORS}{hint if old else ''}")
        self._file = TensorFile(self.directory / TENSORS)
        self.changes = self._read()
        if check_finite:
            for name, change in self.changes.items():
                for tensor in (change.down, change.up, change.magnitude):
                    if tensor is not None and not all_finite(tensor):
                        self._refuse(f"what is added to {name} holds NaN or infinite values")

    def config(self, config: Config) -> Config:
        """The configuration of the merged model: a head that it no longer shares is its own."""
        embedding, head = self.changes.get(_EMBEDDING), self.changes.get(_HEAD)
        if not config.tie_word_embeddings or _equal(embedding, head):
            return config
        return dataclasses.replace(config, tie_word_embeddings=False)

    def digest(self) -> str:
        """The SHA-256 of both files, one after the other, in hexadecimal."""
        files = (self.directory / name for name in (CONFIG, TENSORS))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    def check(self, declared: Params, stays_quantized: Callable[[Parameter, Piece], bool]) -> None:
        """Check that every tensor fits a model.

        Args:
            declared: the merged model's.
            stays_quantized: whether a part of a parameter is kept in codes, to which nothing can be
                added.

        Raises:
            CheckpointError: some do not, as the text says.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        coded = []
        for parameter in declarations(declared):
            for piece in parameter.pieces:
                name = piece.source.name
                shapes[name] = piece.source.shape
                if name in self.changes and self.changes[name].down is not None:
                    coded += [name] if stays_quantized(parameter, piece) else []
        if coded:
            self._refuse(
                f"{coded[0]} and {len(set(coded)) - 1} more are quantised in the checkpoint, and "
                "what stays in codes takes no adapter: weights='dense' (--weights dense) merges "
                "into their values, 'int8', 'fp8' or 'int4' quantises again afterwards"
            )
        if declared.config.tie_word_embeddings:
            shapes[_HEAD] = shapes[_EMBEDDING]
        problems = []
        for name, change in self.changes.items():
            if declared.config.vision is None and name.startswith(VISION_PREFIX):
                continue  # the checkpoint's tower is left out as well
            if name not in shapes:
                problems.append(f"{name} is not part of this model")
                continue
            shape = shapes[name]
            inner = math.prod(shape[1:])
            fits = [
                change.whole is None or change.whole.get_shape() == shape,
                change.down is None or change.down.shape[1] == inner,
                change.up is None or change.up.shape[0] == shape[0],
                change.magnitude is None
                or (len(shape) == 2 and change.magnitude.shape == shape[:1]),
            ]
            if not all(fits):
                problems.append(f"{name} is {_shapes(change)}, the model's is {list(shape)}")
        if problems:
            more = [f"and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
            self._refuse("; ".join(problems[:_MOST] + more))

    def merged(self, source: Source, tensor: Readable) -> Readable:
        """A tensor of the checkpoint as the adapter makes it, still unread."""
        change = self.changes.get(source.name)
        if change is None:
            return tensor
        whole = tensor if change.whole is None else change.whole
        if change.down is None or change.up is None:
            return whole
        return Merged(whole, change.down, change.up, change.magnitude)

    def _check_settings(self) -> None:
        settings = self._settings
        kind = settings.get("peft_type")
        if kind != "LORA":
            self._refuse(f"peft_type {shown(kind)} is not supported: 'LORA'")
        start = settings.get("init_lora_weights", True)
        if start not in _PLAIN_STARTS:
            self._refuse(
                f"init_lora_weights {shown(start)} changes the weights under the adapter; PEFT "
                "makes a plain one of it with save_pretrained's path_initial_model_for_weight_"
                "conversion"
            )
        for name in sorted(settings.keys() - _KNOWN):
            if settings[name]:
                self._refuse(f"{name} {shown(settings[name])} is not supported")
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(settings.get(name) or {}, Mapping):
                self._refuse(f"{name} must be an object, not {shown(settings[name])}")

    def _read(self) -> dict[str, Change]:
        """All changes; what belongs to one tensor stands under several names."""
        parts: dict[str, dict[str, Tensor]] = {}
        modules: dict[str, str] = {}
        changes: dict[str, Change] = {}
        for name in self._file.keys():
            dtype = self._file.get_slice(name).get_dtype()
            if dtype not in ("F64", "F32", "F16", "BF16"):
                self._refuse(f"{shown(name)} has dtype {dtype}, which is no floating one")
            found = _PART.fullmatch(name)
            if found is None:
                if ".lora_" in name:
                    self._refuse(f"{shown(name)} is of a kind that is not supported")
                whole = _text_name(name.replace(".base_layer.", "."))
                changes[whole] = Change(whole=self._file.get_slice(name))
                continue
            module = found["module"]
            target = _text_name(module) + ".weight"
            modules[target] = module.removeprefix("base_model.model.")
            tensor = self._file.get_slice(name).read().float()
            held = parts.setdefault(target, {})
            if found["part"] in held:
                self._refuse(f"{shown(name)} stands there under another name too")
            held[found["part"]] = tensor
        for target, held in parts.items():
            whole = changes.get(target, Change()).whole
            changes[target] = self._low_rank(modules[target], held, whole)
        if not changes:
            self._refuse(f"{TENSORS} has no tensor")
        return changes

    def _low_rank(self, module: str, held: dict[str, Tensor], whole: TensorSlice | None) -> Change:
        """The change that a module's tensors make up."""
        shapes = {part: list(tensor.shape) for part, tensor in held.items()}
        if any(len(shape) < (1 if "vector" in part else 2) for part, shape in shapes.items()):
            self._refuse(f"{module} has {shapes}, which are no matrices")
        if "lora_embedding_A" in held and "lora_embedding_B" in held:
            if "lora_magnitude_vector" in held:
                self._refuse(f"use_dora for the embedding {module} is not supported")
            down, up = held["lora_embedding_B"].T, held["lora_embedding_A"].T
        elif "lora_A" in held and "lora_B" in held:
            up = held["lora_B"]
            if up.dim() < 2 or math.prod(up.shape[2:]) != 1:
                self._refuse(f"{module}.lora_B has shape {list(up.shape)}, no matrix")
            down, up = held["lora_A"].flatten(1), up.flatten(1)
        else:
            self._refuse(f"{module} has {', '.join(sorted(held))} and no more")
        rank = self._pattern("rank_pattern", module, self._settings.get("r"))
        if not 0 < down.shape[0] == up.shape[1] == as_integer(rank):
            self._refuse(
                f"{module} has ranks {down.shape[0]} and {up.shape[1]}, {CONFIG} says "
                f"{shown(rank)} (grouped convolutions, whose ranks differ, can't be merged)"
            )
        alpha = self._pattern("alpha_pattern", module, self._settings.get("lora_alpha"))
        if not is_number(alpha):
            self._refuse(f"lora_alpha must be a number, not {shown(alpha)}")
        scale = alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)
        magnitude = held.get("lora_magnitude_vector")
        if bool(self._settings.get("use_dora")) != (magnitude is not None):
            self._refuse(
                f"use_dora does not fit the tensors of {module}: {', '.join(sorted(held))}"
            )
        return Change(whole, down, up * scale, magnitude)

    def _pattern(self, name: str, module: str, otherwise: Any) -> Any:
        """What a pattern says of a module, as PEFT looks: the first that its name ends in."""
        for pattern, value in (self._settings.get(name) or {}).items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error:
                self._refuse(f"{name} has {shown(pattern)}, no regular expression")
        return otherwise

    def _refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(f"{self.directory}: {reason}")


class Merged:
    """A tensor of a checkpoint with an adapter's change; indexing it reads and adds, in float32.

    Args:
        tensor: the checkpoint's, unread.
        down, up, magnitude: those of a `Change`.
    """

    def __init__(
        self,
        tensor: Readable,
        down: Tensor,
        up: Tensor,
        magnitude: Tensor | None,
    ) -> None:
        self._tensor, self._down, self._up, self._magnitude = tensor, down, up, magnitude
        self.by_inputs = tensor.by_inputs
        self.bytes_per_value = tensor.bytes_per_value

    def __getitem__(self, index: slice | tuple[slice, slice]) -> Tensor:
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        merged = self._sum(rows, columns)
        if self._magnitude is not None:
            merged *= (self._magnitude / self._lengths)[rows, None]
        return merged

    def _sum(self, rows: slice, columns: slice) -> Tensor:
        whole = columns == slice(None)
        base = self._tensor[rows] if whole else self._tensor[rows, columns]
        added = self._up[rows] @ self._down[:, columns]
        return base.float() + added.view_as(base)

    @functools.cached_property
    def _lengths(self) -> Tensor:
        """Of each row of the sum, of which a rank may hold a part."""
        starts = range(0, len(self._up), _ROWS)
        every = slice(None)
        return torch.cat([self._sum(slice(s, s + _ROWS), every).norm(dim=1) for s in starts])


def _text_name(name: str) -> str:
    """The text-only name of a tensor or module of PEFT's: with or without the classes around."""
    name = name.removeprefix("base_model.model.")
    if not name.startswith((TEXT_PREFIX, "lm_head")):
        name = TEXT_PREFIX + name  # trained on a model without a head
    if name.startswith(MULTIMODAL_PREFIX):
        name = TEXT_PREFIX + name.removeprefix(MULTIMODAL_PREFIX)
    return name


def _equal(one: Change | None, other: Change | None) -> bool:
    """Whether two changes make the same of one tensor."""
    if one is None or other is None:
        return one is other
    if (one.whole is None) != (other.whole is None) or (one.down is None) != (other.down is None):
        return False
    if one.whole is not None and other.whole is not None:
        if not torch.equal(one.whole.read(), other.whole.read()):
            return False
    if one.down is None or one.up is None or other.down is None or other.up is None:
        return True
    pairs = ((one.down, other.down), (one.up, other.up))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def _shapes(change: Change) -> str:
    """Names the shapes of a change, for an error."""
    if change.whole is not None:
        return f"{list(change.whole.get_shape())} in {TENSORS}"
    assert change.down is not None and change.up is not None
    rows = "" if change.magnitude is None else f" and {list(change.magnitude.shape)} lengths"
    return f"{list(change.up.shape)} times {list(change.down.shape)}{rows}"
