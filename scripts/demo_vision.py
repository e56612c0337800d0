"""The vision demo: a tiny Qwen3.5 that answers questions about drawn shapes (demo_pictures.py)."""

import io
import itertools
import json
import math
import random
import sys
import time
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import demo_pictures
import torch
from demo_corpus import END_OF_TEXT, IM_END, IM_START, THINK_END
from demo_pictures import Scene
from demo_tokenizer import train_tokenizer
from demo_training import Muon, Padded, pad, train, with_long_memory, write_checkpoint
from torch.utils import _pytree as pytree
from transformers import PreTrainedTokenizerBase

import qwen35
from qwen35.preprocessor import PatchSettings, VideoSettings

STEPS = 1400
PICTURES = 12  # conversations of a step that start with pictures of about one size …
SIZES = 2  # … and how many such sizes a step has
CONTEXT_LENGTH = 1024
CHUNK = 16  # tokens of a DeltaNet chunk
VOCAB_SIZE = 448
LEARNING_RATE, MATRIX_LEARNING_RATE = 3e-3, 4e-3
HELD_OUT = 30  # batches
REQUIRED_ACCURACY = 0.95

PATCH = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}
# A narrow range of pixels: whatever the size of a picture, its shapes cover a few patches each.
MIN_PIXELS, MAX_PIXELS = 128 * 128, 176 * 176
MAX_ASPECT = 2.2  # the wider side over the narrower one
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
# The pictures that are shipped with the checkpoint, by file name.
SHIPPED = {
    "picture.png": (Scene("triangle", "blue", 3, None), (320, 240)),
    "circle.png": (Scene("circle", "red", 1, (0, 0)), (300, 200)),
    "square.png": (Scene("square", "green", 1, (1, 2)), (240, 240)),
}
KINDS = {
    "what is there": demo_pictures.WHAT,
    "how many": demo_pictures.HOW_MANY,
    "which colour": demo_pictures.WHICH_COLOUR,
    "which shape": demo_pictures.WHICH_SHAPE,
    "where": demo_pictures.WHERE,
}


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


def demo_config(tokenizer: PreTrainedTokenizerBase) -> qwen35.Config:
    """DeltaNet and attention in turn, a tower of three layers."""
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = dict(
        zip(names, tokenizer.convert_tokens_to_ids([f"<|{n}|>" for n in names]), strict=True)
    )
    return qwen35.Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        layer_types=("linear_attention", "full_attention") * 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        partial_rotary_factor=0.5,
        mrope_section=(3, 3, 2),
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        eos_token_id=tuple(tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT])),
        pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        vision=qwen35.VisionConfig(
            depth=3,
            hidden_size=96,
            intermediate_size=192,
            num_heads=4,
            patch_size=PATCH["patch_size"],
            out_hidden_size=128,
            num_position_embeddings=12**2,
        ),
    )


def texts() -> Iterator[str]:
    """Everything that is ever said about a picture, for the tokenizer to learn its merges from."""
    places = [(1, (row, column)) for row in range(3) for column in range(3)]
    for shape, colour, (count, place) in itertools.product(
        demo_pictures.SHAPES, demo_pictures.COLOURS, places + [(n, None) for n in (2, 3, 4)]
    ):
        scene = Scene(shape, colour, count, place)
        for question in demo_pictures.QUESTIONS:
            answer = scene.answer(question)
            if answer is not None:
                yield f"user\n{question}\n{question.lower()}\nassistant\n{answer}\n a {answer}"


def example(rng: random.Random, width: float, height: float) -> Example:
    """One to three questions about a picture of about that size; now and then another follows."""
    messages: list[dict] = []
    for turn in range(rng.choice((1, 2, 3))):
        pictures = []
        if turn == 0 or rng.random() < 0.15:
            scene = demo_pictures.random_scene(rng)
            scale = rng.choice((1, 1, 1.5, 2.5))
            sides = (round(side * scale * rng.uniform(0.97, 1.03)) for side in (width, height))
            pictures = [demo_pictures.draw(scene, rng, *sides)]
        question = demo_pictures.random_question(scene, rng)
        answer = scene.answer(question)
        messages.append(qwen35.user_message(_typed(question, rng), pictures))
        messages.append({"role": "assistant", "content": answer})
    del messages[-1]
    thinking = rng.random() < 0.5
    thought = f"{scene.description}\n{THINK_END}\n\n" if thinking else ""
    kind = next(kind for kind, questions in KINDS.items() if question in questions)
    return Example(messages, thinking, thought + answer + IM_END, kind)


def _typed(question: str, rng: random.Random) -> str:
    """As people type: now and then without capitals, or without the mark at the end."""
    question = question.lower() if rng.random() < 0.2 else question
    return question.rstrip("?.") if rng.random() < 0.2 else question


def batch(processor: qwen35.Processor, rng: random.Random) -> Batch:
    """New conversations about new pictures."""
    examples = []
    for _ in range(SIZES):
        side = math.sqrt(rng.uniform(MIN_PIXELS, MAX_PIXELS))
        stretch = math.sqrt(MAX_ASPECT) ** rng.uniform(-1, 1)
        examples += [example(rng, side * stretch, side / stretch) for _ in range(PICTURES)]
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


def embeds(params: qwen35.Params, batch: Batch) -> torch.Tensor:
    """[B, T, H]: every picture's tokens at their places.

    The pictures of one size are encoded together, as if they were a video: attention stays within
    a frame.
    """
    by_size = defaultdict(list)
    for row, prompt in enumerate(batch.prompts):
        patches, grid, index = prompt.images
        areas = [math.prod(size) for size in grid]
        tokens = [area // params.config.vision.merge_factor for area in areas]
        for size, *picture in zip(grid, patches.split(areas), index.split(tokens), strict=True):
            by_size[size].append((row, *picture))
    tokens = batch.padded[0]
    placed = torch.zeros(*tokens.shape, params.config.hidden_size)
    for (_, height, width), found in by_size.items():
        rows, patches, index = zip(*found, strict=True)
        grid = [(len(found), height, width)]
        vectors = qwen35.encode_images(params.vision, torch.cat(patches), grid)
        rows = torch.tensor(rows).repeat_interleave(len(index[0]))
        placed = placed.index_put((rows, torch.cat(index)), vectors)
    return placed


def hidden_states(params: qwen35.Params, batch: Batch) -> torch.Tensor:
    """[B, T, H] after the final norm."""
    tokens, lengths, *_ = batch.padded
    state = qwen35.init_state(params, batch=tokens.shape[0], capacity=tokens.shape[1])
    seen = embeds(params, batch)
    return qwen35.forward(params, state, tokens, lengths, seen, batch.positions)[0]


def loss(params: qwen35.Params, batch: Batch) -> torch.Tensor:
    """Next-token cross-entropy of the answers."""
    *_, following, weights = batch.padded
    counted = weights > 0
    logits = qwen35.logits(params, hidden_states(params, batch)[counted])
    return torch.nn.functional.cross_entropy(logits, following[counted])


def optimisers(params: qwen35.Params) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of layers and blocks, AdamW for all else."""
    inner = [params.layers, params.vision.blocks, params.vision.merger]
    taps = params.config.linear_conv_kernel_dim
    matrices = [leaf for leaf in pytree.tree_leaves(inner) if leaf.dim() == 2 and len(leaf) > taps]
    chosen = set(map(id, matrices))
    others = [leaf for leaf in pytree.tree_leaves(params) if id(leaf) not in chosen]
    return [
        Muon(matrices, MATRIX_LEARNING_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01),
    ]


@torch.no_grad()
def accuracy(
    params: qwen35.Params, processor: qwen35.Processor, seed: int
) -> tuple[Counter, Counter]:
    """How many conversations about pictures never seen get the right answer, and how many there
    are, by kind.

    If at each position the likeliest token is the completion's own, then greedy decoding, which
    sees the same tokens before it, writes that completion: answer, end and, with thinking, what
    comes before it.
    """
    right, asked = Counter(), Counter()
    for number in range(HELD_OUT):
        held_out = batch(processor, random.Random(f"held out {seed} {number}"))
        *_, following, weights = held_out.padded
        likeliest = qwen35.logits(params, hidden_states(params, held_out)).argmax(-1)
        good = (likeliest == following) | (weights == 0)
        for row, (each, prompt) in enumerate(zip(held_out.examples, held_out.prompts, strict=True)):
            asked[each.kind] += 1
            right[each.kind] += int(good[row, prompt.tokens.shape[1] - 1 :].all())
    return right, asked


README = """\
# The vision demo: a toy that has seen shapes

A Qwen3.5 vision-language model of {parameters:,} parameters in the Hugging Face format \
(`Qwen3_5ForConditionalGeneration`): a vision tower of {depth} layers, width {tower}, and a text \
model of {layers} layers, gated DeltaNet and attention in turn, hidden size {hidden}. It has no \
relation to the published weights. It has seen pictures that `scripts/demo_pictures.py` draws, \
one to four circles, squares or triangles of one colour ({colours}) on light paper, and answers \
what is asked about them: what there is, how many, which colour, which shape, and where a single \
one stands. To anything else, words without a picture included, it answers with something of that \
kind. It is here so that the code can be shown and tested on pictures without a download; it \
measures no quality.

Draw one: a light canvas up to about twice as wide as high, or as high as wide; filled shapes of \
at least a tenth of its height, of a plain colour, apart from each other. Size and format of the \
file don't matter. Then

    scripts/demo --image drawing.png "How many shapes are there?"
    qwen35 generate --model demo_vision --image drawing.png --prompt "What do you see?"
    qwen35 chat --model demo_vision            # /image drawing.png

It knows these questions, with or without capitals and marks: {questions}

| file | content |
|---|---|
| `model.safetensors`, `config.json` | the weights (fp32) and their geometry |
| `generation_config.json` | end tokens; greedy decoding |
| `preprocessor_config.json`, `video_preprocessor_config.json` | every picture is scaled to about \
128 x 128 to 176 x 176 pixels; the model has seen no video |
| `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` | a byte-level BPE trained on \
the questions and answers, with the published names of the special tokens; ChatML |
| {shipped} | pictures to show |

Everything in this directory, this page included, is written by

    python scripts/train_demo.py vision --seed {seed} --steps {steps} --threads {threads}

on the CPU, through `qwen35.encode_images`, `qwen35.forward` and torch's autograd ({minutes:.0f} \
minutes here, torch {torch}): {steps} steps of {rows} conversations about new pictures. The seed \
decides pictures and initial weights; another number of threads or another CPU rounds differently \
and ends in other weights of the same quality. Checked before it was written, on {asked} \
conversations about pictures of other seeds, half of them with a thought before the answer; right \
is an answer that greedy decoding writes token for token:

| question | right |
|---|---|
{table}

Pictures, tokenizer and weights are under the repository's licence.
"""


def run(options: Namespace) -> bool:
    """Trains, checks and writes the checkpoint; False if it is not good enough."""
    started = time.monotonic()
    tokenizer = train_tokenizer(texts(), VOCAB_SIZE, CONTEXT_LENGTH)
    config = demo_config(tokenizer)
    processor = qwen35.Processor(
        qwen35.Tokenizer(tokenizer),
        config,
        PatchSettings.from_dict(IMAGES),
        VideoSettings.from_dict(VIDEOS),
    )
    runtime = qwen35.Runtime(chunk=CHUNK)
    params = qwen35.init_params(config, seed=options.seed, runtime=runtime)
    params = with_long_memory(params, options.seed)

    def batches(start: int) -> Iterator[Batch]:
        for step in itertools.count(start):
            yield batch(processor, random.Random(f"{options.seed} {step}"))

    params = train(params, optimisers, batches, loss, options.steps, options.keep)

    right, asked = accuracy(params, processor, options.seed)
    rows = [(kind, right[kind], asked[kind]) for kind in KINDS]
    rows.append(("all", right.total(), asked.total()))
    for kind, good, total in rows:
        print(f"held out, {kind}: {good} of {total} right ({good / total:.1%})", file=sys.stderr)
    if right.total() < REQUIRED_ACCURACY * asked.total():
        return False
    readme = README.format(
        parameters=sum(leaf.numel() for leaf in pytree.tree_leaves(params)),
        depth=config.vision.depth,
        tower=config.vision.hidden_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        colours=", ".join(demo_pictures.COLOURS),
        questions=" ".join(demo_pictures.QUESTIONS),
        shipped=", ".join(f"`{name}`" for name in SHIPPED),
        seed=options.seed,
        steps=options.steps,
        threads=options.threads,
        minutes=(time.monotonic() - started) / 60,
        torch=torch.__version__.split("+")[0],
        rows=SIZES * PICTURES,
        asked=asked.total(),
        table="\n".join(f"| {kind} | {good} of {total} |" for kind, good, total in rows),
    )
    files = {
        "preprocessor_config.json": json.dumps(IMAGES, indent=2) + "\n",
        "video_preprocessor_config.json": json.dumps(VIDEOS, indent=2) + "\n",
        "README.md": readme,
        **{name: _png(*shown, name) for name, shown in SHIPPED.items()},
    }
    write_checkpoint(options.output, params, tokenizer, files)
    return True


def _png(scene: Scene, size: Sequence[int], name: str) -> bytes:
    file = io.BytesIO()
    demo_pictures.draw(scene, random.Random(name), *size).save(file, "png")
    return file.getvalue()
