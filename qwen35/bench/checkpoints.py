"""Random weights of a preset as a checkpoint that both this project and transformers load."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ..files.checkpoint import save
from ..files.materialize import init_params
from ..model.presets import find_preset, presets

# The names that the published vocabulary has; here they close one of 256 bytes.
_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
# As published, but for the names of the classes, which only transformers reads.
_IMAGES = {
    "size": {"longest_edge": 2**24, "shortest_edge": 2**16},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessor",
}
_VIDEOS = _IMAGES | {"video_processor_type": "Qwen3VLVideoProcessor"}
del _VIDEOS["image_processor_type"]


def random_checkpoint(preset: str, directory: Path, *, vision: bool) -> None:
    """Writes one in float32, seeded, with a tokenizer of bytes and a chat template; with the vision
    tower, if asked for, and the processors' files.

    Raises:
        ValueError: no such preset.
    """
    if find_preset(preset) is None:
        raise ValueError(f"no preset {preset!r}; presets: {', '.join(presets)}")
    config = presets[preset]
    ids = write_tokenizer(directory, vision=vision)
    config = dataclasses.replace(config, **ids) if vision else config.text_only()
    save(init_params(config), directory)


def write_tokenizer(directory: Path, *, vision: bool) -> dict[str, int]:
    """Writes the files of a tokenizer of bytes with a chat template, and those of the processors of
    pictures if asked for; returns the placeholders' ids by their names in `Config`."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen3_5Tokenizer

    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen3_5Tokenizer(vocab=vocabulary, merges=[], chat_template=_TEMPLATE)
    tokenizer.add_special_tokens({"extra_special_tokens": list(_SPECIAL)})
    tokenizer.save_pretrained(directory)
    if vision:
        for name, content in (("", _IMAGES), ("video_", _VIDEOS)):
            (directory / f"{name}preprocessor_config.json").write_text(json.dumps(content))
    names = {"image": "image_pad", "video": "video_pad"}
    names |= {name: name for name in ("vision_start", "vision_end")}
    return {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in names.items()
    }
