"""Text generation over `prefill` and `decode`: batches of prompts in, streamed text out."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model.all_ranks import on_all_ranks
from ..model.decoder import decode, prefill
from ..model.params import Params
from ..model.state import State, init_state
from ..prompts.inputs import Prompts, RowPictures, encode_pictures, encode_prompts, piece
from ..prompts.processor import Prompt
from ..prompts.tokenizer import TextStream, TokenizerLike
from ..xla.compiled import Compiled, compiled
from ..xla.devices import device_put
from ..xla.progress import prefill_bar, show_compilations
from .results import Completion, Piece, Timings, TokenLogprob, read_choice
from .sampling import Choice, Controls, Sampling, choose, controls_for, count, counts_for

PREFILL_CHUNK = 512
_SMALLEST_CHUNK = 16
_CHUNK_STEP = 64
_CAPACITY_STEP = 128


def generate(
    params: Params,
    tokenizer: TokenizerLike,
    prompts: Prompts,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | Sequence[Sampling] = Sampling(),
    capacity: int | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    progress: bool = False,
) -> list[Completion]:
    """Continues a batch of prompts, of any lengths, and returns one `Completion` for each.

    On XLA parameters the steps run compiled: one prefill graph, one decode graph; where any of the
    prompts has an image or a video, one prefill graph that takes embeddings too, and those of
    the vision tower (see `encode_images`).

    Args:
        params: the parameters, on the device to run on.
        tokenizer: `Tokenizer`, `Processor`, or one of transformers' tokenizers. Its
            `end_token_ids`, if any, and the config's `eos_token_id` end a row.
        prompts: one or several; each a text, a list of token ids, what a `Processor` made, or
            messages, for the `Processor` that must then be given.
        max_new_tokens: the most tokens to add to each.
        sampling: how tokens are chosen; one for all rows, or one for each.
        capacity: tokens the state holds per row; None is as many as this call needs.
        prefill_chunk: the most prompt tokens that one prefill step takes.
        progress: draw progress of compilation and prefill on standard error.

    Raises:
        ValueError: an empty prompt, or one that does not fit the capacity or the model's
            `max_position_embeddings`, the numbers are in the text; messages without a processor,
            or pictures without vision parameters.
    """
    pieces = stream(
        params,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        capacity=capacity,
        prefill_chunk=prefill_chunk,
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
    progress: bool = False,
) -> Generator[Piece, None, list[Completion]]:
    """Like `generate`, but yields a `Piece` for every token as it comes.

    Arguments are checked at the call, before the first piece is asked for. The generator's return
    value (`StopIteration.value`) is the list of completions.
    """
    _check_count("max_new_tokens", max_new_tokens)
    _check_count("prefill_chunk", prefill_chunk)
    rows, seen = encode_prompts(params, tokenizer, prompts)
    capacity = _capacity(params, rows, max_new_tokens, capacity)
    samplings = _samplings(sampling, len(rows))
    batch = _Batch(params, rows, seen, samplings, capacity, prefill_chunk, progress)
    return _stream(batch, tokenizer, end_tokens(params, tokenizer), max_new_tokens)


def end_tokens(params: Params, tokenizer: TokenizerLike) -> frozenset[int]:
    """The ids that end a row of this model."""
    return frozenset((*params.config.eos_token_ids, *getattr(tokenizer, "end_token_ids", ())))


def _samplings(sampling: Sampling | Sequence[Sampling], rows: int) -> list[Sampling]:
    if isinstance(sampling, Sampling):
        return [sampling.for_row(row) for row in range(rows)]
    if len(sampling) != rows:
        raise ValueError(f"sampling has {len(sampling)} entries for {rows} prompts")
    return list(sampling)


def _stream(
    batch: _Batch, tokenizer: TokenizerLike, ends: frozenset[int], max_new_tokens: int
) -> Generator[Piece, None, list[Completion]]:
    size = len(batch.rows)
    texts = [TextStream(tokenizer) for _ in range(size)]
    tokens: list[list[int]] = [[] for _ in range(size)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(size)]
    parts: list[list[str]] = [[] for _ in range(size)]
    reasons: list[str | None] = [None] * size
    start = time.perf_counter()
    chosen = batch.prefill(decode_follows=max_new_tokens > 1)
    first = time.perf_counter() - start - batch.compile_seconds
    prefill_compile = batch.compile_seconds
    start = time.perf_counter()
    while True:
        for row, (token, logprob) in enumerate(chosen):
            if reasons[row] is not None:
                continue
            tokens[row].append(token)
            if logprob is not None:
                logprobs[row].append(logprob)
            text = texts[row].push(token)
            if token in ends or token in batch.samplings[row].stop:
                reasons[row] = "stop"
            elif len(tokens[row]) == max_new_tokens:
                reasons[row] = "length"
            if reasons[row] is not None:
                text += texts[row].finish()
            parts[row].append(text)
            yield Piece(row, text, token)
        active = [reason is None for reason in reasons]
        if not any(active):
            break
        chosen = batch.decode(active)
    decoding = time.perf_counter() - start - (batch.compile_seconds - prefill_compile)
    later = sum(len(row) - 1 for row in tokens)
    rate = later / decoding if later and decoding > 0 else None
    timings = Timings(batch.compile_seconds, first, decoding, rate)
    return [
        Completion(
            "".join(parts[row]),
            tuple(tokens[row]),
            reasons[row],
            timings,
            tuple(logprobs[row]) if batch.samplings[row].logprobs is not None else None,
        )
        for row in range(size)
    ]


class _Batch:
    """The rows of one call and their state between steps."""

    def __init__(
        self,
        params: Params,
        rows: list[list[int]],
        seen: list[Prompt | None],
        samplings: list[Sampling],
        capacity: int,
        prefill_chunk: int,
        progress: bool,
    ) -> None:
        self.params = params
        self.rows = rows
        self.seen = seen
        self.samplings = samplings
        self.capacity = capacity
        self.progress = progress
        self.compile_seconds = 0.0
        self.chunk = _chunk(max(map(len, rows)), prefill_chunk)
        self.device = params.device.type
        vocabulary = params.config.vocab_size
        self.controls = device_put(controls_for(samplings, vocabulary), self.device)
        self.logprobs = max((s.logprobs for s in samplings if s.logprobs is not None), default=None)
        self.counts: Tensor | None = None
        if self.controls.penalties is not None:
            self.counts = device_put(counts_for(rows, vocabulary), self.device)
        self.state: State
        self.choice: Choice

    def prefill(self, decode_follows: bool) -> list[tuple[int, TokenLogprob | None]]:
        """Runs the prompts, chunk by chunk, and returns every row's first token.

        The decode step is compiled here if it follows: not between two tokens of a stream.
        """
        longest = max(map(len, self.rows))
        self.state = init_state(self.params, len(self.rows), self.capacity)
        pictures = self._encode_pictures()
        shape = (len(self.rows), self.params.config.vocab_size)
        logits = torch.zeros(shape, device=self.params.device)
        with prefill_bar(longest, self.progress and longest > self.chunk) as bar:
            for start in range(0, longest, self.chunk):
                inputs = _slice(self.rows, start, self.chunk)
                inputs += (None, None) if pictures is None else piece(pictures, start, self.chunk)
                inputs = device_put(inputs, self.device)
                logits, self.state = self._run(
                    compiled(_prefill_step, donate=("state", "logits")),
                    self.params,
                    self.state,
                    logits,
                    *inputs,
                )
                bar.update(min(self.chunk, longest - start))
        self.choice = self._run(
            compiled(_choose_step),
            self.params,
            self.state,
            logits,
            self.controls,
            self.counts,
            self.logprobs,
        )
        if decode_follows:
            self._run(_decode().compile, *self._decode_arguments())
        return self._chosen()

    def _encode_pictures(self) -> list[RowPictures | None] | None:
        """Per row its pictures, or None; None for all where no row has any."""
        if not any(prompt is not None and prompt.images.grid for prompt in self.seen):
            return None
        return [prompt and self._run(encode_pictures, self.params, prompt) for prompt in self.seen]

    def decode(self, active: list[bool]) -> list[tuple[int, TokenLogprob | None]]:
        """Runs one step of the active rows and returns every row's next token."""
        arguments = self._decode_arguments(active)
        self.choice, self.state, self.counts = self._run(_decode(), *arguments)
        return self._chosen()

    def _chosen(self) -> list[tuple[int, TokenLogprob | None]]:
        limits = [sampling.logprobs for sampling in self.samplings]
        return read_choice(self.choice, limits)

    def _decode_arguments(self, active: list[bool] | None = None) -> tuple:
        mask = None
        if len(self.rows) > 1:  # a single row is active while there are steps
            mask = torch.tensor(active or [True] * len(self.rows))
            mask = device_put(mask, self.device)
        token = self.choice.token
        return self.params, self.state, token, mask, self.controls, self.counts, self.logprobs

    def _run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        with show_compilations(self.progress) as seen:
            result = step(*arguments)
        self.compile_seconds += seen.seconds
        return result


def _decode() -> Compiled:
    return compiled(_decode_step, donate=("state", "token", "counts"))


@torch.no_grad()
def _prefill_step(
    params: Params,
    state: State,
    logits: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    embeds: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, State]:
    """One chunk; a row whose prompt has ended keeps the logits of its last token."""
    new, state = prefill(params, state, tokens, lengths, embeds, positions)
    return torch.where((lengths > 0)[:, None], new, logits), state


@torch.no_grad()
def _choose_step(
    params: Params,
    state: State,
    logits: Tensor,
    controls: Controls,
    counts: Tensor | None,
    logprobs: int | None,
) -> Choice:
    position = None if controls.draw is None else _positions(params, state)
    return choose(logits, controls, position, counts, logprobs)


@on_all_ranks(False)
def _positions(params: Params, state: State) -> Tensor:
    return state.position


@torch.no_grad()
def _decode_step(
    params: Params,
    state: State,
    token: Tensor,
    active: Tensor | None,
    controls: Controls,
    counts: Tensor | None,
    logprobs: int | None,
) -> tuple[Choice, State, Tensor | None]:
    logits, state = decode(params, state, token, active)
    if counts is not None:
        counts = count(counts, token, active)
    return _choose_step(params, state, logits, controls, counts, logprobs), state, counts


def _slice(rows: list[list[int]], start: int, chunk: int) -> tuple[Tensor, Tensor]:
    parts = [row[start : start + chunk] for row in rows]
    tokens = torch.tensor([part + [0] * (chunk - len(part)) for part in parts])
    return tokens, torch.tensor([len(part) for part in parts])


def _chunk(length: int, limit: int) -> int:
    """Tokens of each of the equal steps, of at most `limit`, that a prompt of `length` takes.

    A power of two up to `_CHUNK_STEP`, then a multiple of it, or of half of it where several steps
    pay for what is padded: few graphs, and no prompt pays for a much longer one.
    """
    steps = -(-length // limit)
    tokens = -(-length // steps)
    if tokens <= _CHUNK_STEP:
        size = max(_SMALLEST_CHUNK, 1 << (tokens - 1).bit_length())
    else:
        unit = _CHUNK_STEP if steps == 1 else _CHUNK_STEP // 2
        size = -(-tokens // unit) * unit
    return min(size, limit)


def _capacity(
    params: Params, rows: list[list[int]], max_new_tokens: int, capacity: int | None
) -> int:
    vocabulary, limit = params.config.vocab_size, params.config.max_position_embeddings
    for number, row in enumerate(rows):
        wrong = next((token for token in row if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise ValueError(
                f"prompt {number} has token id {wrong}, outside the vocabulary of {vocabulary}"
            )
        needed = len(row) + max_new_tokens
        for name, size in (("max_position_embeddings", limit), ("capacity", capacity)):
            if size is not None and needed > size:
                raise ValueError(
                    f"prompt {number} has {len(row)} tokens and {max_new_tokens} more are asked "
                    f"for: {needed} in all, over the {name} of {size}"
                )
    if capacity is not None:
        return capacity
    return min(limit, round_capacity(max(map(len, rows)) + max_new_tokens))


def round_capacity(tokens: int) -> int:
    """The next capacity in steps: prompts of similar length share compiled graphs, and attention on
    XLA:CPU gets a count of slots that its fast products take."""
    return -(-tokens // _CAPACITY_STEP) * _CAPACITY_STEP


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")
