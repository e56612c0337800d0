"""The content of a `config.json` as the fields of `Config` and `VisionConfig`, and back.

It knows what the files say, in the forms that are published and that transformers 5 writes, and
neither files nor classes: `Config` gives it the names of its fields and checks what comes back.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from ..checks.values import integer, shown

LINEAR = "linear_attention"
FULL = "full_attention"
MOST_LAYERS = 2**16
LONGEST = 32768  # max_position_embeddings where a file has none

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
    | {"rope_parameters", "rope_scaling", "original_max_position_embeddings"}
)
_TEXT, _VISION = "text_config.", "vision_config."  # sections, as `extra` names their keys
# Stand beside the sections; the published ids.
TOP_LEVEL = {
    **{"image_token_id": 248056, "video_token_id": 248057},
    **{"vision_start_token_id": 248053, "vision_end_token_id": 248054},
}
_ROPE = ("rope_theta", "partial_rotary_factor", "mrope_section")
_UNSCALED = ("default", "mrope")  # rope types; the second is an older name of sections
_YARN = (
    *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim", "truncate"),
)

Extra = tuple[tuple[str, str], ...]


class Fields(NamedTuple):
    """What `resolve` finds: fields by name, the vision tower's and YaRN's or None, unknown keys."""

    text: dict[str, Any]
    vision: dict[str, Any] | None
    yarn: dict[str, Any] | None
    extra: Extra


def resolve(content: Any, names: Collection[str], vision_names: Collection[str]) -> Fields:
    """Resolves the content of a `config.json`, multimodal or text-only.

    Args:
        content: the JSON object.
        names: the fields that a text model has.
        vision_names: the fields that a vision tower has.

    Raises:
        ValueError: another architecture, or something missing or of the wrong kind.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a configuration is a JSON object, not {type(content).__name__}")
    _check_outside(content)
    model_type = content.get("model_type")
    if "text_config" in content or model_type == _MULTIMODAL_MODEL_TYPE:
        return _resolve_multimodal(content, names, vision_names)
    if model_type not in (_TEXT_MODEL_TYPE, None):
        raise ValueError(_wrong_architecture(model_type))
    fields, extra = _text_fields(content, names, "")
    return Fields(fields, None, _yarn_fields(content, ""), extra)


def _resolve_multimodal(
    content: dict[str, Any], names: Collection[str], vision_names: Collection[str]
) -> Fields:
    if content.get("model_type") not in (_MULTIMODAL_MODEL_TYPE, None):
        raise ValueError(_wrong_architecture(content["model_type"]))
    text = content.get("text_config")
    if not isinstance(text, dict):
        raise ValueError("model_type 'qwen3_5' needs a text_config object")
    if text.get("model_type") not in (_TEXT_MODEL_TYPE, None):
        raise ValueError(_TEXT[:-1] + ": " + _wrong_architecture(text["model_type"]))
    fields, extra = _text_fields(text, names, _TEXT)
    if _rope_type(content, "") not in _UNSCALED:
        raise ValueError(
            f"rope_parameters of type {shown(_rope_type(content, ''))} stand beside text_config, "
            "where no model reads them: they belong in it"
        )
    top = {key: value for key, value in content.items() if value is not None}
    for key in set(names) & top.keys():
        # transformers' multimodal model reads whether the head is tied from the top level.
        if key == "tie_word_embeddings" or fields.get(key) is None:
            fields[key] = _freeze(top[key])
    vision, extra = content.get("vision_config"), extra + _unknown(content, names, "")
    if vision is None:
        extra = of_text_model(extra)
    else:
        vision, vision_extra = _vision_fields(vision, vision_names)
        extra += vision_extra
    return Fields(fields, vision, _yarn_fields(text, _TEXT), extra)


def _text_fields(
    content: dict[str, Any], names: Collection[str], prefix: str
) -> tuple[dict[str, Any], Extra]:
    """Resolves a text configuration; unknown keys come second."""
    missing = [name for name in _REQUIRED if content.get(name) is None]
    if missing:
        raise ValueError(f"missing {', '.join(prefix + name for name in missing)}")
    if content.get("attention_bias"):
        raise ValueError(f"{prefix}attention_bias is true; Qwen3.5's attention has no biases")
    fields = {name: _freeze(content[name]) for name in names if content.get(name) is not None}
    fields |= _rope_fields(content, prefix)
    if "layer_types" in fields:
        if not isinstance(fields["layer_types"], tuple):
            value = shown(fields["layer_types"])
            raise ValueError(f"{prefix}layer_types must be a list, not {value}")
    elif content.get("full_attention_interval") is not None:
        interval = integer(prefix + "full_attention_interval", content["full_attention_interval"])
        layers = content["num_hidden_layers"]
        layers = integer(prefix + "num_hidden_layers", layers, 1, MOST_LAYERS)
        fields["layer_types"] = layer_pattern(layers, interval)
    return fields, _unknown(content, names, prefix)


def _rope(content: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The object of `rope_parameters` (transformers 5) or `rope_scaling` (older)."""
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{prefix}rope_parameters must be an object, not {shown(rope)}")
    if FULL in rope or LINEAR in rope:
        raise ValueError(f"{prefix}rope_parameters differ by kind of layer: Qwen3.5's are one set")
    return rope


def _rope_type(content: dict[str, Any], prefix: str) -> Any:
    rope = _rope(content, prefix)
    return rope.get("rope_type", rope.get("type", "default"))


def _rope_fields(content: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Takes what the rope object says over top-level keys."""
    rope, kind = _rope(content, prefix), _rope_type(content, prefix)
    if kind not in (*_UNSCALED, "yarn"):
        raise ValueError(
            f"{prefix}rope_parameters.rope_type {shown(kind)} is not supported: known are "
            "'default' and 'yarn'"
        )
    if rope.get("mrope_interleaved") is False:
        raise ValueError(f"{prefix}rope_parameters.mrope_interleaved false is not supported")
    values = {name: rope.get(name, content.get(name)) for name in _ROPE}
    return {name: _freeze(value) for name, value in values.items() if value is not None}


def _yarn_fields(content: dict[str, Any], prefix: str) -> dict[str, Any] | None:
    """The fields of YaRN, with what transformers takes for those that are left out.

    Where the length before stretching is not given it is `max_position_embeddings`; a factor that
    is null is the quotient of the two.
    """
    if _rope_type(content, prefix) != "yarn":
        return None
    rope = _rope(content, prefix)
    fields = {name: rope[name] for name in _YARN if rope.get(name) is not None}
    # A scale of 0 means none, as null does.
    fields = {name: value for name, value in fields.items() if value != 0 or "mscale" not in name}
    name = "original_max_position_embeddings"
    longest = content.get("max_position_embeddings") or LONGEST
    original = fields[name] = content.get(name) or fields.get(name, longest)
    if "factor" not in fields:
        if original == longest:
            raise ValueError(f"{prefix}rope_parameters of type 'yarn' need a factor")
        fields["factor"] = integer(prefix + "max_position_embeddings", longest) / integer(
            f"{prefix}rope_parameters.{name}", original
        )
    return fields


def _vision_fields(content: Any, names: Collection[str]) -> tuple[dict[str, Any], Extra]:
    if not isinstance(content, dict):
        raise ValueError(f"vision_config must be an object, not {shown(content)}")
    fields = {name: content[name] for name in names if content.get(name) is not None}
    for name in ("patch_size", "temporal_patch_size"):
        value = fields.get(name)
        if isinstance(value, list) and value and all(side == value[0] for side in value):
            fields[name] = value[0]
    rope = content.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"vision_config.rope_parameters must be an object, not {shown(rope)}")
    kind = rope.get("rope_type", rope.get("type", "axial"))
    if kind not in ("axial", "default"):
        raise ValueError(f"vision_config.rope_parameters.rope_type {shown(kind)} is not supported")
    if rope.get("rope_theta") is not None:
        fields["rope_theta"] = rope["rope_theta"]
    return fields, _unknown(content, names, _VISION)


def _unknown(content: dict[str, Any], names: Collection[str], prefix: str) -> Extra:
    """The keys that nothing here reads, as (dotted name, JSON text)."""
    keys = sorted(content.keys() - set(names) - _BOOKKEEPING - _RESOLVED)
    return tuple((prefix + key, json.dumps(content[key], sort_keys=True)) for key in keys)


def to_content(fields: Fields) -> dict[str, Any]:
    """Writes fields as the content of a `config.json` that `resolve` and transformers 5 read."""
    apart = (*_ROPE, *TOP_LEVEL)
    text = {name: _thaw(value) for name, value in fields.text.items() if name not in apart}
    rope = {name: _thaw(fields.text[name]) for name in _ROPE}
    yarn = {name: value for name, value in (fields.yarn or {}).items() if value is not None}
    kind = "default" if fields.yarn is None else "yarn"
    text["rope_parameters"] = {"rope_type": kind, **rope, **yarn, "mrope_interleaved": True}
    text["model_type"] = _TEXT_MODEL_TYPE
    places = {name: fields.text[name] for name in TOP_LEVEL}
    if fields.vision is None:  # a text model's file has no such tokens, unless they are others
        text |= {name: id for name, id in places.items() if id != TOP_LEVEL[name]}
        return {"architectures": ["Qwen3_5ForCausalLM"], **text, **_sections(fields.extra)}
    vision = fields.vision | {"model_type": "qwen3_5_vision"}
    vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": vision.pop("rope_theta")}
    extra = _sections(fields.extra)
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": _MULTIMODAL_MODEL_TYPE,
        "tie_word_embeddings": fields.text["tie_word_embeddings"],
        **places,
        "text_config": text | extra.pop("text_config", {}),
        "vision_config": vision | extra.pop("vision_config", {}),
        **extra,
    }


def of_text_model(extra: Extra) -> Extra:
    """Names a multimodal configuration's unknown keys as its text model's alone would be named:
    where the model and its text both have a key, the text's counts.

    Raises:
        ValueError: a key of the text's begins as those of a section do.
    """
    kept = [(name, text) for name, text in extra if not name.startswith(_VISION)]
    kept.sort(key=lambda pair: pair[0].startswith(_TEXT))
    named = {name.removeprefix(_TEXT): text for name, text in kept}
    _check_outside(named)
    return tuple(sorted(named.items()))


def _check_outside(keys: Iterable[str]) -> None:
    """Checks that no key outside of the sections is named as theirs are in `Extra`."""
    dotted = [key for key in keys if key.startswith((_TEXT, _VISION))]
    if dotted:
        raise ValueError(f"{shown(dotted[0])} is no key: what belongs to a section stands in it")


def _sections(extra: Extra) -> dict[str, Any]:
    """The unknown keys in their sections again."""
    content: dict[str, Any] = {}
    for name, text in extra:
        section = next((part for part in (_TEXT, _VISION) if name.startswith(part)), "")
        target = content.setdefault(section[:-1], {}) if section else content
        target[name.removeprefix(section)] = json.loads(text)
    return content


def layer_pattern(layers: int, interval: int) -> tuple[str, ...]:
    """Makes every `interval`-th layer an attention layer and the others DeltaNet."""
    return tuple(FULL if (i + 1) % interval == 0 else LINEAR for i in range(layers))


def _wrong_architecture(model_type: Any) -> str:
    moe = " (mixture of experts is not supported)" if "moe" in str(model_type) else ""
    return (
        f"model_type {shown(model_type)} is not supported{moe}; "
        f"supported are {_MULTIMODAL_MODEL_TYPE!r} and {_TEXT_MODEL_TYPE!r}"
    )


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _thaw(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
