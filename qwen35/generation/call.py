"""The rows of one batch of `generate`, and the steps that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..model.all_ranks import dp_rows_here
from ..model.params import Params
from ..model.state import State
from ..model.vocabulary import scatter_vocabulary
from ..prompts.inputs import RowPictures, encode_pictures, piece
from ..prompts.processor import Prompt
from ..xla.compiled import Compiled
from ..xla.devices import device_put
from ..xla.observers import Compilations
from ..xla.progress import compile_all, progress_bar, show_compilations
from . import buckets, steps
from .continuation import Continuation
from .grammar import stacked
from .results import TokenLogprob, read_choice
from .sampling import Choice, bias_for, controls_for, counts_for
from .sampling_settings import Sampling


class Call:
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
        graphs = self._graphs(rows, chunk, None, allowed_of(self.rows), follows)
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
            going_on = going_on_of(self.rows)
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


def going_on_of(rows: list[Continuation]) -> list[bool]:
    """Returns of each row whether it has not ended."""
    return [not row.done for row in rows]


def allowed_of(rows: list[Continuation]) -> list[Tensor | None]:
    """Returns of each row which tokens its grammar allows next, packed; None of one that has no
    grammar."""
    return [row.allowed for row in rows]
