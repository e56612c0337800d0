"""The model's configuration: geometry and token ids, validated, and the sizes that follow.

A `config.json` comes in through two others: `checks.json_file` reads it, within bounds, and
`config_fields` finds these fields in it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import hub
from ..checks.errors import CheckpointError
from ..checks.json_file import read_object
from ..checks.stand_ins import other_kind
from ..checks.values import as_integer, integer, is_number, positive_number, shown
from . import config_fields
from .config_fields import FULL, LINEAR, LONGEST, MOST_LAYERS, TOP_LEVEL, layer_pattern
from .yarn import Yarn, stretched

_LARGEST = 2**31 - 1  # of sizes and ids: indices are int32 on a device

# Sizes and counts, by class: integers from 1.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "max_position_embeddings",
)
_VISION_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "in_channels",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "out_hidden_size",
    "num_position_embeddings",
)


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
        prefix = "vision_config."
        _set_integer(self, "depth", 1, MOST_LAYERS, prefix)
        for name in _VISION_SIZES:
            _set_integer(self, name, 1, _LARGEST, prefix)
        positive_number(prefix + "rope_theta", self.rope_theta)
        _check_scale(prefix + "initializer_range", self.initializer_range)
        if self.hidden_act != "gelu_pytorch_tanh":
            raise ValueError(
                f"{prefix}hidden_act must be 'gelu_pytorch_tanh', not {shown(self.hidden_act)}"
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
    `rope_theta`, `partial_rotary_factor`, `mrope_section` and, where they are of type "yarn",
    `yarn`; `layer_types` has one entry a layer.
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
    max_position_embeddings: int = LONGEST
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.25
    mrope_section: tuple[int, ...] = ()
    yarn: Yarn | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    image_token_id: int = TOP_LEVEL["image_token_id"]
    video_token_id: int = TOP_LEVEL["video_token_id"]
    vision_start_token_id: int = TOP_LEVEL["vision_start_token_id"]
    vision_end_token_id: int = TOP_LEVEL["vision_end_token_id"]
    vision: VisionConfig | None = None
    extra: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _set_integer(self, "num_hidden_layers", 1, MOST_LAYERS)
        for name in _SIZES:
            _set_integer(self, name, 1, _LARGEST)
        for name in TOP_LEVEL:
            _set_integer(self, name, 0, _LARGEST)
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                _set_integer(self, name, 0, _LARGEST)
        if isinstance(self.eos_token_id, tuple):
            tokens = tuple(
                integer("eos_token_id", token, 0, _LARGEST) for token in self.eos_token_id
            )
            object.__setattr__(self, "eos_token_id", tokens)
        elif self.eos_token_id is not None:
            _set_integer(self, "eos_token_id", 0, _LARGEST)
        if not isinstance(self.tie_word_embeddings, bool):
            value = shown(self.tie_word_embeddings)
            raise ValueError(f"tie_word_embeddings must be true or false, not {value}")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act is {shown(self.hidden_act)}; only 'silu' is known")
        positive_number("rms_norm_eps", self.rms_norm_eps)
        _check_scale("initializer_range", self.initializer_range)
        _check_divides(self, "num_key_value_heads", "num_attention_heads")
        _check_divides(self, "linear_num_key_heads", "linear_num_value_heads")
        self._check_layers()
        self._check_rope()
        if self.vision is not None and self.vision.out_hidden_size != self.hidden_size:
            raise ValueError(
                f"vision_config.out_hidden_size {self.vision.out_hidden_size} must equal the "
                f"text model's hidden_size {self.hidden_size}"
            )

    def _check_layers(self) -> None:
        if not self.layer_types:
            object.__setattr__(self, "layer_types", layer_pattern(self.num_hidden_layers, 4))
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for "
                f"num_hidden_layers {self.num_hidden_layers}"
            )
        unknown = [kind for kind in self.layer_types if kind not in (LINEAR, FULL)]
        if unknown:
            raise ValueError(
                f"layer_types has {shown(unknown[0])}; known are {LINEAR!r} and {FULL!r}"
            )

    def _check_rope(self) -> None:
        positive_number("rope_theta", self.rope_theta)
        if self.yarn is not None and self.rope_theta <= 1:
            raise ValueError(f"YaRN needs a rope_theta above 1, not {shown(self.rope_theta)}")
        factor = self.partial_rotary_factor
        if not is_number(factor) or not 0 < factor <= 1:
            raise ValueError(f"partial_rotary_factor must be in (0, 1], not {shown(factor)}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(
                f"head_dim {self.head_dim} x partial_rotary_factor {factor} gives "
                f"{self.rotary_dim} rotary dimensions; they must be even and at least 2"
            )
        if not self.mrope_section:
            default = _default_mrope_section(self.rotary_dim // 2)
            object.__setattr__(self, "mrope_section", default)
        section = self.mrope_section
        counts = tuple(map(as_integer, section)) if isinstance(section, tuple) else ()
        if len(counts) != 3 or any(
            count is None or not 0 <= count <= self.head_dim for count in counts
        ):
            raise ValueError(f"mrope_section must be three counts (t, h, w), not {shown(section)}")
        covered = 2 * sum(count for count in counts if count is not None)
        if covered != self.rotary_dim:
            raise ValueError(
                f"mrope_section {list(counts)} covers {covered} rotary dimensions, but "
                f"head_dim {self.head_dim} x partial_rotary_factor {factor} has {self.rotary_dim}"
            )
        object.__setattr__(self, "mrope_section", counts)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Config:
        """Reads `config.json` of the checkpoint directory `path`, or of a hub's model by its name.

        Raises:
            CheckpointError: no such directory or file, not JSON, or not a valid configuration.
        """
        directory = hub.directory_of(path, hub.CONFIG)
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; a checkpoint is a directory")
        file = directory / "config.json"
        if not file.is_file():
            other = other_kind(directory)
            if other is not None:
                raise CheckpointError(f"{directory}: {other}")
            raise CheckpointError(f"{file}: no such file; a checkpoint directory has a config.json")
        content = read_object(file, "a model's configuration")
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
        names = [name for name in _names(cls) if name not in ("vision", "yarn", "extra")]
        fields = config_fields.resolve(content, names, _names(VisionConfig))
        vision = None if fields.vision is None else VisionConfig(**fields.vision)
        yarn = None if fields.yarn is None else Yarn(**fields.yarn)
        return cls(**fields.text, vision=vision, yarn=yarn, extra=fields.extra)

    def to_dict(self) -> dict[str, Any]:
        """Writes the content of a `config.json` that `from_dict` and transformers 5 read back."""
        text = dataclasses.asdict(self)
        vision, yarn, extra = text.pop("vision"), text.pop("yarn"), text.pop("extra")
        return config_fields.to_content(config_fields.Fields(text, vision, yarn, extra))

    def text_only(self) -> Config:
        """The text model in a multimodal configuration, as a text-only `config.json` would say it;
        the configuration itself if it has no vision tower."""
        if self.vision is None:
            return self
        extra = config_fields.of_text_model(self.extra)
        return dataclasses.replace(self, vision=None, extra=extra)

    def extended(self, context: int) -> Config:
        """The configuration with positions for `context` tokens: where its own end before, YaRN
        stretches them by no more than that takes.

        Raises:
            ValueError: `context` is no positive integer, or beyond what positions can count.
        """
        context = integer("context", context, 1, _LARGEST)
        yarn = stretched(self.yarn, self.max_position_embeddings, context)
        return dataclasses.replace(self, yarn=yarn)

    @property
    def max_context(self) -> int:
        """Tokens that there are positions for: `max_position_embeddings`, or what YaRN reaches."""
        return max(self.max_position_embeddings, 0 if self.yarn is None else self.yarn.context)

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
        hidden, vocabulary = self.hidden_size, self.vocab_size * self.hidden_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        heads, convolved = self.linear_num_value_heads, self.conv_channels
        mixers = {
            # queries, their gates, keys, values; output; two norms of a head
            FULL: hidden * (3 * queries + 2 * keys) + 2 * self.head_dim,
            # convolved, z, output, a and b; the convolution; decay's two vectors; a head's norm
            LINEAR: hidden * (convolved + 2 * self.value_dim + 2 * heads)
            + convolved * self.linear_conv_kernel_dim
            + 2 * heads
            + self.linear_value_head_dim,
        }
        layers = sum(mixers[kind] for kind in self.layer_types)
        layers += self.num_hidden_layers * hidden * (3 * self.intermediate_size + 2)
        return layers + hidden + (1 if self.tie_word_embeddings else 2) * vocabulary


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _set_integer(config: Any, name: str, low: int, high: int, prefix: str = "") -> None:
    """Checks a field and leaves an int there, whatever kind of integer was given."""
    value = integer(prefix + name, getattr(config, name), low, high)
    object.__setattr__(config, name, value)


def _check_scale(name: str, value: Any) -> None:
    if not is_number(value) or value < 0:
        raise ValueError(f"{name} must be a number of at least 0, not {shown(value)}")


def _check_divides(config: Config, divisor: str, dividend: str) -> None:
    small, large = getattr(config, divisor), getattr(config, dividend)
    if large % small:
        raise ValueError(f"{dividend} {large} must be a multiple of {divisor} {small}")


def _default_mrope_section(pairs: int) -> tuple[int, int, int]:
    """What [11, 11, 10], transformers' default, comes to for `pairs` rotated pairs."""
    height = len(range(1, min(33, pairs), 3))
    width = len(range(2, min(30, pairs), 3))
    return pairs - height - width, height, width
