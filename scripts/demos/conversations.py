"""What the vision demo learns from: pictures, conversations about them, and batches of either."""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import drawing
import torch
from corpus import IM_END, IM_START, THINK_END
from drawing import Scene
from PIL import Image
from training import Padded, pad

import qwen35
from qwen35.prompts.images import image_patches
from qwen35.prompts.settings import PatchSettings

ALONE = 32  # pictures of a step of the tower alone
PICTURES = 12  # conversations of a step that start with pictures of about one size …
SIZES = 2  # … and how many such sizes a step has

PATCH = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    # About those of the pictures: paper comes near zero, and what is drawn on it stands out.
    "image_mean": [0.9, 0.9, 0.9],
    "image_std": [0.25, 0.25, 0.25],
    "processor_class": "Qwen3VLProcessor",
}
# A narrow range of pixels: whatever the size of a picture, its shapes cover a few patches each.
MIN_PIXELS, MAX_PIXELS = 128 * 128, 160 * 160
MAX_ASPECT = 2  # the wider side over the narrower one
IMAGES = {
    "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    "image_processor_type": "Qwen2VLImageProcessorFast",
    **PATCH,
}
VIDEOS = {
    "size": {"shortest_edge": 4 * MIN_PIXELS, "longest_edge": 16 * MAX_PIXELS},
    "video_processor_type": "Qwen3VLVideoProcessor",
    **PATCH,
}
SHAPES, COLOURS = list(drawing.SHAPES), list(drawing.COLOURS)
LABELS = (len(SHAPES), len(COLOURS), 4, 3, 3)  # shape, colour, count - 1, row, column
IGNORED = -100  # several shapes have no one place
KINDS = {
    "what is there": drawing.WHAT,
    "how many": drawing.HOW_MANY,
    "which colour": drawing.WHICH_COLOUR,
    "which shape": drawing.WHICH_SHAPE,
    "where": drawing.WHERE,
}


class Pictures(NamedTuple):
    """Pictures of about one size: patches, and what each shows, [n, len(LABELS)] int64."""

    patches: torch.Tensor
    grid: list[tuple[int, int, int]]
    shows: torch.Tensor


class Example(NamedTuple):
    """A conversation up to a question of one of KINDS, and what the model has to write then."""

    messages: list[dict]
    thinking: bool
    completion: str
    kind: str


class Batch(NamedTuple):
    """Examples as `forward` takes them; `padded` are tokens, lengths, next tokens and weights."""

    examples: list[Example]
    prompts: list[qwen35.Prompt]
    padded: Padded
    positions: torch.Tensor


def texts() -> Iterator[str]:
    """Everything that is ever said about a picture, for the tokenizer to learn its merges from."""
    places = [(1, (row, column)) for row in range(3) for column in range(3)]
    for shape, colour, (count, place) in itertools.product(
        drawing.SHAPES, drawing.COLOURS, places + [(n, None) for n in (2, 3, 4)]
    ):
        scene = Scene(shape, colour, count, place)
        for question in drawing.QUESTIONS:
            answer = scene.answer(question)
            if answer is not None:
                yield f"user\n{question}\n{question.lower()}\nassistant\n{answer}\n a {answer}"


def pictures(settings: PatchSettings, rng: random.Random) -> Pictures:
    """New pictures of two sizes, in the order of their grids."""
    by_size = defaultdict(list)
    for _ in range(2):
        size = _size(rng)
        for _ in range(ALONE // 2):
            scene = drawing.random_scene(rng)
            patches, grid = image_patches(_draw(scene, rng, *size), settings)
            place = scene.place or (IGNORED, IGNORED)
            shape, colour = SHAPES.index(scene.shape), COLOURS.index(scene.colour)
            by_size[grid].append((patches, [shape, colour, scene.count - 1, *place]))
    grid = [(len(found), height, width) for (_, height, width), found in by_size.items()]
    patches, shows = zip(*itertools.chain(*by_size.values()), strict=True)
    return Pictures(torch.cat(patches), grid, torch.tensor(shows))


def example(rng: random.Random, width: float, height: float) -> Example:
    """One to three questions about a picture of about that size; now and then another follows."""
    messages: list[dict] = []
    for turn in range(rng.choice((1, 1, 2))):
        shown = []
        if turn == 0 or rng.random() < 0.15:
            scene = drawing.random_scene(rng)
            shown = [_draw(scene, rng, width, height)]
        question = drawing.random_question(scene, rng)
        answer = scene.answer(question)
        messages.append(qwen35.user_message(_typed(question, rng), shown))
        messages.append({"role": "assistant", "content": answer})
    del messages[-1]
    thinking = rng.random() < 0.5
    thought = f"{scene.description}\n{THINK_END}\n\n" if thinking else ""
    kind = next(kind for kind, questions in KINDS.items() if question in questions)
    return Example(messages, thinking, thought + answer + IM_END, kind)


def _size(rng: random.Random) -> tuple[float, float]:
    """Width and height within the range of pixels that the processor leaves."""
    side = math.sqrt(rng.uniform(MIN_PIXELS, MAX_PIXELS))
    stretch = math.sqrt(MAX_ASPECT) ** rng.uniform(-1, 1)
    return side * stretch, side / stretch


def _draw(scene: Scene, rng: random.Random, width: float, height: float) -> Image.Image:
    """The scene in about that size, or larger: then the processor scales it down."""
    scale = rng.choice((1, 1, 1.5, 2.5))
    sides = (round(side * scale * rng.uniform(0.97, 1.03)) for side in (width, height))
    return drawing.draw(scene, rng, *sides)


def _typed(question: str, rng: random.Random) -> str:
    """As people type: now and then without capitals, or without the mark at the end."""
    question = question.lower() if rng.random() < 0.2 else question
    return question.rstrip("?.") if rng.random() < 0.2 else question


def batch(processor: qwen35.Processor, rng: random.Random) -> Batch:
    """New conversations about new pictures."""
    examples = []
    for _ in range(SIZES):
        size = _size(rng)
        examples += [example(rng, *size) for _ in range(PICTURES)]
    prompts = [
        processor(each.messages, enable_thinking=each.thinking, add_generation_prompt=True)
        for each in examples
    ]
    rows = []
    for each, prompt in zip(examples, prompts, strict=True):
        row = _weighted(processor, prompt.tokens[0].tolist())
        rows.append(row + [(token, 1.0) for token in processor.encode(each.completion)])
    padded = pad(rows)
    width = padded[0].shape[1]
    positions = [_lengthened(prompt.positions[:, 0], width) for prompt in prompts]
    return Batch(examples, prompts, padded, torch.stack(positions, 1))


def _weighted(processor: qwen35.Processor, tokens: list[int]) -> list[tuple[int, float]]:
    """A prompt's tokens; those of the answers in it, their end included, count in the loss."""
    header, [end] = processor.encode(f"{IM_START}assistant\n"), processor.encode(IM_END)
    starts = [
        place + len(header)
        for place in range(len(tokens))
        if tokens[place : place + len(header)] == header
    ]
    weights = [0.0] * len(tokens)
    for start in starts[:-1]:  # at the last one the completion begins
        stop = tokens.index(end, start) + 1
        weights[start:stop] = [1.0] * (stop - start)
    return list(zip(tokens, weights, strict=True))


def _lengthened(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Positions [3, T] of a prompt, and of text after it up to `width` tokens."""
    following = positions.max() + 1 + torch.arange(width - positions.shape[1])
    return torch.cat([positions, following.expand(3, -1)], 1)
