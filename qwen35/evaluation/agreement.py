"""How far a model agrees with a reference on the same checkpoint: logits and greedy tokens.

Two questions are asked of each prompt. *Teacher-forced*: after the prompt and each of the tokens
that the reference wrote, how far apart are the two distributions of the next one? *Free-running*:
how many tokens do both write alike, each going on from its own? The first has an answer at every
token; the second says what a user sees, and one near tie decides all that follows.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..checks.values import integer
from ..files.checkpoint import load
from ..generation.buckets import doubling
from ..generation.generate import generate
from ..generation.sampling import Sampling
from ..model.config import Config
from ..model.decoder import forward, logits
from ..model.params import Params, Runtime
from ..model.state import State, init_state
from ..prompts.tokenizer import Tokenizer, TokenizerLike
from ..sharding import process
from ..sharding.mesh import Mesh
from ..xla.compiled import compiled
from ..xla.devices import device_put
from ..xla.progress import show_compilations
from .reference import NAME, TransformersModel, require
from .scoring import CHUNK

# Languages, code, arithmetic, and places where a line goes on.
PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a little fox",
    "To be, or not to be, that is",
    "Dear Sir or Madam,\n\nI am writing to",
    "Die Hauptstadt von Deutschland heißt",
    "水の沸点は摂氏",
    "2 + 2 = 4, 4 + 4 = 8, 8 + 8 =",
    'def fibonacci(n: int) -> int:\n    """',
)
_TOP = 5
_BATCH = 8


class Model(Protocol):
    """What is compared."""

    def logits(self, tokens: Sequence[int], last: int) -> Tensor:
        """Returns logits [last, V] float32, on the CPU, after each of the last tokens."""

    def greedy(
        self, prompts: Sequence[Sequence[int]], count: int, ends: Collection[int]
    ) -> list[list[int]]:
        """Writes for each prompt the likeliest tokens, to an end token or `count` of them."""


class OfFirstRank:
    """A `Model` that only the first of several processes has; the others get its answers.

    Args:
        make: makes the model, where it is.
        mesh: of the processes; its ranks are of one dp row.
        rank: this process's.
    """

    def __init__(self, make: Callable[[], Model], mesh: Mesh, rank: int) -> None:
        self._mesh = mesh
        self._model = make() if rank == 0 else None

    def logits(self, tokens: Sequence[int], last: int) -> Tensor:
        answer = self._model.logits(tokens, last) if self._model is not None else None
        return process.from_first(answer, self._mesh)

    def greedy(
        self, prompts: Sequence[Sequence[int]], count: int, ends: Collection[int]
    ) -> list[list[int]]:
        answer = self._model.greedy(prompts, count, ends) if self._model is not None else None
        return process.from_first(answer, self._mesh)


class Compared(NamedTuple):
    """Two models' distributions at n positions; all [n], on the CPU.

    kl float64: the Kullback-Leibler divergence of the candidate's from the reference's, in nats.
    top1 bool: whether both have the same likeliest token. top5 float64: the share of the
    reference's five likeliest tokens that are among the candidate's. difference float64: of logits,
    the largest.
    """

    kl: Tensor
    top1: Tensor
    top5: Tensor
    difference: Tensor


def compare(reference: Tensor, candidate: Tensor) -> Compared:
    """Compares logits [n, V] with the reference's, in float64."""
    reference, candidate = reference.double(), candidate.double()
    p, q = reference.log_softmax(-1), candidate.log_softmax(-1)
    count = min(_TOP, reference.shape[1])
    top, other = reference.topk(count).indices, candidate.topk(count).indices
    return Compared(
        kl=(p.exp() * (p - q)).sum(-1).clamp(min=0.0),  # rounding alone goes below 0
        top1=reference.argmax(-1) == candidate.argmax(-1),
        top5=(top[:, :, None] == other[:, None, :]).sum((1, 2)).double() / count,
        difference=(reference - candidate).abs().amax(-1),
    )


class Qwen35Model:
    """Our parameters as a `Model`: `forward` for logits, `generate` for tokens.

    Args:
        params: on the device to run on.
        tokenizer: the checkpoint's.
        longest: tokens that a prompt and its continuation have at most.
        chunk: tokens that a step takes.
        progress: show compilations on standard error.
    """

    def __init__(
        self,
        params: Params,
        tokenizer: TokenizerLike,
        longest: int,
        *,
        chunk: int = CHUNK,
        progress: bool = False,
    ) -> None:
        self.params = params
        self._tokenizer = tokenizer
        self._capacity = min(doubling(longest), params.config.max_position_embeddings)
        self._chunk = min(chunk, self._capacity)
        self._progress = progress

    def logits(self, tokens: Sequence[int], last: int) -> Tensor:
        with show_compilations(self._progress):
            return self._logits(tokens, last)

    def _logits(self, tokens: Sequence[int], last: int) -> Tensor:
        read, project = compiled(_read_step, donate=("state",)), compiled(_logits_step)
        state, parts = init_state(self.params, 1, self._capacity), []
        for start in range(0, len(tokens), self._chunk):
            piece = list(tokens[start : start + self._chunk])
            row = torch.tensor([piece + [0] * (self._chunk - len(piece))])
            inputs = device_put((row, torch.tensor([len(piece)])), self.params.device.type)
            hidden, state = read(self.params, state, *inputs)
            parts.append(device_put(hidden, "cpu")[0, : len(piece)])
        # A whole power of two of positions, so that prompts share a graph.
        hidden = F.pad(torch.cat(parts)[-last:], (0, 0, 0, doubling(last) - last))
        result = project(self.params, device_put(hidden, self.params.device.type))
        return device_put(result, "cpu")[:last]

    def greedy(
        self, prompts: Sequence[Sequence[int]], count: int, ends: Collection[int]
    ) -> list[list[int]]:
        sampling = Sampling(stop=sorted(ends))
        written: list[list[int]] = []
        for start in range(0, len(prompts), _BATCH):
            completions = generate(
                self.params,
                self._tokenizer,
                [list(prompt) for prompt in prompts[start : start + _BATCH]],
                max_new_tokens=count,
                sampling=sampling,
                capacity=self._capacity,
                progress=self._progress,
            )
            written += [list(completion.tokens) for completion in completions]
        return written


@torch.no_grad()
def _read_step(
    params: Params, state: State, tokens: Tensor, lengths: Tensor
) -> tuple[Tensor, State]:
    return forward(params, state, tokens, lengths)


@torch.no_grad()
def _logits_step(params: Params, hidden: Tensor) -> Tensor:
    return logits(params, hidden)


def measure(
    directory: str | Path,
    texts: Sequence[str] = PROMPTS,
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    weights: str | None = None,
    head: str | None = None,
    max_new_tokens: int = 32,
    device: str = "xla",
    runtime: Runtime = Runtime(),
    check_finite: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Compares a checkpoint here with the same checkpoint in transformers.

    With one process per rank, transformers runs in the first, and all return the same.

    The reference is transformers in float32 on the CPU, whatever is compared with it: this package
    in each of `dtypes`, and with bfloat16 among them transformers in bfloat16 too, which shows what
    bfloat16 alone comes to. Two models are in memory at a time.

    Args:
        directory: the checkpoint.
        texts: prompts.
        weights, head: how this package quantises, as for `load`.
        max_new_tokens: the most tokens to write after each.
        device: "xla" or "cpu", where this package runs.
        runtime: on which ranks, of one dp row.

    Returns:
        Plain values for JSON: the settings, and `comparisons`, for each its `model`, `dtype`,
        `weights`, `head`, `device` and what `agreement` returns. `seconds` of it all.

    Raises:
        ValueError: transformers can't be imported; a prompt is empty or too long.
    """
    require()
    max_new_tokens = integer("max_new_tokens", max_new_tokens)
    start = time.perf_counter()
    tokenizer, config = Tokenizer.from_pretrained(directory), Config.from_pretrained(directory)
    prompts = list(map(tokenizer.encode, texts))
    longest = max(map(len, prompts), default=0) + max_new_tokens
    if not prompts or not all(prompts):
        raise ValueError("a prompt is empty: at least one token is needed")
    if longest > config.max_position_embeddings:
        raise ValueError(
            f"the longest prompt and {max_new_tokens} more tokens are {longest}, over the model's "
            f"max_position_embeddings of {config.max_position_embeddings}"
        )
    ends = frozenset((*config.eos_token_ids, *tokenizer.end_token_ids))

    def transformers(dtype: str) -> Model:
        make = functools.partial(TransformersModel, directory, dtype)
        if runtime.mesh is None or runtime.rank is None:
            return make()
        return OfFirstRank(make, runtime.mesh, runtime.rank)

    reference = transformers("float32")
    continuations = reference.greedy(prompts, max_new_tokens, ends)
    comparisons = []
    theirs = [(NAME, dtype) for dtype in dtypes if dtype == "bfloat16"]
    for name, dtype in [*(("qwen35", dtype) for dtype in dtypes), *theirs]:
        candidate: Model
        if name == NAME:
            candidate = transformers(dtype)
        else:
            params = load(
                directory,
                dtype=dtype,
                weights=weights,
                head=head,
                device=device,
                runtime=runtime,
                check_finite=check_finite,
                vision=False,
                progress=progress,
            )
            candidate = Qwen35Model(params, tokenizer, longest, progress=progress)
            del params
        result = agreement(
            reference,
            candidate,
            prompts,
            continuations,
            ends=ends,
            max_new_tokens=max_new_tokens,
            decode=tokenizer.decode,
            progress=progress,
        )
        ours = name != NAME
        made = {"weights": weights if ours else None, "head": head if ours else None}
        where = device if ours else "cpu"
        comparisons.append({"model": name, "dtype": dtype, **made, "device": where, **result})
        del candidate
    return {
        "reference": {"model": NAME, "dtype": "float32", "device": "cpu"},
        "max_new_tokens": max_new_tokens,
        "comparisons": comparisons,
        "seconds": time.perf_counter() - start,
    }


def agreement(
    reference: Model,
    candidate: Model,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    ends: Collection[int] = (),
    max_new_tokens: int,
    decode: Callable[[list[int]], str],
    progress: bool = False,
) -> dict[str, Any]:
    """Compares a candidate with the reference.

    Args:
        prompts: token ids.
        continuations: what the reference wrote after each, with `greedy`.
        ends: tokens that end a text.
        max_new_tokens: the most that the continuations could have.
        decode: token ids to text, for people.

    Returns:
        Plain values for JSON. Teacher-forced, over all positions at which a token of a continuation
        is chosen: `positions`, and of `Compared` `top1`, `top5`, `kl_mean`, `kl_max`,
        `logit_difference`. Free-running: `equal_tokens`, written alike before the first that
        differs, as a share of what the reference wrote, and `equal_prompts`, of which all are.
        `prompts`: the same for each, with `prompt`, `reference`, `candidate` (what they wrote) and
        `first_difference`: None, or `position`, the two tokens there, and `margin`, by how much
        the reference's logit of its own token is above that of the candidate's. `by_position`: of
        the i-th token `kl_mean`, `kl_max` and `equal`, the share of prompts alike up to it.
    """
    written = candidate.greedy(prompts, max_new_tokens, ends)
    entries, compared = [], []
    rows = list(zip(prompts, continuations, written, strict=True))
    for prompt, wanted, got in tqdm(rows, "compare", unit="prompt", disable=not progress):
        tokens, count = [*prompt, *wanted[:-1]], len(wanted)
        known = reference.logits(tokens, count)
        here = compare(known, candidate.logits(tokens, count))
        compared.append(here)
        entries.append(_entry(list(prompt), list(wanted), got, known, here, decode))
    lengths = sum(entry["positions"] for entry in entries)
    everywhere = Compared(*(torch.cat(column) for column in zip(*compared, strict=True)))
    equal = sum(entry["equal_tokens"] * entry["positions"] for entry in entries)
    return {
        **_measures(everywhere),
        "equal_tokens": equal / lengths,
        "equal_prompts": sum(entry["first_difference"] is None for entry in entries),
        "prompts": entries,
        "by_position": _by_position(entries, compared),
    }


def _measures(compared: Compared) -> dict[str, Any]:
    return {
        "positions": len(compared.kl),
        "top1": float(compared.top1.double().mean()),
        "top5": float(compared.top5.mean()),
        "kl_mean": float(compared.kl.mean()),
        "kl_max": float(compared.kl.max()),
        "logit_difference": float(compared.difference.max()),
    }


def _entry(
    prompt: list[int],
    wanted: list[int],
    got: list[int],
    known: Tensor,
    compared: Compared,
    decode: Callable[[list[int]], str],
) -> dict[str, Any]:
    pairs = list(zip(wanted, got, strict=False))
    position = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    difference = None
    if position is not None:
        one, other = pairs[position]
        difference = {
            "position": position,
            "reference": decode([one]),
            "candidate": decode([other]),
            "margin": float(known[position, one] - known[position, other]),
        }
    return {
        "prompt": decode(prompt),
        **_measures(compared),
        "equal_tokens": (len(wanted) if position is None else position) / len(wanted),
        "first_difference": difference,
        "reference": decode(wanted),
        "candidate": decode(got),
    }


def _by_position(entries: list[dict], compared: list[Compared]) -> list[dict[str, Any]]:
    positions = []
    for position in range(max(entry["positions"] for entry in entries)):
        values = torch.stack([one.kl[position] for one in compared if len(one.kl) > position])
        alike = [
            entry["first_difference"] is None or entry["first_difference"]["position"] > position
            for entry in entries
        ]
        positions.append(
            {
                "position": position,
                "kl_mean": float(values.mean()),
                "kl_max": float(values.max()),
                "equal": sum(alike) / len(alike),
            }
        )
    return positions
