"""The text demo: a tiny Qwen3.5 hybrid that memorises a few hundred facts (corpus.py)."""

import itertools
import random
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence

import corpus
import torch
from corpus import END_OF_TEXT, IM_END
from tokenizer import train_tokenizer
from tqdm import tqdm
from training import Padded, Row, pad, train, with_long_memory, write_checkpoint
from transformers import PreTrainedTokenizerBase

import qwen35

STEPS = 700
ROWS = 24  # texts of a training step
CONTEXT_LENGTH = 1024
VOCAB_SIZE = 1280
CHUNK = 16  # tokens of a DeltaNet chunk: most texts are shorter than 64
PEAK_LEARNING_RATE = 3e-3
REQUIRED_RECALL = 0.995

# What comes before an answer can't be foreseen: at full weight it would drown the answers' loss.
PROMPT_WEIGHT = 0.1


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


def tokenized(tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """The corpus, a row each: every text starts from an empty state, as a prompt does."""
    return [
        [
            (token, 1.0 if is_answer else PROMPT_WEIGHT)
            for text, is_answer in document
            for token in tokenizer(text)["input_ids"]
        ]
        for document in corpus.documents()
    ]


def endless_batches(rows: Sequence[Row], rng: random.Random) -> Iterator[Padded]:
    """Epoch after epoch, in batches of rows of similar length, in an order that `rng` shuffles."""
    while True:
        ordered = sorted(rows, key=lambda row: (len(row) // 8, rng.random()))
        batches = [ordered[start : start + ROWS] for start in range(0, len(ordered), ROWS)]
        rng.shuffle(batches)
        yield from map(pad, batches)


def all_logits(params: qwen35.Params, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] at every position of right-padded rows, from an empty state."""
    state = qwen35.init_state(params, batch=tokens.shape[0], capacity=tokens.shape[1])
    hidden, _ = qwen35.forward(params, state, tokens, lengths)
    return qwen35.logits(params, hidden)


def loss(params: qwen35.Params, batch: Padded) -> torch.Tensor:
    """Weighted next-token cross-entropy."""
    tokens, lengths, following, weights = batch
    logits = all_logits(params, tokens, lengths).flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, following.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def adamw(params: qwen35.Params) -> list[torch.optim.Optimizer]:
    """AdamW on all parameters."""
    leaves = torch.utils._pytree.tree_leaves(params)
    return [torch.optim.AdamW(leaves, PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)]


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
stories of `scripts/demos/corpus.py` by heart, in English sentences and as chat turns, and nothing \
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

    python scripts/demos/train.py text --seed {seed} --steps {steps} --threads {threads}

on the CPU, through `qwen35.forward` and torch's autograd ({minutes:.0f} minutes here, torch \
{torch}). The seed decides corpus order and initial weights; another number of threads or \
another CPU rounds differently and ends in other weights of the same quality. Checked before it \
was written: of {asked} prompts (each fact as plain text and as a chat turn, some with a thought \
before the answer, and a little small talk), {right} are answered token for token by greedy \
decoding.

Corpus, tokenizer and weights are under the repository's licence.
"""


def run(options: Namespace) -> bool:
    """Trains, checks and writes the checkpoint; False if it is not good enough."""
    started = time.monotonic()
    facts = corpus.facts()
    tokenizer = train_tokenizer(
        (f"{fact.question}\n{fact.prompt}{fact.answer}" for fact in facts),
        VOCAB_SIZE,
        CONTEXT_LENGTH,
    )
    config = demo_config(tokenizer)
    runtime = qwen35.Runtime(chunk=CHUNK)
    params = qwen35.init_params(config, seed=options.seed, runtime=runtime)
    params = with_long_memory(params, options.seed)
    rows = tokenized(tokenizer)

    def batches(start: int) -> Iterator[Padded]:
        return itertools.islice(endless_batches(rows, random.Random(options.seed)), start, None)

    params = train(params, adamw, batches, loss, options.steps, options.keep)

    asked = [(prompt, answer) for (prompt, _), (answer, _) in corpus.documents()]
    wrong = wrong_answers(params, tokenizer, asked)
    right = len(asked) - len(wrong)
    print(f"{right} of {len(asked)} prompts answered as memorised", file=sys.stderr)
    for prompt in wrong:
        print(f"  wrong: {prompt!r}", file=sys.stderr)
    if right < REQUIRED_RECALL * len(asked) or set(wrong) & set(corpus.PROMPTS):
        return False
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
    files = {"prompts.txt": "\n".join(corpus.PROMPTS) + "\n", "README.md": readme}
    write_checkpoint(options.output, params, tokenizer, files)
    return True
