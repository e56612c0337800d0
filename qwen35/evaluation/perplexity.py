"""Perplexity and bits per byte of texts, with every token counted once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..checks.values import integer
from ..model.params import Params
from ..prompts.tokenizer import Tokenizer, encode
from ..reports.tables import markdown_table
from .scoring import CHUNK, Scores, score

WINDOW = 4096


class Window(NamedTuple):
    """Tokens start to end of a text go through the model together; first to end are scored."""

    start: int
    first: int
    end: int


def windows(count: int, window: int, stride: int) -> Iterator[Window]:
    """Windows over `count` tokens that score each of them but token 0 exactly once.

    A window begins `stride` tokens after the one before it and scores what that one has not: but
    in the first window, a token is seen with at least `window - stride` tokens before it.
    """
    first = 1
    for start in range(0, count, stride):
        end = min(start + window, count)
        yield Window(start, first, end)
        first = end
        if end == count:
            return


def perplexity(
    params: Params,
    tokenizer: Tokenizer,
    texts: Mapping[str, str],
    *,
    window: int | None = None,
    stride: int | None = None,
    prefix: str = "",
    batch: int = 1,
    chunk: int = CHUNK,
    progress: bool = False,
) -> dict[str, Any]:
    """Measures how well the model predicts texts.

    A text that fits the window is read once from beginning to end, the state carried along. Of a
    longer one the window slides over: a new window begins `stride` tokens further with an empty
    state and reads the tokens that it shares with the last one as context only.

    Without a prefix nothing precedes a text's first token, so that it is not scored and its bytes
    are not counted; with one, all tokens are. Special tokens written in a text are taken as such.

    Args:
        params: the parameters, on the device to run on.
        tokenizer: the checkpoint's, a byte-level BPE as all of Qwen3.5's are.
        texts: by name.
        window: the most tokens that are in the model's state at once; None is the smaller of 4096
            and the model's `max_position_embeddings`.
        stride: see `windows`; None is half the window.
        prefix: stands before each text, is neither scored nor counted; for example
            "<|endoftext|>".
        batch, chunk, progress: see `score`.

    Returns:
        Plain values for JSON. `total`, and for each text a member of `texts` with its `name`:
        `bytes` (of UTF-8), `tokens`, `scored_tokens`, `scored_bytes`, `windows`, `nats` (the sum
        over scored tokens), `perplexity` (exp of nats per scored token), `bits_per_token`,
        `bits_per_byte` (nats / ln 2 / scored bytes), `accuracy` (the share of scored tokens that
        are the model's most likely one). `by_context`: nats per token by how many tokens preceded
        it, in powers of two. `seconds` of it all, compilation included.

    Raises:
        ValueError: a text without a token to score; window or stride out of range.
    """
    limit = params.config.max_context
    window = min(WINDOW, limit) if window is None else integer("window", window)
    stride = max(1, window // 2) if stride is None else integer("stride", stride)
    if not 2 <= window <= limit:
        raise ValueError(
            f"window is {window}: it must be from 2 to the model's max_position_embeddings, {limit}"
        )
    if stride >= window:
        raise ValueError(
            f"stride is {stride}, window {window}: the stride must be smaller, or a window's first "
            "token would have nothing before it"
        )
    start = time.perf_counter()
    before = _encode(tokenizer, prefix)
    if len(before) > window - stride:
        raise ValueError(f"prefix has {len(before)} tokens: the window of {window} has no room")
    plans = [_plan(tokenizer, name, text, before, window, stride) for name, text in texts.items()]
    rows = [plan.tokens[w.start : w.end] for plan in plans for w in plan.windows]
    scores = iter(score(params, rows, batch=batch, chunk=chunk, progress=progress))
    entries, bins = [], {}
    for plan in plans:
        entries.append(_measure(plan, [next(scores) for _ in plan.windows], bins))
    return {
        "window": window,
        "stride": stride,
        "prefix": prefix,
        "total": _rates({key: sum(entry[key] for entry in entries) for key in _SUMS}),
        "texts": [{"name": entry["name"], **_rates(entry)} for entry in entries],
        "by_context": [
            {"from": low, "to": 2 * low - 1, "tokens": count, "nats_per_token": nats / count}
            for low, (count, nats) in sorted(bins.items())
        ],
        "seconds": time.perf_counter() - start,
    }


_SUMS = ("bytes", "tokens", "scored_tokens", "scored_bytes", "windows", "nats", "correct")


class _Plan(NamedTuple):
    name: str
    bytes: int
    tokens: list[int]  # with the prefix
    prefix: int
    scored_bytes: int
    windows: list[Window]


def _plan(
    tokenizer: Tokenizer, name: str, text: str, before: list[int], window: int, stride: int
) -> _Plan:
    tokens = _encode(tokenizer, text)
    size = len(text.encode("utf-8"))
    if len(tokens) + bool(before) < 2:
        raise ValueError(
            f"{name}: {len(tokens)} token{'s' * (len(tokens) != 1)}, none to score: a text needs "
            "two, or one and a prefix"
        )
    unscored = 0 if before else _token_bytes(tokenizer, tokens[0])
    tokens = before + tokens
    plan = list(windows(len(tokens), window, stride))
    plan[0] = plan[0]._replace(first=max(1, len(before)))
    return _Plan(name, size, tokens, len(before), size - unscored, plan)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    # Not verbose: a text longer than the model's context is nothing to warn of here.
    return encode(tokenizer.hf, text, add_special_tokens=False, verbose=False)


def _token_bytes(tokenizer: Tokenizer, token: int) -> int:
    """Counts the bytes that a token stands for: byte-level BPE writes each as one character."""
    return len(tokenizer.hf.convert_ids_to_tokens(token))


def _measure(plan: _Plan, scores: list[Scores], bins: dict[int, tuple[int, float]]) -> dict:
    """Sums up one text, and adds its tokens to `bins`, by context."""
    nats, correct, count = [], 0, 0
    for (start, first, end), row in zip(plan.windows, scores, strict=True):
        here = slice(first - start - 1, end - start - 1)
        values = -row.logprobs[here].double()
        nats += values.tolist()
        correct += int(row.greedy[here].sum())
        count += len(values)
        context = torch.arange(first - start, end - start)
        for low, value in zip(_powers(context), values.tolist(), strict=True):
            tokens, total = bins.get(low, (0, 0.0))
            bins[low] = (tokens + 1, total + value)
    return {
        "name": plan.name,
        "bytes": plan.bytes,
        "tokens": len(plan.tokens) - plan.prefix,
        "scored_tokens": count,
        "scored_bytes": plan.scored_bytes,
        "windows": len(plan.windows),
        "nats": math.fsum(nats),
        "correct": correct,
    }


def _powers(context: torch.Tensor) -> list[int]:
    return [1 << (int(tokens).bit_length() - 1) for tokens in context]


def _rates(sums: dict[str, Any]) -> dict[str, Any]:
    """Returns the sums of a text, or of all, with what is computed from them."""
    per_token = sums["nats"] / sums["scored_tokens"]
    result = {name: sums[name] for name in _SUMS if name != "correct"}
    return result | {
        "perplexity": math.exp(per_token) if per_token < 709 else math.inf,
        "bits_per_token": per_token / math.log(2),
        "bits_per_byte": sums["nats"] / math.log(2) / sums["scored_bytes"],
        "accuracy": sums["correct"] / sums["scored_tokens"],
    }


def render(result: Mapping[str, Any]) -> str:
    """Writes the result as a Markdown table and a sentence on how it was counted."""
    head = ("text", "bytes", "tokens", "scored", "perplexity", "bits/token", "bits/byte", "top-1")
    rows: Sequence[Mapping[str, Any]] = result["texts"]
    if len(rows) > 1:
        rows = [*rows, {"name": "**all**", **result["total"]}]
    cells = [
        (
            row["name"],
            f"{row['bytes']:,}",
            f"{row['tokens']:,}",
            f"{row['scored_tokens']:,}",
            f"{row['perplexity']:.4f}",
            f"{row['bits_per_token']:.4f}",
            f"{row['bits_per_byte']:.4f}",
            f"{row['accuracy']:.1%}",
        )
        for row in rows
    ]
    first = f"after the prefix {result['prefix']!r}" if result["prefix"] else "but the first"
    return "\n".join(
        [
            markdown_table(head, cells),
            "",
            f"All tokens of a text are scored {first}. Window {result['window']}, stride "
            f"{result['stride']}: a token is seen with what stands before it in the text, or with "
            f"{result['window'] - result['stride']} to {result['window'] - 1} tokens of it.",
        ]
    )
