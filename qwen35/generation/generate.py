"""Text generation over `prefill` and `decode`: batches of prompts in, streamed text out."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks.values import integer
from ..model.all_ranks import dp_rows_here
from ..model.params import Params
from ..model.state import State
from ..model.vocabulary import scatter_vocabulary
from ..prompts.inputs import Prompts, RowPictures, encode_pictures, encode_prompts, piece
from ..prompts.processor import Prompt
from ..prompts.tokenizer import TextStream, TokenizerLike, own_end_tokens
from ..xla.compiled import Compiled
from ..xla.devices import device_put
from ..xla.observers import Compilations
from ..xla.progress import compile_all, progress_bar, show_compilations
from . import buckets, steps
from .continuation import Continuation, ends_of
from .grammar import grammar_for, stacked
from .results import Completion, Piece, Timings, TokenLogprob, read_choice
from .sampling import Choice, bias_for, controls_for, counts_for
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
) -> tuple[Iterator[_Call], int]:
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

    def calls() -> Iterator[_Call]:
        for start in range(0, len(prompts), batch):
            here = slice(start, start + batch)
            own = prompts[here], seen[here], rows[here]
            yield _Call(params, *own, batch=batch, capacity=capacity, progress=progress)

    return calls(), chunk


def end_tokens(params: Params, tokenizer: TokenizerLike) -> frozenset[int]:
    """Returns the ids that end a row of this model: all that are named anywhere."""
    ends = getattr(tokenizer, "end_token_ids", None)
    named = own_end_tokens(tokenizer) if ends is None else ends
    return frozenset((*params.config.eos_token_ids, *named))


def _stream_all(calls: Iterator[_Call], chunk: int) -> Generator[Piece, None, list[Completion]]:
    completions = []
    for call in calls:
        completions += yield from _stream(call, chunk)
    return completions


def _stream(call: _Call, chunk: int) -> Generator[Piece, None, list[Completion]]:
    """Has a token decoded before it reads it, where it can: the device never waits for the host.

    Which token is the last by number is known beforehand, and which a thinking budget puts in. A
    row that ends otherwise is decoded once more, and nobody reads what comes of that.
    """
    start = time.perf_counter()
    seconds: list[float] = []  # from the start, when each step's tokens were read
    rows = call.rows
    left = rows[0].max_new_tokens - 1  # alike in all rows
    ahead = call.ahead and all(row.grammar is None for row in rows)  # which asks for its tokens
    choice = call.prefill(chunk, _allowed(rows), decode_follows=left > 0)
    while True:
        call.force([row.forced for row in rows])
        following = call.decode(_going_on(rows), []) if ahead and left else None
        chosen = call.read(choice)
        seconds.append(time.perf_counter() - start - call.compile_seconds)
        for row, (token, logprob) in zip(rows, chosen, strict=True):
            if not row.done:
                yield row.push(token, logprob)
        if not any(_going_on(rows)):
            break
        choice = following or call.decode(_going_on(rows), _allowed(rows))
        left -= 1
    later = sum(len(row.new_tokens) - 1 for row in rows)
    timings = Timings.of(call.compile_seconds, seconds[0], seconds[-1] - seconds[0], later)
    return [row.completed(timings) for row in rows]


def _going_on(rows: list[Continuation]) -> list[bool]:
    return [not row.done for row in rows]


def _allowed(rows: list[Continuation]) -> list[Tensor | None]:
    return [row.allowed for row in rows]


class _Call:
    """The tensors of one batch between steps: all rows are read and decoded side by side.

    Where `Batch`'s slots serve any request with one graph, these are made for the call: capacity
    and chunk are its own, and of the sampling settings the graph has only what a row uses. Empty
    rows make up the number, so that calls of similar size share graphs.

    Attributes:
        rows: what follows each prompt.
        ahead: whether a step is started before the last one's tokens are read.
        compile_seconds: that calls have spent with compiling.
    """

    def __init__(
        self,
        params: Params,
        prompts: list[list[int]],
        seen: list[Prompt | None],
        rows: list[Continuation],
        *,
        batch: int,
        capacity: int,
        progress: bool,
    ) -> None:
        self.rows = rows
        self.ahead = steps.run_ahead(params)
        self.compile_seconds = 0.0
        self._params = params
        # Where nothing is compiled, empty rows would only cost time.
        size = len(prompts)
        if steps.are_compiled(params):
            size = buckets.rows(batch, dp_rows_here(params.runtime))
        self._empty = size - len(prompts)
        prompts = [*prompts, *[[]] * self._empty]
        samplings = [*(row.sampling for row in rows), *[Sampling()] * self._empty]
        self._thinks = any(row.thinking is not None for row in rows)
        self._prompts = prompts
        self._seen = [*seen, *[None] * self._empty]
        self._capacity = capacity
        self._progress = progress
        self._limits = [sampling.logprobs for sampling in samplings]
        self._logprobs = max((limit for limit in self._limits if limit is not None), default=None)
        self._short = all(sampling.short for sampling in samplings)
        vocabulary = params.config.vocab_size
        self._controls = self._put(controls_for(samplings, vocabulary))
        self._mask = steps.masks(params.device.type)
        self._bias: Tensor | None = None
        if any(sampling.biased for sampling in samplings):
            self._bias = scatter_vocabulary(params, bias_for(samplings, vocabulary))
        self._counts: Tensor | None = None
        if self._controls.penalties is not None:
            self._counts = scatter_vocabulary(params, counts_for(prompts, vocabulary))
        self._state: State
        self._token = self._put(torch.zeros(size, dtype=torch.int64))

    def compile(self, chunk: int) -> Compilations:
        """Compiles all that the call runs; nothing where prompts have pictures, to be encoded
        first."""
        if self._has_pictures:
            return Compilations()
        rows = steps.blank(self._params, len(self._prompts), self._capacity)
        follows = self.rows[0].max_new_tokens > 1
        graphs = self._graphs(rows, chunk, None, _allowed(self.rows), follows)
        return compile_all(graphs, self._progress)

    def prefill(self, chunk: int, allowed: list[Tensor | None], decode_follows: bool) -> Choice:
        """Runs the prompts, chunk by chunk, and returns every row's first token, still to be read.

        All is compiled before, the decode step too if it follows: not between two tokens of a
        stream.
        """
        params, longest = self._params, max(map(len, self._prompts))
        rows = steps.blank(params, len(self._prompts), self._capacity)
        pictures = self._encode_pictures()
        graphs = self._graphs(rows, chunk, pictures, allowed, decode_follows)
        self.compile_seconds += compile_all(graphs, self._progress).seconds
        show = self._progress and longest > chunk
        with progress_bar("prefill", longest, "token", show, leave=False) as bar:
            for start in range(0, longest, chunk):
                here = self._piece(pictures, start, chunk)
                rows = self._run(steps.prefill_pieces, params, rows, *here)
                bar.update(min(chunk, longest - start))
        choice, self._counts = self._run(steps.choose, *self._choose_arguments(rows, allowed))
        self._state, self._token = rows.state, choice.token
        return choice

    def _graphs(
        self,
        rows: steps.Rows,
        chunk: int,
        pictures: list[RowPictures | None] | None,
        allowed: list[Tensor | None],
        decode_follows: bool,
    ) -> Iterator[tuple[str, Compiled, tuple]]:
        """Yields all that the call runs: a name, the step, and arguments for it."""
        first = steps.put_pieces(self._params, *self._piece(pictures, 0, chunk))
        yield "prefill", steps.prefill, (self._params, rows, *first)
        yield "choose", steps.choose, self._choose_arguments(rows, allowed)
        if decode_follows:
            going_on = _going_on(self.rows)
            arguments = self._decode_arguments(rows.state, going_on, allowed)
            yield "decode_and_choose", steps.decode_and_choose, arguments
            if self._thinks:
                yield "force", steps.force, (self._token,) * 3

    def decode(self, active: list[bool], allowed: list[Tensor | None]) -> Choice:
        """Runs one step of the active rows and returns every row's next token, still to be read.

        Args:
            active: which rows go on.
            allowed: each row's `Continuation.allowed`.
        """
        arguments = self._decode_arguments(self._state, active, allowed)
        choice, self._state, self._counts = self._run(steps.decode_and_choose, *arguments)
        self._token = choice.token
        return choice

    def force(self, forced: list[tuple[int, int] | None]) -> None:
        """Puts other tokens in place of those just chosen: each row's `Continuation.forced`."""
        if any(forced):
            pairs = [pair or (-1, -1) for pair in (*forced, *[None] * self._empty)]
            tokens, unless = self._put(torch.tensor(pairs).T.contiguous().unbind())
            self._token = self._run(steps.force, self._token, tokens, unless)

    def read(self, choice: Choice) -> list[tuple[int, TokenLogprob | None]]:
        """Waits for a choice and returns every row's token."""
        return read_choice(choice, self._limits)[: len(self._limits) - self._empty]

    @property
    def _has_pictures(self) -> bool:
        return any(prompt is not None and prompt.images.grid for prompt in self._seen)

    def _encode_pictures(self) -> list[RowPictures | None] | None:
        """Encodes each row's pictures (None: it has none); None for all where no row has any."""
        if not self._has_pictures:
            return None
        return [
            None if prompt is None else self._run(encode_pictures, self._params, prompt)
            for prompt in self._seen
        ]

    def _bits(self, allowed: list[Tensor | None]) -> Tensor | None:
        allowed = [*allowed, *[None] * self._empty] if allowed else []
        return self._put(stacked(allowed, self._params.config.vocab_size))

    def _piece(
        self, pictures: list[RowPictures | None] | None, start: int, chunk: int
    ) -> tuple[list[list[int]], int, tuple[Tensor, Tensor] | None]:
        """Cuts out what `steps.put_pieces` takes of each prompt from `start` on."""
        pieces = [prompt[start : start + chunk] for prompt in self._prompts]
        return pieces, chunk, None if pictures is None else piece(pictures, start, chunk)

    def _choose_arguments(self, rows: steps.Rows, allowed: list[Tensor | None]) -> tuple:
        position = None if self._controls.draw is None else rows.state.position
        sampled = (self._controls, self._bias, self._counts, None, None)
        how = (self._logprobs, self._short, self._bits(allowed))
        return self._params, position, rows.logits, *sampled, *how

    def _decode_arguments(
        self, state: State, active: list[bool], allowed: list[Tensor | None]
    ) -> tuple:
        # A single row is active while there are steps.
        active = [*active, *[False] * self._empty]
        mask = self._mask(*active) if len(active) > 1 else None
        sampled = (self._controls, self._bias, self._counts, self._logprobs, self._short)
        return self._params, state, self._token, mask, *sampled, self._bits(allowed)

    def _run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        with show_compilations(self._progress) as seen:
            result = step(*arguments)
        self.compile_seconds += seen.seconds
        return result

    def _put(self, tree: Any) -> Any:
        return device_put(tree, self._params.device.type)


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
