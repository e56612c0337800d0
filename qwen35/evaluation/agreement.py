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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks.choices import DTYPES
from ..checks.values import integer
from ..files.checkpoint import load
from ..files.likeness import check_same_checkpoint
from ..model.config import Config
from ..model.params import Runtime
from ..prompts.tokenizer import Tokenizer
from ..sharding import process
from ..sharding.mesh import Mesh
from ..xla.progress import progress_bar
from .models import Model, OfFirstRank, Qwen35Model
from .reference import NAME, TransformersModel, require, require_peft

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


def measure(
    directory: str | Path,
    texts: Sequence[str] = PROMPTS,
    *,
    dtypes: Sequence[str] = DTYPES,
    weights: str | None = None,
    head: str | None = None,
    adapter: str | Path | None = None,
    max_new_tokens: int = 32,
    device: str = "xla",
    runtime: Runtime = Runtime(),
    check_finite: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Compares a checkpoint here with the same checkpoint in transformers.

    With one process per rank, the dp rows of the mesh share the prompts out; transformers runs in
    the first process of each. All return the same.

    The reference is transformers in float32 on the CPU, whatever is compared with it: this package
    in each of `dtypes`, and with bfloat16 among them transformers in bfloat16 too, which shows what
    bfloat16 alone comes to. Two models are in memory at a time.

    Args:
        directory: the checkpoint.
        texts: prompts.
        weights, head: how this package quantises, as for `load`.
        adapter: one in PEFT's form, which PEFT merges into the reference; as for `load`.
        max_new_tokens: the most tokens to write after each.
        device: "xla" or "cpu", where this package runs.
        runtime: on which ranks.

    Returns:
        Plain values for JSON: the settings, and `comparisons`, for each its `model`, `dtype`,
        `weights`, `head`, `device` and what `agreement` returns. `seconds` of it all.

    Raises:
        ValueError: transformers, or PEFT for an adapter, can't be imported; a prompt is empty or
            too long; or the processes' checkpoints differ.
    """
    require()
    if adapter is not None:
        require_peft()
    max_new_tokens = integer("max_new_tokens", max_new_tokens)
    start = time.perf_counter()
    tokenizer, config = Tokenizer.from_pretrained(directory), Config.from_pretrained(directory)
    prompts = list(map(tokenizer.encode, texts))
    longest = max(map(len, prompts), default=0) + max_new_tokens
    if not prompts or not all(prompts):
        raise ValueError("a prompt is empty: at least one token is needed")
    if longest > config.max_context:
        raise ValueError(
            f"the longest prompt and {max_new_tokens} more tokens are {longest}, over the model's "
            f"max_position_embeddings of {config.max_context}"
        )
    ends = frozenset((*config.eos_token_ids, *tokenizer.end_token_ids))
    mesh, rank = runtime.mesh, runtime.rank
    if mesh is not None and mesh.size > 1 and rank is not None:
        check_same_checkpoint(directory, adapter)
    replicas = mesh if mesh is not None and rank is not None and mesh.dp > 1 else None
    if replicas is not None:
        prompts = process.dealt(prompts, replicas, runtime.own_rank)

    def transformers(dtype: str) -> Model:
        make = functools.partial(TransformersModel, directory, dtype, adapter)
        return make() if mesh is None or rank is None else OfFirstRank(make, mesh, rank)

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
                adapter=adapter,
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
            replicas=replicas,
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
    replicas: Mesh | None = None,
) -> dict[str, Any]:
    """Compares a candidate with the reference.

    Args:
        prompts: token ids.
        continuations: what the reference wrote after each, with `greedy`.
        ends: tokens that end a text.
        max_new_tokens: the most that the continuations could have.
        decode: token ids to text, for people.
        replicas: of processes whose dp rows each have some of the prompts (`process.dealt`): what
            is returned is of all.

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
    pairs: list[tuple[dict[str, Any], Compared]] = []
    rows = list(zip(prompts, continuations, written, strict=True))
    with progress_bar("compare", len(rows), "prompt", progress) as bar:
        for prompt, wanted, got in rows:
            tokens, count = [*prompt, *wanted[:-1]], len(wanted)
            known = reference.logits(tokens, count)
            here = compare(known, candidate.logits(tokens, count))
            pairs.append((_entry(list(prompt), list(wanted), got, known, here, decode), here))
            bar.update(1)
    if replicas is not None:
        pairs = process.undealt(pairs, replicas)
    entries, compared = [entry for entry, _ in pairs], [here for _, here in pairs]
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
