"""A tiny vision-language checkpoint of transformers, with its tokenizer and processors: the oracle
of whatever takes pictures. `conftest.py` makes its fixtures everyone's.

Its files have the published form: `preprocessor_config.json` and `video_preprocessor_config.json`
beside the tokenizer, a chat template that marks pictures as Qwen's does.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoTokenizer,
    Qwen2VLImageProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

import qwen35

DEMO = Path(__file__).parents[2] / "demo"

TEXT = {
    "model_type": "qwen3_5_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
    "full_attention_interval": 2,
    "max_position_embeddings": 2048,
}
VISION = {
    "model_type": "qwen3_5_vision",
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "intermediate_size": 48,
    "patch_size": 16,
    "out_hidden_size": 64,
    "num_position_embeddings": 36,
}
# As published, but for `size`: small pictures stay small, large ones become small.
PIXELS = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
IMAGES = {
    "size": {"longest_edge": 160 * 160, "shortest_edge": 64 * 64},
    **PIXELS,
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
VIDEOS = {
    "size": {"longest_edge": 6 * 96 * 96, "shortest_edge": 2 * 32 * 32},
    **PIXELS,
    "processor_class": "Qwen3VLProcessor",
    "video_processor_type": "Qwen3VLVideoProcessor",
}
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle:
    """transformers' model and processor, and the directory that both were saved to."""

    model: Qwen3_5ForConditionalGeneration
    processor: Any
    directory: Path

    @property
    def ids(self) -> dict[str, int]:
        """The special tokens of pictures, by their short names."""
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return {name.removesuffix("_token_id"): getattr(self.model.config, name) for name in names}


@pytest.fixture(scope="session")
def multimodal(tmp_path_factory, perturb_model) -> Oracle:
    """The checkpoint, built and saved once per session."""
    directory = tmp_path_factory.mktemp("vision_language")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    (directory / "video_preprocessor_config.json").write_text(json.dumps(VIDEOS))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    eos = tokenizer.convert_tokens_to_ids("<|im_end|>")
    # The vocabulary, like all other sizes, splits four ways; rows beyond the tokenizer's exist in
    # published checkpoints too.
    text = TEXT | {"vocab_size": -(-len(tokenizer) // 4) * 4, "eos_token_id": eos}
    config = Qwen3_5Config(text_config=text, vision_config=VISION, **ids)
    config._attn_implementation = "eager"
    model = Qwen3_5ForConditionalGeneration(config).eval()
    perturb_model(model, seed=3)
    model.save_pretrained(directory)
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**IMAGES),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**VIDEOS, cap_pixels_per_frame=False),
        chat_template=TEMPLATE,
    )
    return Oracle(model, processor, directory)


@pytest.fixture(scope="session")
def multimodal_params(multimodal) -> qwen35.Params:
    """Our parameters of the checkpoint, on the CPU."""
    return qwen35.load(multimodal.directory)
