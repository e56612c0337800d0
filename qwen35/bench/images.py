"""Images: the vision tower, the first token of a prompt with a picture, memory, compilation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from .machine import added_memory, timed
from .statistics import median

_QUESTION = "What is in this picture?"


def ours(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of this project for each of `sides`, pictures of so many pixels each way."""
    from ..files.checkpoint import load
    from ..generation.generate import generate
    from ..prompts.processor import Processor
    from ..vision.tower import encode_images

    params = load(settings["model"], device="xla", check_finite=False)
    processor = Processor.from_pretrained(settings["model"])
    result: dict[str, Any] = {}
    for side in settings["sides"]:
        messages = _messages(side)
        images = processor(messages).images

        def cut(messages=messages) -> None:
            processor(messages)

        def encode(images=images) -> torch.Tensor:
            return encode_images(params.vision, images.patches, images.grid)

        def first_token(messages=messages) -> int:
            [completion] = generate(params, processor, [messages], max_new_tokens=1)
            return completion.tokens[0]

        _measure(result, side, settings["repeats"], cut, encode, first_token)
    return result


@torch.no_grad()
def reference(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same of transformers."""
    from transformers import AutoProcessor, Qwen3_5ForConditionalGeneration

    directory = settings["model"]
    model = Qwen3_5ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(directory)
    result: dict[str, Any] = {}
    for side in settings["sides"]:
        messages = _messages(side)

        def inputs(messages=messages) -> Mapping[str, torch.Tensor]:
            return processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )

        read = inputs()

        def encode(read=read) -> torch.Tensor:
            return model.model.visual(read["pixel_values"], read["image_grid_thw"]).pooler_output

        def first_token(inputs=inputs) -> int:
            return int(model(**inputs(), use_cache=True, logits_to_keep=1).logits.argmax())

        _measure(result, side, settings["repeats"], inputs, encode, first_token)
    return result


def our_memory(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes that the tower takes for a picture of `side`, beside its weights and the patches."""
    from ..files.checkpoint import load
    from ..vision.tower import encode_images

    vision = load(settings["model"], device="xla", check_finite=False).vision
    patches, grid = _patches(vision.config, settings["side"])

    def encode() -> torch.Tensor:
        return encode_images(vision, patches, [grid])

    return {"memory_with_compilation": added_memory(encode), "memory": added_memory(encode)}


@torch.no_grad()
def reference_memory(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same of transformers."""
    from transformers import Qwen3_5ForConditionalGeneration

    directory = settings["model"]
    model = Qwen3_5ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    visual = model.model.visual
    patches, grid = _patches(visual.config, settings["side"])
    small, few = _patches(visual.config, 64)
    visual(small, torch.tensor([few]))
    return {"memory": added_memory(lambda: visual(patches, torch.tensor([grid])))}


def compilation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds to compile each step of the ladder of padded sizes, up to a picture of `side`."""
    from ..files.checkpoint import load
    from ..vision.frames import groups, ladder
    from ..vision.tower import tower
    from ..xla.devices import device_put
    from ..xla.jit import jit

    vision = load(settings["model"], device="xla", check_finite=False).vision
    config = vision.config
    step, seconds = jit(tower), {}
    for length in ladder(config, (settings["side"] // config.patch_size) ** 2):
        tokens = length // config.merge_factor
        size = (1, config.spatial_merge_size, tokens * config.spatial_merge_size)
        [group] = groups(config, torch.zeros(length, config.patch_dim), [size])
        group = device_put(group, "xla")
        seconds[str(length)] = timed(lambda group=group: step.compile(vision, group))
    return {"compile": seconds}


def _measure(
    result: dict[str, Any],
    side: int,
    repeats: int,
    cut: Callable[[], Any],
    encode: Callable[[], torch.Tensor],
    first_token: Callable[[], int],
) -> None:
    """Adds the medians for one size; what is first called compiles and is told apart."""
    for name, function in (("cut", cut), ("tower", encode), ("ttft", first_token)):
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            value = function()
            times.append(time.perf_counter() - start)
        result[f"{name}_{side}"] = median(times[1:])
        result[f"first_{name}_{side}"] = times[0] - result[f"{name}_{side}"]
        if name == "tower":
            result[f"norm_{side}"] = float(value.double().norm())
        if name == "ttft":
            result[f"token_{side}"] = value


def _messages(side: int) -> list[dict[str, Any]]:
    """A question on a picture of random colours."""
    source = np.random.default_rng(side)
    picture = Image.fromarray(source.integers(0, 256, (side, side, 3), dtype=np.uint8))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": _QUESTION}]
    return [{"role": "user", "content": parts}]


def _patches(config: Any, side: int) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Random patches for a tower of this configuration, ours or transformers'."""
    edge = side // config.patch_size
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    generator = torch.Generator().manual_seed(0)
    return torch.rand(edge * edge, width, generator=generator) * 2 - 1, (1, edge, edge)
