"""Images: the vision tower, the first token of a prompt with a picture, memory, compilation."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from .machine import added_memory, timed
from .placement import Placement, meet
from .statistics import median

Result = TypeVar("Result")

_QUESTION = "What is in this picture?"


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, the median, and what its first call took longer: it compiles."""

    seconds: float
    first_adds: float


@dataclass(frozen=True)
class PictureTimes:
    """A square picture of `side` pixels each way.

    Attributes:
        processor: from messages to token ids and patches.
        tower: from patches to vectors on the host.
        ttft: from messages to the first token.
        norm: of the tower's output.
        token: the first one.
    """

    side: int
    processor: StepTime
    tower: StepTime
    ttft: StepTime
    norm: float
    token: int


@dataclass(frozen=True)
class PicturesRun:
    """A process that loads a model and looks at a picture of each size."""

    pictures: tuple[PictureTimes, ...]


def measure_ours(
    model: str, sides: Sequence[int], repeats: int, place: Placement = Placement()
) -> PicturesRun:
    """Times this project.

    Args:
        model: a checkpoint directory.
        sides: of pictures, pixels each way.
        repeats: calls that are timed after the first.
        place: where the model is.
    """
    from ..generation.generate import generate
    from ..prompts.processor import Processor
    from ..vision.tower import encode_images

    params = place.load(model, place.start(), vision=True)
    processor = Processor.from_pretrained(model)
    pictures = []
    for side in sides:
        messages = _messages(side)
        images = processor(messages).images

        def process(messages=messages) -> None:
            processor(messages)

        def encode(images=images) -> torch.Tensor:
            return encode_images(params.vision, images.patches, images.grid)

        def first_token(messages=messages) -> int:
            [completion] = generate(params, processor, [messages], max_new_tokens=1)
            return completion.tokens[0]

        begin = functools.partial(meet, params)
        pictures.append(_time_picture(side, repeats, process, encode, first_token, begin))
    return PicturesRun(tuple(pictures))


@torch.no_grad()
def measure_reference(model: str, sides: Sequence[int], repeats: int) -> PicturesRun:
    """Times transformers; the arguments are those of `measure_ours`."""
    from transformers import AutoProcessor, Qwen3_5ForConditionalGeneration

    kind = Qwen3_5ForConditionalGeneration
    reference = kind.from_pretrained(model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model)
    pictures = []
    for side in sides:
        messages = _messages(side)

        def process(messages=messages) -> Mapping[str, torch.Tensor]:
            return processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )

        inputs = process()

        def encode(inputs=inputs) -> torch.Tensor:
            patches, grid = inputs["pixel_values"], inputs["image_grid_thw"]
            return reference.model.visual(patches, grid).pooler_output

        def first_token(process=process) -> int:
            logits = reference(**process(), use_cache=True, logits_to_keep=1).logits
            return int(logits.argmax())

        pictures.append(_time_picture(side, repeats, process, encode, first_token))
    return PicturesRun(tuple(pictures))


@dataclass(frozen=True)
class TowerMemory:
    """Bytes that the tower takes for a picture at most, beside its weights and the patches.

    with_compilation: in a first call; None of transformers, which compiles nothing.
    """

    added: int
    with_compilation: int | None = None


def measure_our_memory(model: str, side: int, segments: int | str = 1) -> TowerMemory:
    """Measures this project's tower, cut as by `Runtime.segments`, on a picture of `side` pixels
    each way."""
    from ..vision.tower import encode_images

    vision = _load_tower(model, segments)
    patches, grid = _patches(vision.config, side)

    def encode() -> torch.Tensor:
        return encode_images(vision, patches, [grid])

    first = added_memory(encode)
    return TowerMemory(added_memory(encode), with_compilation=first)


@torch.no_grad()
def measure_reference_memory(model: str, side: int) -> TowerMemory:
    """Measures transformers' tower on a picture of `side` pixels each way."""
    from transformers import Qwen3_5ForConditionalGeneration

    kind = Qwen3_5ForConditionalGeneration
    visual = kind.from_pretrained(model, dtype=torch.float32).eval().model.visual
    patches, grid = _patches(visual.config, side)
    small, few = _patches(visual.config, 64)
    visual(small, torch.tensor([few]))
    return TowerMemory(added_memory(lambda: visual(patches, torch.tensor([grid]))))


@dataclass(frozen=True)
class TowerCompilation:
    """Seconds to compile the tower for frames of so many patches, padding included."""

    patches: int
    seconds: float


@dataclass(frozen=True)
class TowerCompilations:
    """All sizes up to a picture's, the smallest first."""

    sizes: tuple[TowerCompilation, ...]


def measure_compilation(model: str, side: int, segments: int | str = 1) -> TowerCompilations:
    """Compiles the tower, cut as by `Runtime.segments`, for each padded size up to a picture of
    `side` pixels each way."""
    from ..vision.frames import groups, padded_sizes
    from ..vision.tower import tower
    from ..xla.devices import device_put
    from ..xla.jit import jit

    vision = _load_tower(model, segments)
    config = vision.config
    step, sizes = jit(tower), []
    for length in padded_sizes(config, (side // config.patch_size) ** 2):
        tokens = length // config.merge_factor
        size = (1, config.spatial_merge_size, tokens * config.spatial_merge_size)
        [group] = groups(config, torch.zeros(length, config.patch_dim), [size])
        group = device_put(group, "xla")
        seconds = timed(lambda group=group: step.compile(vision, group))
        sizes.append(TowerCompilation(length, seconds))
    return TowerCompilations(tuple(sizes))


def _load_tower(model: str, segments: int | str) -> Any:
    place = Placement(segments=segments)
    return place.load(model, place.start(), vision=True).vision


def _time_picture(
    side: int,
    repeats: int,
    process: Callable[[], Any],
    encode: Callable[[], torch.Tensor],
    first_token: Callable[[], int],
    begin: Callable[[], None] = lambda: None,
) -> PictureTimes:
    processor, _ = _time_step(process, repeats, begin)
    tower, output = _time_step(encode, repeats, begin)
    ttft, token = _time_step(first_token, repeats, begin)
    return PictureTimes(side, processor, tower, ttft, float(output.double().norm()), token)


def _time_step(
    function: Callable[[], Result], repeats: int, begin: Callable[[], None]
) -> tuple[StepTime, Result]:
    """Times a function, and returns what it returned last; its first call is told apart. Before
    each, `begin` is called."""
    times = []
    for _ in range(repeats + 1):
        begin()
        start = time.perf_counter()
        value = function()
        times.append(time.perf_counter() - start)
    seconds = median(times[1:])
    return StepTime(seconds, times[0] - seconds), value


def _messages(side: int) -> list[dict[str, Any]]:
    """Makes a question on a picture of random colours."""
    source = np.random.default_rng(side)
    picture = Image.fromarray(source.integers(0, 256, (side, side, 3), dtype=np.uint8))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": _QUESTION}]
    return [{"role": "user", "content": parts}]


def _patches(config: Any, side: int) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Makes random patches for a tower of this configuration, ours or transformers'."""
    edge = side // config.patch_size
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    generator = torch.Generator().manual_seed(0)
    return torch.rand(edge * edge, width, generator=generator) * 2 - 1, (1, edge, edge)
