"""Log probabilities of given tokens: what perplexity and multiple-choice tasks are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .devices import device_put
from .jit import jit
from .model import forward, logits
from .params import Params
from .progress import compile_progress
from .state import State, init_state

CHUNK = 256
_SMALLEST = 16  # of chunks and capacities: rows of a few tokens share one graph
_POSITIONS = 64  # whose logits exist at a time: 62 MiB of them at a vocabulary of 248,320


class Scores(NamedTuple):
    """What the model says of a row of n tokens, on the CPU; entry i is about token i + 1.

    logprobs [n-1] float32: its log probability (natural) after all tokens before it.
    greedy [n-1] bool: whether it is the most likely token there.
    """

    logprobs: Tensor
    greedy: Tensor


def score(
    params: Params,
    rows: Sequence[Sequence[int]],
    *,
    batch: int = 1,
    chunk: int = CHUNK,
    progress: bool = False,
) -> list[Scores]:
    """Scores every token of each row but the first, which nothing precedes.

    Rows go through the model `chunk` tokens at a time with the state carried from one chunk to the
    next, so that neither chunk nor batch changes a score beyond rounding. One graph serves all
    rows of a call; logits of a few positions exist at a time, however long a row is.

    Args:
        params: the parameters, on the device to run on.
        rows: token ids, at least two in each.
        batch: rows that go together, those of similar length.
        chunk: tokens of a row that a step takes.
        progress: draw progress on standard error.

    Raises:
        ValueError: a row of fewer than two tokens, an id outside the vocabulary, or a row longer
            than the model's `max_position_embeddings`.
    """
    check_counts(batch=batch, chunk=chunk)
    _check_rows(params, rows)
    results: list[Scores | None] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    longest = len(rows[order[0]]) - 1 if rows else 0
    batch, chunk = min(batch, max(1, len(rows))), min(chunk, ladder(longest))
    capacity = min(params.config.max_position_embeddings, ladder(longest))
    with _bar(sum(map(len, rows)) - len(rows), progress) as bar:
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            group = [rows[index] for index in chosen]
            group += [[]] * (batch - len(group))  # idle rows: the graph stays the same
            parts = list(_score_group(params, group, chunk, capacity, progress, bar))
            logprobs, greedy = (torch.cat(column, 1) for column in zip(*parts, strict=True))
            for row, index in enumerate(chosen):
                known = len(rows[index]) - 1
                results[index] = Scores(logprobs[row, :known].clone(), greedy[row, :known].clone())
    return results


def _score_group(
    params: Params,
    group: list[Sequence[int]],
    chunk: int,
    capacity: int,
    progress: bool,
    bar: tqdm,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores of `chunk` tokens at a time: logprobs and greedy, [B, chunk] each."""
    step = _step(params.device.type == "xla", progress)
    state = init_state(params, len(group), capacity)
    for start in range(0, max(map(len, group)) - 1, chunk):
        pieces = [list(row[start : start + chunk + 1]) for row in group]
        tokens = torch.tensor([piece + [0] * (chunk + 1 - len(piece)) for piece in pieces])
        lengths = torch.tensor([max(0, len(piece) - 1) for piece in pieces])
        inputs = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), lengths)
        inputs = device_put(inputs, params.device.type)
        logprobs, greedy, state = step(params, state, *inputs)
        yield device_put((logprobs, greedy), "cpu")
        bar.update(int(lengths.sum()))


def _score_step(
    params: Params, state: State, tokens: Tensor, targets: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, State]:
    hidden, state = forward(params, state, tokens, lengths)
    logprobs, greedy = [], []
    blocks = hidden.flatten(0, 1).split(_POSITIONS)
    for block, target in zip(blocks, targets.flatten().split(_POSITIONS), strict=True):
        said = logits(params, block)
        logprobs.append(said.log_softmax(-1).gather(1, target[:, None]).squeeze(1))
        greedy.append(said.argmax(-1) == target)
    shape = tokens.shape
    return torch.cat(logprobs).reshape(shape), torch.cat(greedy).reshape(shape), state


@functools.cache
def _step(compiled: bool, progress: bool) -> Callable[..., Any]:
    """The step, compiled for XLA; compiled graphs are shared between calls."""
    if not compiled:
        return torch.no_grad()(_score_step)
    return jit(_score_step, donate=("state",), progress=compile_progress if progress else None)


def ladder(length: int) -> int:
    """The power of two that holds `length` tokens, so that similar lengths share a graph."""
    return max(_SMALLEST, 1 << (max(length, 1) - 1).bit_length())


def check_counts(**values: Any) -> None:
    """Raises ValueError unless all values are positive integers."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")


def _check_rows(params: Params, rows: Sequence[Sequence[int]]) -> None:
    vocabulary, limit = params.config.vocab_size, params.config.max_position_embeddings
    for number, row in enumerate(rows):
        if len(row) < 2:
            raise ValueError(
                f"row {number} has {len(row)} tokens: at least one to score and one before it "
                "are needed"
            )
        if len(row) - 1 > limit:
            raise ValueError(
                f"row {number} has {len(row)} tokens, over the model's max_position_embeddings "
                f"of {limit}"
            )
        wrong = next((token for token in row if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise ValueError(
                f"row {number} has token id {wrong}, outside the vocabulary of {vocabulary}"
            )


def _bar(tokens: int, show: bool) -> tqdm:
    return tqdm(total=tokens, desc="score", unit="token", disable=not show, leave=False)
