"""Log probabilities of given tokens: what perplexity and multiple-choice tasks are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks.values import integer
from ..generation.buckets import doubling
from ..model.all_ranks import dp_rows_here
from ..model.decoder import forward, logits
from ..model.params import Params
from ..model.rows import take_state
from ..model.state import State, init_state
from ..prompts.inputs import Ids, encode_row, encode_rows
from ..sharding.process import dealt, undealt
from ..xla.compiled import Compiled, compiled
from ..xla.devices import device_put
from ..xla.progress import Bar, NoBar, compile_all, progress_bar

CHUNK = 256
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
    rows: Sequence[Ids],
    *,
    batch: int = 1,
    chunk: int = CHUNK,
    progress: bool = False,
) -> list[Scores]:
    """Scores every token of each row but the first, which nothing precedes.

    With one process per rank the dp rows of the mesh share the rows out, and all get all scores.

    Rows go through the model `chunk` tokens at a time with the state carried from one chunk to the
    next, so that neither chunk nor batch changes a score beyond rounding. One graph serves all
    rows of a call; logits of a few positions exist at a time, however long a row is.

    Args:
        params: the parameters, on the device to run on.
        rows: token ids, at least two in each: lists, arrays or mappings with input_ids.
        batch: rows that go together, those of similar length.
        chunk: tokens of a row that a step takes.
        progress: draw progress on standard error.

    Raises:
        ValueError: a row of fewer than two tokens, an id outside the vocabulary, or a row longer
            than the model's `max_position_embeddings`.
    """
    batch, chunk = integer("batch", batch), integer("chunk", chunk)
    rows = encode_rows(params, rows)
    _check_lengths(params, rows)
    mesh, rank = params.runtime.mesh, params.runtime.rank
    if mesh is None or mesh.dp == 1 or rank is None:
        return _score(params, rows, batch, chunk, progress)
    return undealt(_score(params, dealt(rows, mesh, rank), batch, chunk, progress), mesh)


def _score(
    params: Params, rows: Sequence[Sequence[int]], batch: int, chunk: int, progress: bool
) -> list[Scores]:
    results: dict[int, Scores] = {}
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    longest = len(rows[order[0]]) - 1 if rows else 0
    batch, chunk = _batch(params, batch, len(rows)), min(chunk, doubling(longest))
    capacity = _capacity(params, longest)
    if rows:
        compile_all(_graphs(params, batch, capacity, chunk), progress)
    with _bar(sum(map(len, rows)) - len(rows), progress) as bar:
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            state = init_state(params, batch, capacity)
            group = _filled([rows[index] for index in chosen], batch)
            scores = _score_group(params, state, group, chunk, bar)
            for index, row in zip(chosen, scores, strict=True):
                results[index] = row
    return [results[index] for index in range(len(rows))]


def score_continuations(
    params: Params,
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    batch: int = 1,
    chunk: int = CHUNK,
    progress: bool = False,
) -> Iterator[tuple[int, Scores]]:
    """Scores continuations of contexts, and yields (index of the pair, scores) as they come.

    Entry i of the scores is about token i of the continuation. A context is read once, and without
    logits, however many continuations it has: all of them go on from the same state.

    Args:
        params: the parameters, on the device to run on.
        pairs: token ids of a context and of a continuation, at least one in each.
        batch: contexts, and then continuations of theirs, that go together.
        chunk, progress: see `score`.

    Raises:
        ValueError: an empty context or continuation; else as `score`, of both as one row.
    """
    batch, chunk = integer("batch", batch), integer("chunk", chunk)
    encoded = [
        (
            encode_row(params, context, f"context {number}"),
            encode_row(params, continuation, f"continuation {number}"),
        )
        for number, (context, continuation) in enumerate(pairs)
    ]
    for number, (context, continuation) in enumerate(encoded):
        if not context or not continuation:
            empty = "continuation" if context else "context"
            raise ValueError(f"pair {number} has an empty {empty}: at least one token is needed")
    _check_lengths(params, [[*context, *continuation] for context, continuation in encoded])
    return _score_continuations(params, encoded, batch, chunk, progress)


def _score_continuations(
    params: Params,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch: int,
    chunk: int,
    progress: bool,
) -> Iterator[tuple[int, Scores]]:
    members: dict[tuple[int, ...], list[int]] = {}
    for index, (context, _) in enumerate(pairs):
        members.setdefault(tuple(context), []).append(index)
    contexts = sorted(members, key=len, reverse=True)
    longest = max((len(context) + len(more) - 1 for context, more in pairs), default=0)
    batch, capacity = _batch(params, batch, len(pairs)), _capacity(params, longest)
    dp_rows = dp_rows_here(params.runtime)
    read_chunk = min(chunk, doubling(len(contexts[0]) - 1)) if contexts else chunk
    score_chunk = min(chunk, doubling(max((len(more) for _, more in pairs), default=0)))
    total = sum(map(len, contexts)) - len(contexts) + sum(len(more) for _, more in pairs)
    if contexts:
        # Contexts of one token are not read: the continuation's first step has it.
        chunks = score_chunk, read_chunk if len(contexts[0]) > 1 else None
        compile_all(_graphs(params, batch, capacity, *chunks, forks=True), progress)
    with _bar(total, progress) as bar:
        for start in range(0, len(contexts), batch):
            group = contexts[start : start + batch]
            state = init_state(params, batch, capacity)
            # The last token of a context is read with the continuation, whose first it predicts.
            before = _filled([context[:-1] for context in group], batch)
            state = _read_group(params, state, before, read_chunk, bar)
            wanted = [[(len(pairs[index][1]), index) for index in members[key]] for key in group]
            for forks in _forks(wanted, batch, dp_rows):
                source = device_put(torch.tensor([row for row, _ in forks]), params.device.type)
                chosen = [index for _, index in forks if index is not None]
                rows: list[Sequence[int]] = [
                    () if index is None else [*pairs[index][0][-1:], *pairs[index][1]]
                    for _, index in forks
                ]
                fork = _FORK(params, state, source)
                scores = _score_group(params, fork, rows, score_chunk, bar)
                yield from zip(chosen, scores, strict=True)


def _forks(
    continuations: Sequence[Sequence[tuple[int, int]]], batch: int, dp_rows: int
) -> Iterator[list[tuple[int, int | None]]]:
    """Yields which continuations of a batch of contexts go together.

    Args:
        continuations: of each context, the length and the number of each.
        batch: how many go together; as many contexts have been read.
        dp_rows: each goes on from its own contexts.

    Yields:
        For each row of a batch the context's place in its dp row, and the continuation's number or
        None, where it is idle.
    """
    own = batch // dp_rows
    forks: list[list[tuple[int, int, int]]] = [[] for _ in range(dp_rows)]
    for row, wanted in enumerate(continuations):
        forks[row // own] += [(length, row % own, number) for length, number in wanted]
    for mine in forks:
        mine.sort(key=lambda fork: -fork[0])
    for first in range(0, max(map(len, forks)), own):
        rows: list[tuple[int, int | None]] = []
        for mine in forks:
            part = mine[first : first + own]
            rows += [(place, number) for _, place, number in part] + [(0, None)] * (own - len(part))
        yield rows


def _batch(params: Params, batch: int, rows: int) -> int:
    """Returns how many rows go together: some may be idle, where dp rows take equally many."""
    unit = dp_rows_here(params.runtime)
    return -(-min(batch, max(1, rows)) // unit) * unit


def _filled(rows: Sequence[Sequence[int]], batch: int) -> list[Sequence[int]]:
    """Adds idle rows up to the batch: the graph stays the same."""
    return [*rows, *[()] * (batch - len(rows))]


def _read_group(
    params: Params, state: State, group: list[Sequence[int]], chunk: int, bar: Bar | NoBar
) -> State:
    """Reads the rows' tokens and returns the state after them."""
    for start in range(0, max(map(len, group)), chunk):
        pieces = [row[start : start + chunk] for row in group]
        state = _READ(params, state, *_put_read(params, pieces, chunk))
        bar.update(sum(map(len, pieces)))
    return state


def _score_group(
    params: Params, state: State, group: list[Sequence[int]], chunk: int, bar: Bar | NoBar
) -> list[Scores]:
    """Scores the rows, idle ones left out, after `state`, which is consumed."""
    parts = []
    for start in range(0, max(map(len, group)) - 1, chunk):
        pieces = [row[start : start + chunk + 1] for row in group]
        logprobs, greedy, state = _SCORE(params, state, *_put_scored(params, pieces, chunk))
        parts.append(device_put((logprobs, greedy), "cpu"))
        bar.update(sum(max(0, len(piece) - 1) for piece in pieces))
    logprobs, greedy = (torch.cat(column, 1) for column in zip(*parts, strict=True))
    return [
        Scores(logprobs[row, : len(tokens) - 1].clone(), greedy[row, : len(tokens) - 1].clone())
        for row, tokens in enumerate(group)
        if tokens
    ]


def _graphs(
    params: Params,
    batch: int,
    capacity: int,
    score_chunk: int,
    read_chunk: int | None = None,
    forks: bool = False,
) -> Iterator[tuple[str, Compiled, tuple]]:
    """Yields what `compile_all` takes of the steps, of chunks of so many tokens."""
    state, idle = init_state(params, batch, capacity), [()] * batch
    if read_chunk is not None:
        yield "read", _READ, (params, state, *_put_read(params, idle, read_chunk))
    if forks:
        source = device_put(torch.zeros(batch, dtype=torch.int64), params.device.type)
        yield "fork", _FORK, (params, state, source)
    yield "score", _SCORE, (params, state, *_put_scored(params, idle, score_chunk))


def _put_read(params: Params, pieces: Sequence[Sequence[int]], chunk: int) -> tuple[Tensor, Tensor]:
    """Puts what `_READ` takes of pieces of rows, of at most `chunk` tokens, onto the device."""
    tokens = torch.tensor([[*piece, *[0] * (chunk - len(piece))] for piece in pieces])
    lengths = torch.tensor(list(map(len, pieces)))
    return device_put((tokens, lengths), params.device.type)


def _put_scored(
    params: Params, pieces: Sequence[Sequence[int]], chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Puts what `_SCORE` takes of pieces of rows, of one more token, onto the device."""
    tokens = torch.tensor([[*piece, *[0] * (chunk + 1 - len(piece))] for piece in pieces])
    lengths = torch.tensor([max(0, len(piece) - 1) for piece in pieces])
    inputs = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), lengths)
    return device_put(inputs, params.device.type)


@torch.no_grad()
def _read_step(params: Params, state: State, tokens: Tensor, lengths: Tensor) -> State:
    return forward(params, state, tokens, lengths)[1]


@torch.no_grad()
def _score_step(
    params: Params, state: State, tokens: Tensor, targets: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, State]:
    hidden, state = forward(params, state, tokens, lengths)
    logprobs, greedy = [], []
    unit = dp_rows_here(params.runtime)
    size = -(-_POSITIONS // unit) * unit
    blocks = hidden.flatten(0, 1).split(size)
    for block, target in zip(blocks, targets.flatten().split(size), strict=True):
        block_logits = logits(params, block)
        logprobs.append(block_logits.log_softmax(-1).gather(1, target[:, None]).squeeze(1))
        greedy.append(block_logits.argmax(-1) == target)
    shape = tokens.shape
    return torch.cat(logprobs).reshape(shape), torch.cat(greedy).reshape(shape), state


_READ = compiled(_read_step, donate=("state",))
_SCORE = compiled(_score_step, donate=("state",))
_FORK = compiled(take_state)


def _capacity(params: Params, tokens: int) -> int:
    return min(params.config.max_context, doubling(tokens))


def _check_lengths(params: Params, rows: Sequence[Sequence[int]]) -> None:
    limit = params.config.max_context
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


def _bar(tokens: int, show: bool) -> Bar | NoBar:
    return progress_bar("score", tokens, "token", show, leave=False)
