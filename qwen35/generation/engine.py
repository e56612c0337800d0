"""Continuous batching: requests join and leave a running batch between two steps.

Here is what can be asked of an engine, and that all of its processes do it (`together`). Who is
next is decided in `schedule`, prompts are read in `reading`, the tensors are those of `Batch`.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..checks.values import integer, is_number, shown
from ..model.params import Params
from ..model.state import State
from ..prompts.inputs import OnePrompt, encode_prompt
from ..prompts.tokenizer import TextStream, TokenizerLike
from . import buckets
from .batch import Batch
from .continuation import ends_of
from .engine_settings import EngineSettings
from .feeding import in_order
from .generate import end_tokens
from .grammar import Grammar, grammar_for
from .keeping import Keeper
from .prefix_cache import CacheStats, PrefixCache
from .request import Request, cache_keys
from .results import Completion, Piece
from .sampling_settings import Sampling, check_sampling
from .schedule import Schedule
from .steps import Rows
from .thinking import ThinkingBudget
from .together import everywhere, join, with_progress


class QueueFull(RuntimeError):
    """As many requests wait as may: try again after some steps."""


class Engine:
    """Runs many requests at once; a request's tokens are those that it would get alone.

    Not thread-safe: one thread submits and steps.

    Args:
        params: on the device to run on; of all ranks of a mesh, on their devices; or of this
            process's rank, where each has a process. Then requests go to the engine of a tp
            group's first process, and the others call `follow`.
        tokenizer: as for `generate`.
        clock: seconds, for deadlines and timings.
        progress: show compilations on standard error.
        **settings: those of `EngineSettings`, such as `slots=4, capacity=512`.

    Attributes:
        settings: all of them.
        batch: the slots' tensors.
        cache: the prefix cache, or None.

    Raises:
        ValueError: an argument is out of range, or differs between processes.
    """

    def __init__(
        self,
        params: Params,
        tokenizer: TokenizerLike,
        *,
        clock: Callable[[], float] = time.perf_counter,
        progress: bool = False,
        **settings: int | None,
    ) -> None:
        given: Any = settings  # EngineSettings checks them
        self.settings = EngineSettings(**given).for_model(params.config)
        self._together = join(params, settings=self.settings)
        self._ends = end_tokens(params, tokenizer)
        self.batch = Batch(
            params,
            slots=self.settings.slots,
            capacity=self.settings.capacity,
            sizes=buckets.parts(self.settings.prefill_chunk, self.settings.prefill_sizes),
            top_logprobs=self.settings.top_logprobs,
            ends=self._ends,
        )
        cache_bytes = self.settings.cache_bytes
        self.cache = PrefixCache(cache_bytes) if cache_bytes else None
        note = None if self._together is None else self._together.note
        self._keeper = None
        if self.cache is not None:
            self._keeper = Keeper(self.batch, self.cache, self.settings.slots)
        self._schedule = Schedule(self.batch, self._keeper, self.settings, clock, note)
        self._tokenizer = tokenizer
        self._clock = clock
        self._progress = progress
        self._next_id = 0

    def submit(
        self,
        prompt: OnePrompt,
        *,
        max_new_tokens: int | None = 128,
        sampling: Sampling = Sampling(),
        timeout: float | None = None,
        thinking: ThinkingBudget | None = None,
        boundaries: Sequence[int] = (),
        template: Mapping[str, Any] | None = None,
    ) -> Request:
        """Queues a request; requests start in the order of their submission.

        Args:
            prompt: as one of `generate`'s.
            max_new_tokens: the most tokens to add; None for what the engine's capacity leaves.
            sampling: how its tokens are chosen.
            timeout: seconds from now after which it ends, whatever it has.
            thinking: ends a thought that gets too long, of the prompt's or the answer's beginning.
            boundaries: prompt lengths at which the prefix cache keeps the state: where another
                prompt may go on differently, such as the end of a chat's last message.
            template: variables of the chat template, for a prompt of messages.

        Raises:
            QueueFull: as many requests wait as may.
            ValueError: the prompt is empty or does not fit, or settings are out of range.
        """
        if timeout is not None and not (is_number(timeout) and timeout >= 0):
            raise ValueError(f"timeout must be a number of seconds, not {shown(timeout)}")
        if isinstance(boundaries, str) or not isinstance(boundaries, Iterable):
            raise ValueError(f"boundaries must be prompt lengths, not {shown(boundaries)}")
        lengths = tuple(integer("boundaries", length, 0) for length in boundaries)
        row, seen = encode_prompt(self.batch.params, self._tokenizer, prompt, template)
        tokens, pictures = tuple(row), seen if seen is not None and seen.images.grid else None
        if max_new_tokens is None:
            max_new_tokens = max(1, self.max_capacity - len(tokens))
        max_new_tokens = integer("max_new_tokens", max_new_tokens)
        vocabulary = self.batch.params.config.vocab_size
        self.settings.check(len(tokens), max_new_tokens, sampling, thinking, vocabulary)
        self._grammar_for(tokens, sampling)
        if len(self.waiting) >= self.settings.queue:
            raise QueueFull(f"{len(self.waiting)} requests wait already, as many as may")
        now = self._clock()
        return self._queue(
            tokens=tokens,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            thinking=thinking and thinking.behind(self._tokenizer, tokens),
            deadline=None if timeout is None else now + timeout,
            boundaries=lengths,
            submitted=now,
            pictures=pictures,
        )

    @everywhere
    def _queue(self, **asked: Any) -> Request:
        request = Request(
            **asked,
            id=self._next_id,
            ends=ends_of(self._tokenizer, asked["sampling"], self._ends),
            stream=TextStream(self._tokenizer),
            grammar=self._grammar_for(asked["tokens"], asked["sampling"]),
            keys=cache_keys(asked["tokens"], asked["pictures"]),
        )
        self._next_id += 1
        self.waiting.append(request)
        return request

    def _grammar_for(self, prompt: Sequence[int], sampling: Sampling) -> Grammar | None:
        ends = ends_of(self._tokenizer, sampling, self._ends)
        vocabulary = self.batch.params.config.vocab_size
        return grammar_for(self._tokenizer, sampling, prompt, vocabulary, ends)

    def cancel(self, request: Request) -> None:
        """Ends a request, which keeps what it has; one that has ended stays as it is.

        Raises:
            ValueError: it is another engine's.
        """
        if not request.done:
            self._schedule.check_own(request)
            self._cancel(request.id)

    @everywhere
    @with_progress
    def _cancel(self, number: int) -> None:
        self._schedule.cancel(number)

    @property
    def max_capacity(self) -> int:
        """The most tokens that a request can have, prompt and continuation."""
        assert self.settings.max_capacity is not None  # `for_model` resolves it
        return self.settings.max_capacity

    @property
    def waiting(self) -> deque[Request]:
        """The requests in the queue."""
        return self._schedule.waiting

    @property
    def running(self) -> list[Request | None]:
        """The requests by slot, None where it is idle."""
        return self._schedule.running

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return self._schedule.idle

    def step(self) -> list[Piece]:
        """Reads some of a prompt, adds a token to every running request, and returns them.

        What goes wrong in one request ends that one as "error". If a step of all slots fails, it
        ends all that run; the engine goes on with those that wait. In one of several processes,
        what fails on the device ends the engine there, and so in all of them.
        """
        return self._step(self._clock())

    @everywhere
    @with_progress
    def _step(self, now: float) -> list[Piece]:
        return self._schedule.step(now)

    def run(self) -> Iterator[Piece]:
        """Steps until nothing is left to do, and yields the pieces of all requests."""
        while not self.idle:
            yield from self.step()

    def stream(self, request: Request) -> Iterator[Piece]:
        """Steps until the request has ended, and yields its pieces; others go on besides.

        Raises the exception that ended it, if one did; ValueError for another engine's request.
        """
        while not request.done:
            self._schedule.check_own(request)
            yield from (piece for piece in self.step() if piece.row == request.id)
        if request.error is not None:
            raise request.error

    def map(
        self,
        prompts: Iterable[OnePrompt],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),
        thinking: ThinkingBudget | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> Iterator[Completion]:
        """Yields the completion of each prompt, in their order, of any number of prompts.

        They are taken as slots come free, so that they may come from a file of any length. Prompt
        n is sampled as row n of `generate`. Other arguments are those of `submit`; a prompt that
        it refuses, or that fails, raises where its completion would come.
        """
        if isinstance(prompts, str | Mapping):
            raise ValueError("prompts is one prompt: give an iterable of them, or use submit")
        check_sampling(sampling)

        def job(number: int, prompt: OnePrompt) -> Callable[[], Request]:
            return lambda: self.submit(
                prompt,
                max_new_tokens=max_new_tokens,
                sampling=sampling.for_row(number),
                thinking=thinking,
                template=template,
            )

        return in_order(self, itertools.starmap(job, enumerate(prompts)))

    @everywhere
    def warm_up(self) -> None:
        """Compiles all that any request of the present capacity needs: no later step compiles.

        With `progress`, a terminal shows a bar of the graphs.
        """
        self.batch.warm_up(self._progress)

    @everywhere
    @with_progress
    def keep(self, keys: Sequence[int], row: Rows) -> None:
        """Puts a row that has read a prompt of these keys into the prefix cache."""
        if self._keeper is not None:
            self._keeper.keep(keys, row)
            self._keeper.settle()

    @everywhere
    @with_progress
    def recall(self, keys: Sequence[int]) -> tuple[int, Rows]:
        """Returns how many of these keys the prefix cache knows, and the row after those."""
        return (0, self.batch.blank()) if self._keeper is None else self._keeper.recall(keys)

    @everywhere
    @with_progress
    def gather(self, keys: Sequence[int]) -> tuple[int, State, Tensor]:
        """Returns how many of these keys the prefix cache knows, and of the row after those the
        whole state and the logits, on the CPU: what `adopt` takes, on any mesh."""
        length, row = self.recall(keys)
        return length, *self.batch.gather(row)

    def adopt(self, keys: Sequence[int], state: State, logits: Tensor) -> None:
        """Puts a whole state of one row that has read these keys into the cache.

        Raises:
            ValueError: it is longer than the engine's capacity.
        """
        if len(keys) > self.max_capacity:
            raise ValueError(
                f"a state of {len(keys)} tokens is over the engine's capacity of "
                f"{self.max_capacity}"
            )
        self._adopt(tuple(keys), state, logits)

    @everywhere
    @with_progress
    def _adopt(self, keys: tuple[int, ...], state: State, logits: Tensor) -> None:
        self._schedule.make_room(len(keys))
        self.keep(keys, self.batch.scatter(state, logits))

    @property
    def leads(self) -> bool:
        """Whether requests go to this engine, rather than to that of another process."""
        return self._together is None or self._together.leads

    def follow(self) -> None:
        """Does what the engine of the first process does, until that one is closed or pauses.

        Raises:
            RuntimeError: that process has ended otherwise, or the two disagree.
        """
        if self._together is not None:
            self._together.follow(self)

    def pause(self) -> None:
        """Lets those that follow the engine return, to do something else with this process before
        they follow again. On one device it does nothing."""
        if self._together is not None:
            self._together.pause()

    def close(self) -> None:
        """Ends the engine: those that follow it return. On one device it does nothing."""
        if self._together is not None:
            self._together.close()

    @property
    def compile_count(self) -> int:
        """Graphs compiled so far; engines share them."""
        return self.batch.compile_count

    @property
    def stats(self) -> CacheStats:
        """What the prefix cache did and holds."""
        return self.cache.stats if self.cache is not None else CacheStats()
