"""The vision demo: a tiny Qwen3.5 that answers questions about drawn shapes (drawing.py)."""

import dataclasses
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
from typing import Any

import drawing
import torch
from conversations import (
    ALONE,
    IGNORED,
    IMAGES,
    KINDS,
    LABELS,
    PATCH,
    PICTURES,
    SIZES,
    VIDEOS,
    Batch,
    Pictures,
    batch,
    pictures,
    texts,
)
from corpus import END_OF_TEXT, IM_END
from drawing import Scene
from tokenizer import train_tokenizer
from torch.utils import _pytree as pytree
from training import Muon, train, with_long_memory, write_checkpoint
from transformers import PreTrainedTokenizerBase

import qwen35
from qwen35.model.params import VisionParams
from qwen35.prompts.settings import PatchSettings, VideoSettings

STEPS = 1000  # for the tower alone, and as many for the whole
CONTEXT_LENGTH = 1024
CHUNK = 16  # tokens of a DeltaNet chunk
VOCAB_SIZE = 448
LEARNING_RATE, MATRIX_LEARNING_RATE = 2e-3, 5e-3
HELD_OUT = 30  # batches
REQUIRED_ACCURACY = 0.95

# The pictures that are shipped with the checkpoint, by file name.
SHIPPED = {
    "picture.png": (Scene("triangle", "blue", 3, None), (320, 240)),
    "circle.png": (Scene("circle", "red", 1, (0, 0)), (300, 200)),
    "square.png": (Scene("square", "green", 1, (1, 2)), (240, 240)),
}


def demo_config(tokenizer: PreTrainedTokenizerBase) -> qwen35.Config:
    """DeltaNet and attention in turn, a tower of three layers."""
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = dict(
        zip(names, tokenizer.convert_tokens_to_ids([f"<|{n}|>" for n in names]), strict=True)
    )
    return qwen35.Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        layer_types=("linear_attention", "full_attention") * 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=24,
        linear_value_head_dim=24,
        rope_theta=100.0,  # pictures are a few tokens wide: slower angles would tell nothing
        partial_rotary_factor=1.0,
        mrope_section=(4, 4, 4),
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
            out_hidden_size=96,
            num_position_embeddings=12**2,
            rope_theta=100.0,
        ),
    )


def with_visible_places(params: qwen35.Params) -> qwen35.Params:
    """The parameters with learned positions as strong as patches.

    `init_params` draws them as small as all weights, a fortieth of what a patch of paper gives:
    too little to learn from where things are.
    """
    vision = dataclasses.replace(params.vision, positions=25 * params.vision.positions)
    return dataclasses.replace(params, vision=vision)


def reading_loss(tree: dict, batch: Pictures) -> torch.Tensor:
    """Cross-entropy of what a linear map reads off the mean of a picture's tokens."""
    vision = tree["vision"]
    tokens = qwen35.encode_images(vision, batch.patches, batch.grid)
    sizes = [
        height * width // vision.config.merge_factor
        for count, height, width in batch.grid
        for _ in range(count)
    ]
    means = torch.stack([each.mean(0) for each in tokens.split(sizes)])
    scores = (means @ tree["reader"]).split(LABELS, 1)
    return sum(
        torch.nn.functional.cross_entropy(score, truth, ignore_index=IGNORED)
        for score, truth in zip(scores, batch.shows.T, strict=True)
    )


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
    """Muon for the matrices of layers and tower, AdamW for all else."""
    taps = params.config.linear_conv_kernel_dim
    inner = [leaf for leaf in pytree.tree_leaves(params.layers) if len(leaf) > taps]
    return _optimisers(params, params.vision, inner)


def reading_optimisers(tree: dict) -> list[torch.optim.Optimizer]:
    """The same for the tower and what is read off its tokens."""
    return _optimisers(tree, tree["vision"], [])


def _optimisers(
    tree: Any, vision: VisionParams, inner: list[torch.Tensor]
) -> list[torch.optim.Optimizer]:
    inner = inner + pytree.tree_leaves([vision.patch_proj, vision.blocks, vision.merger])
    matrices = [leaf for leaf in inner if leaf.dim() == 2]
    chosen = set(map(id, matrices))
    others = [leaf for leaf in pytree.tree_leaves(tree) if id(leaf) not in chosen]
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
relation to the published weights. It has seen pictures that `scripts/demos/drawing.py` draws, \
one to four circles, squares or triangles of one colour ({colours}) on light paper, and answers \
what is asked about them: what there is, how many, which colour, which shape, and where a single \
one stands. To anything else, words without a picture included, it answers with something of that \
kind. It is here so that the code can be shown and tested on pictures without a download; it \
measures no quality.

Draw one: a light canvas, its longer side at most twice the shorter; filled shapes of a plain \
colour, apart from each other, at least a fifth of the shorter side across. Size and format of \
the file don't matter. Then

    scripts/demo --image drawing.png "How many shapes are there?"
    qwen35 generate --model demo_vision --image drawing.png --prompt "What do you see?"
    qwen35 chat --model demo_vision            # /image drawing.png

It knows these questions, with or without capitals and marks: {questions}

| file | content |
|---|---|
| `model.safetensors`, `config.json` | the weights (fp32) and their geometry |
| `generation_config.json` | end tokens; greedy decoding |
| `preprocessor_config.json`, `video_preprocessor_config.json` | every picture is scaled to about \
128 x 128 to 160 x 160 pixels; the model has seen no video |
| `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` | a byte-level BPE trained on \
the questions and answers, with the published names of the special tokens; ChatML |
| {shipped} | pictures to show |

Everything in this directory, this page included, is written by

    python scripts/demos/train.py vision --seed {seed} --steps {steps} --threads {threads}

on the CPU, through `qwen35.encode_images`, `qwen35.forward` and torch's autograd ({minutes:.0f} \
minutes here, torch {torch}): {steps} steps in which the tower alone learns, from {alone} new \
pictures each, what they show, then {steps} steps in which all of the model learns from {rows} \
conversations about new pictures each. The seed \
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
    params = with_visible_places(with_long_memory(params, options.seed))

    def batches(start: int) -> Iterator[Batch]:
        for step in itertools.count(start):
            yield batch(processor, random.Random(f"{options.seed} {step}"))

    def views(start: int) -> Iterator[Pictures]:
        for step in itertools.count(start):
            yield pictures(processor.images, random.Random(f"alone {options.seed} {step}"))

    # As large models do it: first the tower learns to see, with little text in the way.
    tree = {"vision": params.vision, "reader": torch.zeros(config.hidden_size, sum(LABELS))}
    kept = options.keep and options.keep.with_name(options.keep.name + ".tower")
    tree = train(tree, reading_optimisers, views, reading_loss, options.steps, kept)
    params = dataclasses.replace(params, vision=tree["vision"])
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
        colours=", ".join(drawing.COLOURS),
        questions=" ".join(drawing.QUESTIONS),
        shipped=", ".join(f"`{name}`" for name in SHIPPED),
        seed=options.seed,
        steps=options.steps,
        threads=options.threads,
        minutes=(time.monotonic() - started) / 60,
        torch=torch.__version__.split("+")[0],
        alone=ALONE,
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
    drawing.draw(scene, random.Random(name), *size).save(file, "png")
    return file.getvalue()
