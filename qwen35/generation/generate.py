"""Text generation over `prefill` and `decode`: batches of prompts in, streamed text out."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from ..checks.values import integer
from ..model.params import Params
from ..prompts.inputs import Prompts, encode_prompts
from ..prompts.tokenizer import TextStream, TokenizerLike, own_end_tokens
from ..xla.observers import Compilations
from . import buckets
from .call import Call, allowed_of, going_on_of
from .continuation import Continuation, ends_of
from .grammar import grammar_for
from .results import Completion, Piece, Timings
from .sampling_settings import Sampling, settings_of_rows
from .thinking import ThinkingBudget, check_asked

PREFILL_CHUNK = 512


def generate(
    params: Params,
    tokenizer: TokenizerLike,
    prompts: Prompts,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    capacity: int | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    batch: int | None = None,
    template: Mapping[str, Any] | None = None,
    thinking: ThinkingBudget | None = None,
    progress: bool = False,
) -> list[Completion]:
    """Continues prompts, of any number and lengths, and returns one `Completion` for each.

    On XLA parameters, and on those whose `Runtime` names a backend, the steps run compiled: one
    prefill graph, one decode graph; for prompts with an image or a video, one prefill graph that
    takes embeddings too, and those of the vision tower (see `encode_images`). They are compiled
    before the first step.

    Args:
        params: the parameters, on the device to run on.
        tokenizer: `Tokenizer`, `Processor`, or one of transformers' tokenizers. Its
            `end_token_ids` or `eos_token_id`, if any, and the config's `eos_token_id` end a row.
        prompts: one or several; each a text, token ids (a list, an integer array of NumPy or
            torch, or what a tokenizer of transformers returns, whose padding is left out), what a
            `Processor` made, or messages, where the tokenizer has a chat template.
        max_new_tokens: the most tokens to add to each.
        sampling: how tokens are chosen; one for all rows, or one for each.
        capacity: tokens the state holds per row; None is as many as this call needs.
        prefill_chunk: the most prompt tokens that one prefill step takes.
        batch: prompts that go together; None is all of them. One graph of each kind serves all
            batches: fewer prompts, of the last batch say, are filled up with empty rows where steps
            are compiled. What only later rows have, pictures or penalties, needs others.
        template: variables of the chat template for prompts of messages, such as
            `{"enable_thinking": False}` or `{"reasoning_effort": "low"}`.
        thinking: ends a thought of a row that gets too long, whether its prompt begins the thought
            or the row does.
        progress: draw progress of compilation and prefill on standard error.

    Raises:
        ValueError: an empty prompt, or one that does not fit the capacity or the model's
            `max_position_embeddings`, the numbers are in the text; messages that can't be
            rendered, pictures without vision parameters, or log probabilities beside `thinking`.
    """
    pieces = stream(
        params,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        capacity=capacity,
        prefill_chunk=prefill_chunk,
        batch=batch,
        template=template,
        thinking=thinking,
        progress=progress,
    )
    while True:
        try:
            next(pieces)
        except StopIteration as stop:
            return stop.value


def stream(
    params: Params,
    tokenizer: TokenizerLike,
    prompts: Prompts,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    capacity: int | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    batch: int | None = None,
    template: Mapping[str, Any] | None = None,
    thinking: ThinkingBudget | None = None,
    progress: bool = False,
) -> Generator[Piece, None, list[Completion]]:
    """Generates like `generate`, but yields a `Piece` for every token as it comes.

    Arguments are checked at the call, before the first piece is asked for. The generator's return
    value (`StopIteration.value`) is the list of completions. Batches come one after the other.
    """
    calls, chunk = _calls(
        params,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        capacity=capacity,
        prefill_chunk=prefill_chunk,
        batch=batch,
        template=template,
        thinking=thinking,
        progress=progress,
    )
    return _stream_all(calls, chunk)


def compile_steps(
    params: Params, tokenizer: TokenizerLike, prompts: Prompts, **how: Any
) -> Compilations:
    """Compiles what `stream` would compile before its first piece, and runs nothing.

    Arguments and errors are those of `stream`, but that the parameters' values do not matter: they
    may be those of `files.expected`. Of prompts with pictures nothing is compiled: that
    takes their embeddings.
    """
    calls, chunk = _calls(params, tokenizer, prompts, **how)
    return next(calls).compile(chunk)


def _calls(
    params: Params,
    tokenizer: TokenizerLike,
    prompts: Prompts,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    capacity: int | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    batch: int | None = None,
    template: Mapping[str, Any] | None = None,
    thinking: ThinkingBudget | None = None,
    progress: bool = False,
) -> tuple[Iterator[Call], int]:
    """Checks what `stream` is given; returns the batches, and the tokens of a prefill step."""
    max_new_tokens = integer("max_new_tokens", max_new_tokens)
    prefill_chunk = integer("prefill_chunk", prefill_chunk)
    prompts, seen = encode_prompts(params, tokenizer, prompts, template)
    capacity = _capacity(params, prompts, max_new_tokens, capacity)
    model = end_tokens(params, tokenizer)
    settings_by_row = settings_of_rows(sampling, len(prompts))
    for settings in settings_by_row:
        check_asked(settings, thinking, params.config.vocab_size)
    ends = [ends_of(tokenizer, settings, model) for settings in settings_by_row]
    rows = [
        Continuation(
            id=row,
            max_new_tokens=max_new_tokens,
            sampling=settings,
            ends=ends[row],
            stream=TextStream(tokenizer),
            grammar=grammar_for(tokenizer, settings, prompt, params.config.vocab_size, ends[row]),
            thinking=thinking and thinking.behind(tokenizer, prompt),
        )
        for row, (settings, prompt) in enumerate(zip(settings_by_row, prompts, strict=True))
    ]
    batch = len(prompts) if batch is None else integer("batch", batch)
    chunk = buckets.prefill_chunk(max(map(len, prompts)), prefill_chunk)

    def calls() -> Iterator[Call]:
        for start in range(0, len(prompts), batch):
            here = slice(start, start + batch)
            own = prompts[here], seen[here], rows[here]
            yield Call(params, *own, batch=batch, capacity=capacity, progress=progress)

    return calls(), chunk


def end_tokens(params: Params, tokenizer: TokenizerLike) -> frozenset[int]:
    """Returns the ids that end a row of this model: all that are named anywhere."""
    ends = getattr(tokenizer, "end_token_ids", None)
    named = own_end_tokens(tokenizer) if ends is None else ends
    return frozenset((*params.config.eos_token_ids, *named))


def _stream_all(calls: Iterator[Call], chunk: int) -> Generator[Piece, None, list[Completion]]:
    completions = []
    for call in calls:
        completions += yield from _stream(call, chunk)
    return completions


def _stream(call: Call, chunk: int) -> Generator[Piece, None, list[Completion]]:
    """Has a token decoded before it reads it, where it can: the device never waits for the host.

    Which token is the last by number is known beforehand, and which a thinking budget puts in. A
    row that ends otherwise is decoded once more, and nobody reads what comes of that.
    """
    start = time.perf_counter()
    seconds: list[float] = []  # from the start, when each step's tokens were read
    rows = call.rows
    left = rows[0].max_new_tokens - 1  # alike in all rows
    ahead = call.ahead and all(row.grammar is None for row in rows)  # which asks for its tokens
    choice = call.prefill(chunk, allowed_of(rows), decode_follows=left > 0)
    while True:
        call.force([row.forced for row in rows])
        following = call.decode(going_on_of(rows), []) if ahead and left else None
        chosen = call.read(choice)
        seconds.append(time.perf_counter() - start - call.compile_seconds)
        for row, (token, logprob) in zip(rows, chosen, strict=True):
            if not row.done:
                yield row.push(token, logprob)
        if not any(going_on_of(rows)):
            break
        choice = following or call.decode(going_on_of(rows), allowed_of(rows))
        left -= 1
    later = sum(len(row.new_tokens) - 1 for row in rows)
    timings = Timings.of(call.compile_seconds, seconds[0], seconds[-1] - seconds[0], later)
    return [row.completed(timings) for row in rows]


def _capacity(
    params: Params, rows: list[list[int]], max_new_tokens: int, capacity: int | None
) -> int:
    limit = params.config.max_context
    for number, row in enumerate(rows):
        needed = len(row) + max_new_tokens
        for name, size in (("max_position_embeddings", limit), ("capacity", capacity)):
            if size is not None and needed > size:
                raise ValueError(
                    f"prompt {number} has {len(row)} tokens and {max_new_tokens} more are asked "
                    f"for: {needed} in all, over the {name} of {size}"
                )
    if capacity is not None:
        return capacity
    return min(limit, buckets.capacity(max(map(len, rows)) + max_new_tokens))
