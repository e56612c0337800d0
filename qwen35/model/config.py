"""The model's configuration: what a checkpoint's `config.json` says, resolved and validated."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINEAR = "linear_attention"
FULL = "full_attention"

_TEXT_MODEL_TYPE = "qwen3_5_text"
_MULTIMODAL_MODEL_TYPE = "qwen3_5"
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
# Keys that every transformers configuration may carry and that change nothing here.
_BOOKKEEPING = frozenset(
    {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path"}
    | {"attention_dropout", "is_encoder_decoder", "output_attentions", "output_hidden_states"}
    | {"return_dict", "problem_type", "chunk_size_feed_forward", "id2label", "label2id"}
)
# Consumed by the resolution below instead of being fields of their own.
_RESOLVED = frozenset(
    {"model_type", "text_config", "vision_config", "attention_bias", "full_attention_interval"}
    | {"rope_parameters", "rope_scaling"}
)


class CheckpointError(ValueError):
    """A checkpoint's file is missing, damaged or does not fit; the text names file and tensor."""


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower; field names as in transformers' `Qwen3_5VisionConfig`."""

    depth: int = 27
    hidden_size: int = 1152
    hidden_act: str = "gelu_pytorch_tanh"
    intermediate_size: int = 4304
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 16
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    out_hidden_size: int = 3584
    num_position_embeddings: int = 2304
    rope_theta: float = 10000.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in _integer_fields(VisionConfig):
            _check_positive("vision_config." + name, getattr(self, name))
        if self.hidden_act != "gelu_pytorch_tanh":
            raise ValueError(
                f"vision_config.hidden_act must be 'gelu_pytorch_tanh', not {self.hidden_act!r}"
            )
        if self.hidden_size % self.num_heads or self.head_dim % 4:
            raise ValueError(
                f"vision_config.hidden_size {self.hidden_size} must be num_heads "
                f"{self.num_heads} times a multiple of 4 (two axes of rotated pairs)"
            )
        if math.isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            raise ValueError(
                "vision_config.num_position_embeddings must be a square number (the side of the "
                f"position grid), not {self.num_position_embeddings}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values of one flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_factor(self) -> int:
        """Patches that the merger joins into one token."""
        return self.spatial_merge_size**2


@dataclass(frozen=True)
class Config:
    """Qwen3.5's configuration, resolved: frozen, hashable, validated on construction.

    Field names are those of transformers' `Qwen3_5TextConfig`. `rope_parameters` is resolved into
    `rope_theta`, `partial_rotary_factor` and `mrope_section`; `layer_types` has one entry a layer.
    `extra` holds the keys of the file that this version does not know, as
    `(dotted name, JSON text)` pairs; nothing is dropped silently.

    Raises:
        ValueError: a field is missing, of the wrong kind or impossible; the text has the numbers.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 256
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    layer_types: tuple[str, ...] = ()
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.25
    mrope_section: tuple[int, int, int] = ()
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    image_token_id: int = 248056
    video_token_id: int = 248057
    vision_start_token_id: int = 248053
    vision_end_token_id: int = 248054
    vision: VisionConfig | None = None
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in _integer_fields(Config):
            _check_positive(name, getattr(self, name))
        if not self.layer_types:
            object.__setattr__(self, "layer_types", _interval(self.num_hidden_layers, 4))
        if not self.mrope_section:
            section = _default_mrope_section(self.rotary_dim // 2)
            object.__setattr__(self, "mrope_section", section)
        self._validate()

    def _validate(self) -> None:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for "
                f"num_hidden_layers {self.num_hidden_layers}"
            )
        unknown = sorted(set(map(str, self.layer_types)) - {LINEAR, FULL})
        if unknown:
            raise ValueError(f"layer_types has {unknown}; known are {LINEAR!r} and {FULL!r}")
        _check_divides(self, "num_key_value_heads", "num_attention_heads")
        _check_divides(self, "linear_num_key_heads", "linear_num_value_heads")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act is {self.hidden_act!r}; only 'silu' is known")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if not _is_number(value) or not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, not {value!r}")
        factor = self.partial_rotary_factor
        if not _is_number(factor) or not 0 < factor <= 1:
            raise ValueError(f"partial_rotary_factor must be in (0, 1], not {factor!r}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} x partial_rotary_factor {factor} gives "
                f"{self.rotary_dim} rotary dimensions; they must be even and at least 2"
            )
        section = self.mrope_section
        if len(section) != 3 or any(not _is_int(s) or s < 0 for s in section):
            raise ValueError(f"mrope_section must be three counts (t, h, w), not {section!r}")
        if 2 * sum(section) != self.rotary_dim:
            raise ValueError(
                f"mrope_section {list(section)} covers {2 * sum(section)} rotary dimensions, but "
                f"head_dim {self.head_dim} x partial_rotary_factor {factor} has {self.rotary_dim}"
            )
        for name in ("bos_token_id", "pad_token_id"):
            value = getattr(self, name)
            if value is not None and not _is_int(value):
                raise ValueError(f"{name} must be a token id or null, not {value!r}")
        if any(not _is_int(token) for token in self.eos_token_ids):
            raise ValueError(f"eos_token_id must hold token ids, not {self.eos_token_id!r}")
        if self.vision is not None and self.vision.out_hidden_size != self.hidden_size:
            raise ValueError(
                f"vision_config.out_hidden_size {self.vision.out_hidden_size} must equal the "
                f"text model's hidden_size {self.hidden_size}"
            )

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Config:
        """Reads `config.json` of the checkpoint directory `path`.

        Raises:
            CheckpointError: no such directory or file, not JSON, or not a valid configuration.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; a checkpoint is a directory")
        file = directory / "config.json"
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; a checkpoint directory has a config.json")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: not readable as JSON ({error})") from None
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}") from None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Config:
        """Resolves the content of a `config.json`, multimodal or text-only.

        Accepts the published form and what transformers 5 writes. Where the top level and
        `text_config` both say something, the top level decides `tie_word_embeddings` (as in
        transformers' multimodal model) and `text_config` everything else.

        Raises:
            ValueError: another architecture, or a field missing or impossible.
        """
        if not isinstance(content, dict):
            raise ValueError(f"a configuration is a JSON object, not {type(content).__name__}")
        model_type = content.get("model_type")
        if "text_config" in content or model_type == _MULTIMODAL_MODEL_TYPE:
            return cls._from_multimodal(content)
        if model_type not in (_TEXT_MODEL_TYPE, None):
            raise ValueError(_wrong_architecture(model_type))
        fields, extra = _text_fields(content, "")
        return cls(**fields, extra=extra)

    @classmethod
    def _from_multimodal(cls, content: dict[str, Any]) -> Config:
        if content.get("model_type") not in (_MULTIMODAL_MODEL_TYPE, None):
            raise ValueError(_wrong_architecture(content["model_type"]))
        text = content.get("text_config")
        if not isinstance(text, dict):
            raise ValueError("model_type 'qwen3_5' needs a text_config object")
        if text.get("model_type") not in (_TEXT_MODEL_TYPE, None):
            raise ValueError("text_config: " + _wrong_architecture(text["model_type"]))
        fields, extra = _text_fields(text, "text_config.")
        top = {key: value for key, value in content.items() if value is not None}
        known = {field.name for field in dataclasses.fields(cls)} - {"vision", "extra"}
        for key in known & top.keys():
            if key == "tie_word_embeddings":
                fields[key] = _as_bool(key, top[key])
            elif fields.get(key) is None:
                fields[key] = _freeze(top[key])
        vision = content.get("vision_config")
        if vision is not None:
            fields["vision"], vision_extra = _vision_config(vision)
            extra += vision_extra
        ignored = known | _BOOKKEEPING | _RESOLVED
        extra += tuple((key, _json(content[key])) for key in sorted(content.keys() - ignored))
        return cls(**fields, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that `from_dict` and transformers 5 read back."""
        text = {
            field.name: _thaw(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in ("vision", "extra", "rope_theta", "partial_rotary_factor")
            and field.name != "mrope_section"
            and not field.name.endswith(("image_token_id", "video_token_id"))
            and not field.name.startswith("vision_")
        }
        text["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
            "mrope_section": list(self.mrope_section),
            "mrope_interleaved": True,
        }
        text["model_type"] = _TEXT_MODEL_TYPE
        if self.vision is None:
            return {"architectures": ["Qwen3_5ForCausalLM"], **text} | _unflatten(self.extra)
        vision = dataclasses.asdict(self.vision) | {"model_type": "qwen3_5_vision"}
        vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": vision.pop("rope_theta")}
        content = {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "model_type": _MULTIMODAL_MODEL_TYPE,
            "tie_word_embeddings": self.tie_word_embeddings,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "text_config": text,
            "vision_config": vision,
        }
        for name, value in _unflatten(self.extra).items():
            if isinstance(value, dict) and isinstance(content.get(name), dict):
                content[name] |= value
            else:
                content[name] = value
        return content

    def text_only(self) -> Config:
        """The text model in a multimodal configuration, as a text-only `config.json` would say it;
        the configuration itself if it has no vision tower."""
        if self.vision is None:
            return self
        extra = tuple(
            (name.removeprefix("text_config."), text)
            for name, text in self.extra
            if not name.startswith("vision_config.")
        )
        return dataclasses.replace(self, vision=None, extra=extra)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens as a tuple, empty when the configuration names none."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def key_dim(self) -> int:
        """Width of all DeltaNet key heads."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        """Width of all DeltaNet value heads."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def conv_channels(self) -> int:
        """Channels of the DeltaNet convolution: queries, keys and values."""
        return 2 * self.key_dim + self.value_dim

    @property
    def rotary_dim(self) -> int:
        """Dimensions of an attention head that RoPE rotates."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def parameter_count(self) -> int:
        """Parameters of the text model, without a vision tower's; a tied head counts once."""
        # declarations.py declares the tensors from a Config, so it cannot be imported above.
        from .declarations import count_parameters

        return count_parameters(self.text_only())


def _text_fields(
    content: dict[str, Any], prefix: str
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """Resolves a text configuration into `Config` fields; unknown keys come second."""
    missing = [name for name in _REQUIRED if content.get(name) is None]
    if missing:
        raise ValueError(f"missing {', '.join(prefix + name for name in missing)}")
    if content.get("attention_bias"):
        raise ValueError(f"{prefix}attention_bias is true; Qwen3.5's attention has no biases")
    known = {field.name for field in dataclasses.fields(Config)} - {"vision", "extra"}
    fields = {
        name: _freeze(content[name]) for name in known if content.get(name) is not None
    } | _rope_fields(content, prefix)
    if "tie_word_embeddings" in fields:
        fields["tie_word_embeddings"] = _as_bool(
            prefix + "tie_word_embeddings", fields["tie_word_embeddings"]
        )
    if "layer_types" in fields:
        if not isinstance(fields["layer_types"], tuple):
            raise ValueError(f"{prefix}layer_types must be a list, not {fields['layer_types']!r}")
    elif content.get("full_attention_interval") is not None:
        interval = content["full_attention_interval"]
        _check_positive(prefix + "full_attention_interval", interval)
        _check_positive(prefix + "num_hidden_layers", content["num_hidden_layers"])
        fields["layer_types"] = _interval(content["num_hidden_layers"], interval)
    unknown = sorted(content.keys() - known - _BOOKKEEPING - _RESOLVED)
    return fields, tuple((prefix + name, _json(content[name])) for name in unknown)


def _rope_fields(content: dict[str, Any], prefix: str) -> dict[str, Any]:
    """`rope_parameters` (transformers 5) or `rope_scaling` (older) over top-level keys."""
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{prefix}rope_parameters must be an object, not {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"{prefix}rope_parameters.rope_type {kind!r} is not supported: 'default'")
    if rope.get("mrope_interleaved") is False:
        raise ValueError(f"{prefix}rope_parameters.mrope_interleaved false is not supported")
    fields = {}
    for name in ("rope_theta", "partial_rotary_factor", "mrope_section"):
        value = rope.get(name, content.get(name))
        if value is not None:
            fields[name] = _freeze(value)
    return fields


def _vision_config(content: Any) -> tuple[VisionConfig, tuple[tuple[str, str], ...]]:
    if not isinstance(content, dict):
        raise ValueError(f"vision_config must be an object, not {content!r}")
    known = {field.name for field in dataclasses.fields(VisionConfig)}
    fields = {name: content[name] for name in known if content.get(name) is not None}
    for name in ("patch_size", "temporal_patch_size"):
        value = fields.get(name)
        if isinstance(value, list) and len(set(value)) == 1:
            fields[name] = value[0]
    theta = (content.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        fields["rope_theta"] = theta
    unknown = sorted(content.keys() - known - _BOOKKEEPING - _RESOLVED)
    extra = tuple(("vision_config." + name, _json(content[name])) for name in unknown)
    return VisionConfig(**fields), extra


def _wrong_architecture(model_type: Any) -> str:
    moe = " (mixture of experts is not supported)" if "moe" in str(model_type) else ""
    return (
        f"model_type {model_type!r} is not supported{moe}; "
        f"supported are {_MULTIMODAL_MODEL_TYPE!r} and {_TEXT_MODEL_TYPE!r}"
    )


def _interval(layers: int, interval: int) -> tuple[str, ...]:
    return tuple(FULL if (i + 1) % interval == 0 else LINEAR for i in range(layers))


def _default_mrope_section(pairs: int) -> tuple[int, int, int]:
    """What [11, 11, 10], transformers' default, comes to for `pairs` rotated pairs."""
    height = len(range(1, min(33, pairs), 3))
    width = len(range(2, min(30, pairs), 3))
    return pairs - height - width, height, width


def _integer_fields(cls: type) -> list[str]:
    """Fields annotated as plain `int`, all of which must be positive."""
    names = [field.name for field in dataclasses.fields(cls) if field.type == "int"]
    return [name for name in names if not name.endswith("_token_id")]


def _check_positive(name: str, value: Any) -> None:
    if not _is_int(value) or value <= 0:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")


def _check_divides(config: Config, divisor: str, dividend: str) -> None:
    small, large = getattr(config, divisor), getattr(config, dividend)
    if large % small:
        raise ValueError(f"{dividend} {large} must be a multiple of {divisor} {small}")


def _as_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _thaw(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _unflatten(extra: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The unknown keys as nested objects again."""
    content: dict[str, Any] = {}
    for name, text in extra:
        section, _, key = name.rpartition(".")
        target = content.setdefault(section, {}) if section else content
        target[key] = json.loads(text)
    return content
