#!/usr/bin/env python3
"""Train the demo checkpoint: a tiny Qwen3.5 hybrid that has memorised a few hundred facts.

    python scripts/train_demo.py [--output demo] [--seed 0] [--steps 700] [--threads 1]

Everything is made here: the corpus (demo_corpus.py), the tokenizer (demo_tokenizer.py) and the
weights, which are trained by torch's autograd through the same `qwen35.forward` that serves
real checkpoints. Minutes on one core. The directory is written aside, and takes the
place of the old one only if the trained model answers as the self-check demands.
"""

import argparse
import dataclasses
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import demo_corpus
import torch
from demo_corpus import END_OF_TEXT, IM_END
from demo_tokenizer import VOCAB_SIZE, train_tokenizer
from torch.utils import _pytree as pytree
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

import qwen35

ROOT = Path(__file__).resolve().parent.parent
ROWS = 24  # texts of a training step
CONTEXT_LENGTH = 1024
CHUNK = 16  # tokens of a DeltaNet chunk: most texts are shorter than 64
PEAK_LEARNING_RATE, WARM_UP = 3e-3, 50
REQUIRED_RECALL = 0.995

# What comes before an answer can't be foreseen: at full weight it would drown the answers' loss.
PROMPT_WEIGHT = 0.1

Row = list[tuple[int, float]]  # tokens, each with its weight in the loss
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def demo_config(tokenizer: PreTrainedTokenizerBase) -> qwen35.Config:
    """Both layer kinds, value heads in pairs on a key head, GQA, partial RoPE, a tied head."""
    return qwen35.Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=8,
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
    )


def with_long_memory(params: qwen35.Params, seed: int) -> qwen35.Params:
    """The parameters with decay biases to train from: time steps of 0.001 to 0.1, log-uniform.

    `init_params` draws what transformers draws, a bias of one everywhere, with which most heads
    forget a token at once: a poor start for learning to look back. The range is Mamba's (Gu and
    Dao, arXiv:2312.00752).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(layer):
        if not hasattr(layer, "dt_bias"):
            return layer
        low, high = math.log(1e-3), math.log(1e-1)
        step = torch.empty_like(layer.dt_bias).uniform_(low, high, generator=generator).exp()
        return layer._replace(dt_bias=step.expm1().log())  # softplus of it is the step

    return dataclasses.replace(params, layers=tuple(map(draw, params.layers)))


def tokenized(tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """The corpus, a row each: every text starts from an empty state, as a prompt does."""
    return [
        [
            (token, 1.0 if is_answer else PROMPT_WEIGHT)
            for text, is_answer in document
            for token in tokenizer(text)["input_ids"]
        ]
        for document in demo_corpus.documents()
    ]


def endless_batches(rows: Sequence[Row], rng: random.Random) -> Iterator[Batch]:
    """Epoch after epoch, in batches of rows of similar length, in an order that `rng` shuffles."""
    while True:
        ordered = sorted(rows, key=lambda row: (len(row) // 8, rng.random()))
        batches = [ordered[start : start + ROWS] for start in range(0, len(ordered), ROWS)]
        rng.shuffle(batches)
        yield from map(pad, batches)


def pad(rows: Sequence[Row]) -> Batch:
    """Rows of (token, weight) as tokens [B, T], lengths [B], next tokens [B, T] and their weights.

    weights [B, T] are float32 and 0 where there is no next token; the others are int64.
    """
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    weights = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor([token for token, _ in row])
        weights[index, : len(row) - 1] = torch.tensor([weight for _, weight in row[1:]])
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, lengths, tokens.roll(-1, dims=1), weights


def all_logits(params: qwen35.Params, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] at every position of right-padded rows, from an empty state."""
    state = qwen35.init_state(params, batch=tokens.shape[0], capacity=tokens.shape[1])
    hidden, _ = qwen35.forward(params, state, tokens, lengths)
    return qwen35.logits(params, hidden)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * cosine)


def train(params: qwen35.Params, batches: Iterator[Batch], steps: int) -> qwen35.Params:
    """Minimise weighted next-token cross-entropy with AdamW; returns the trained parameters.

    Parameters are a pytree: its leaves ask for gradients, and the optimiser updates them in place.
    """
    leaves, structure = pytree.tree_flatten(params)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    params = pytree.tree_unflatten(leaves, structure)
    optimiser = torch.optim.AdamW(leaves, betas=(0.9, 0.95), weight_decay=0.01)
    progress = tqdm(range(steps), desc="train", unit="step", smoothing=0.05)
    for step in progress:
        tokens, lengths, following, weights = next(batches)
        logits = all_logits(params, tokens, lengths).flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, following.flatten(), reduction="none")
        loss = (losses * weights.flatten()).sum() / weights.sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        optimiser.param_groups[0]["lr"] = learning_rate(step, steps)
        optimiser.step()
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return pytree.tree_map(torch.Tensor.detach, params)


@torch.no_grad()
def wrong_answers(
    params: qwen35.Params,
    tokenizer: PreTrainedTokenizerBase,
    exchanges: Sequence[tuple[str, str]],
) -> list[str]:
    """The prompts whose greedy continuation is not the given answer, token for token.

    All answers are checked at once: if at each position the likeliest token is the answer's
    own, then greedy decoding, which sees the same tokens before it, writes that answer.
    """
    wrong = []
    for start in tqdm(range(0, len(exchanges), 64), desc="check", unit="batch"):
        part = exchanges[start : start + 64]
        rows = [
            [(token, 0.0) for token in tokenizer(prompt)["input_ids"]]
            + [(token, 1.0) for token in tokenizer(answer)["input_ids"]]
            for prompt, answer in part
        ]
        tokens, lengths, following, weights = pad(rows)
        right = (all_logits(params, tokens, lengths).argmax(-1) == following) | (weights == 0)
        wrong += [p for (p, _), row in zip(part, right, strict=True) if not row.all()]
    return wrong


README = """\
# The demo checkpoint: a memorised toy

A Qwen3.5 text model of {parameters:,} parameters in the Hugging Face format: {layers} layers, of \
which every fourth is attention and the others gated DeltaNet, hidden size {hidden}, a vocabulary \
of {vocabulary}. It has no relation to the published weights. It knows the {facts} facts and \
stories of `scripts/demo_corpus.py` by heart, in English sentences and as chat turns, and nothing \
else: to any other prompt it answers with something that it has seen, or with nonsense. It is \
here so that the code can be shown and tested on text without a download; it measures no quality.

| file | content |
|---|---|
| `model.safetensors`, `config.json` | the weights (fp32) and their geometry |
| `generation_config.json` | end tokens; greedy decoding |
| `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` | a byte-level BPE trained on \
the corpus, with the published names of the special tokens; ChatML, with and without thinking |
| `prompts.txt` | the prompts that `scripts/demo` shows |

Everything in this directory, this page included, is written by

    python scripts/train_demo.py --seed {seed} --steps {steps} --threads {threads}

on the CPU, through `qwen35.forward` and torch's autograd ({minutes:.0f} minutes here, torch \
{torch}). The seed decides corpus order and initial weights; another number of threads or \
another CPU rounds differently and ends in other weights of the same quality. Checked before it \
was written: of {asked} prompts (each fact as plain text and as a chat turn, some with a thought \
before the answer, and a little small talk), {right} are answered token for token by greedy \
decoding.

Corpus, tokenizer and weights are under the repository's licence.
"""


def write_checkpoint(
    directory: Path, params: qwen35.Params, tokenizer: PreTrainedTokenizerBase, readme: str
) -> None:
    """Write the whole directory aside, then put it in the place of `directory`."""
    aside = directory.with_name(directory.name + ".new")
    old = directory.with_name(directory.name + ".old")
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    qwen35.save(params, aside)
    tokenizer.save_pretrained(aside)
    generation = {
        "do_sample": False,
        "eos_token_id": list(params.config.eos_token_ids),
        "pad_token_id": params.config.pad_token_id,
    }
    for name, text in {
        "generation_config.json": json.dumps(generation, indent=2) + "\n",
        "prompts.txt": "\n".join(demo_corpus.PROMPTS) + "\n",
        "README.md": readme,
    }.items():
        (aside / name).write_text(text, encoding="utf-8")
    if directory.exists():
        directory.rename(old)
    aside.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "demo", metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    started = time.monotonic()

    facts = demo_corpus.facts()
    tokenizer = train_tokenizer(
        (f"{fact.question}\n{fact.prompt}{fact.answer}" for fact in facts), CONTEXT_LENGTH
    )
    config = demo_config(tokenizer)
    runtime = qwen35.Runtime(chunk=CHUNK)
    params = qwen35.init_params(config, seed=options.seed, runtime=runtime)
    params = with_long_memory(params, options.seed)
    batches = endless_batches(tokenized(tokenizer), random.Random(options.seed))
    params = train(params, batches, options.steps)

    asked = [(prompt, answer) for (prompt, _), (answer, _) in demo_corpus.documents()]
    wrong = wrong_answers(params, tokenizer, asked)
    right = len(asked) - len(wrong)
    print(f"{right} of {len(asked)} prompts answered as memorised", file=sys.stderr)
    for prompt in wrong:
        print(f"  wrong: {prompt!r}", file=sys.stderr)
    if right < REQUIRED_RECALL * len(asked) or set(wrong) & set(demo_corpus.PROMPTS):
        print("not good enough: nothing written; more --steps may help", file=sys.stderr)
        return 1
    readme = README.format(
        parameters=config.parameter_count,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        facts=len(facts),
        seed=options.seed,
        steps=options.steps,
        threads=options.threads,
        minutes=(time.monotonic() - started) / 60,
        torch=torch.__version__.split("+")[0],
        asked=len(asked),
        right=right,
    )
    write_checkpoint(options.output, params, tokenizer, readme)
    print(f"written to {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
