"""Continuous batching: requests join and leave a running batch between two steps.

A step reads some prompt tokens of the requests at the head of the queue (each in a batch of its
own, put into a slot when the prompt is read), chooses a token for every slot in use, and decodes
all slots at once; idle ones are rows of length 0. `Batch` has the tensors; here is only who is
next.

Choosing is a graph of its own, not the end of decode's as in `generate`: logits to choose from also
come from a prompt just read and out of the prefix cache, a thinking budget may put another token in
the chosen one's place, and one decode graph then serves the likeliest tokens (no more than an
argmax) and drawn ones. Logits stay on the device; a step moves one token per slot to the host.

The device does not wait for the host to read that: decoding of a token is started before. All that
could keep a token from being decoded is known by then, or to the device itself: that it is the last
by number, that it ends its row (the ids are there), that a thinking budget puts another in its
place. So between two steps a request's state is that of exactly its tokens, less a last one.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..checks.values import integer
from ..model.params import Params
from ..model.rows import grow
from ..model.state import State
from ..model.state_shares import gather_state, scatter_state
from ..prompts.inputs import Messages, RowPictures, encode_pictures, encode_prompts, piece
from ..prompts.processor import Prompt
from ..prompts.tokenizer import TextStream, TokenizerLike
from ..xla.devices import device_put
from . import buckets
from .batch import Batch
from .engine_settings import EngineSettings
from .generate import end_tokens
from .prefix_cache import CacheStats, PrefixCache
from .request import Request, ThinkingBudget, cache_keys
from .results import Piece, read_choice
from .sampling import Sampling
from .steps import Rows
from .together import Together, everywhere


class QueueFull(RuntimeError):
    """As many requests wait as may: try again after some steps."""


class _Filling(NamedTuple):
    """A request whose prompt is being read.

    row: what has been read, `done` tokens. stops: the lengths still to come at which the prompt is
    cut and the state kept; the last is the prompt's. pictures: those still to be read, or None.
    """

    request: Request
    row: Rows
    done: int
    stops: tuple[int, ...]
    pictures: RowPictures | None


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
        waiting, running: requests in the queue; by slot, None where it is idle.

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
        self._together = _join(params, self.settings)
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
        self.waiting: deque[Request] = deque()
        self.running: list[Request | None] = [None] * self.settings.slots
        self._tokenizer = tokenizer
        self._clock = clock
        self._progress = progress
        self._filling: _Filling | None = None
        self._next_id = 0

    def submit(
        self,
        prompt: str | Prompt | Messages | Sequence[int],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),
        timeout: float | None = None,
        thinking: ThinkingBudget | None = None,
        boundaries: Sequence[int] = (),
    ) -> Request:
        """Queues a request; requests start in the order of their submission.

        Args:
            prompt: as one of `generate`'s.
            max_new_tokens: the most tokens to add.
            sampling: how its tokens are chosen.
            timeout: seconds from now after which it ends, whatever it has.
            thinking: ends a thought that gets too long.
            boundaries: prompt lengths at which the prefix cache keeps the state: where another
                prompt may go on differently, such as the end of a chat's last message.

        Raises:
            QueueFull: as many requests wait as may.
            ValueError: the prompt is empty or does not fit, or settings are out of range.
        """
        if not isinstance(prompt, str | Prompt) and not len(prompt):
            raise ValueError("the prompt is empty: at least one token is needed")
        [row], [seen] = encode_prompts(self.batch.params, self._tokenizer, [prompt])
        tokens, pictures = tuple(row), seen if seen is not None and seen.images.grid else None
        max_new_tokens = integer("max_new_tokens", max_new_tokens)
        self._check(tokens, max_new_tokens, sampling, thinking)
        if len(self.waiting) >= self.settings.queue:
            raise QueueFull(f"{len(self.waiting)} requests wait already, as many as may")
        now = self._clock()
        return self._queue(
            tokens=tokens,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            thinking=thinking,
            deadline=None if timeout is None else now + timeout,
            boundaries=tuple(boundaries),
            submitted=now,
            pictures=pictures,
        )

    @everywhere
    def _queue(self, **asked: Any) -> Request:
        request = Request(
            **asked,
            id=self._next_id,
            ends=self._ends,
            stream=TextStream(self._tokenizer),
            keys=cache_keys(asked["tokens"], asked["pictures"]),
        )
        self._next_id += 1
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request, which keeps what it has; one that has ended stays as it is."""
        if not request.done:
            self._cancel(request.id)

    @everywhere
    def _cancel(self, number: int) -> None:
        request = next(request for request in self._present() if request.id == number)
        with self._guard(request):
            self._end(request, "cancelled")

    @property
    def max_capacity(self) -> int:
        """The most tokens that a request can have, prompt and continuation."""
        assert self.settings.max_capacity is not None  # `for_model` resolves it
        return self.settings.max_capacity

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self.waiting and self._filling is None and not any(self.running)

    def step(self) -> list[Piece]:
        """Reads some of a prompt, adds a token to every running request, and returns them.

        What goes wrong in one request ends that one as "error". If a step of all slots fails, it
        ends all that run; the engine goes on with those that wait. In one of several processes,
        what fails on the device ends the engine there, and so in all of them.
        """
        return self._step(self._clock())

    @everywhere
    def _step(self, now: float) -> list[Piece]:
        self._expire(now)
        pieces: list[Piece] = []
        try:
            self._read_prompts()
            self._advance(pieces)
        except BaseException as error:
            if self._together is not None:
                raise
            self._reset(error)
            if not isinstance(error, Exception):
                raise
        return pieces

    def run(self) -> Iterator[Piece]:
        """Steps until nothing is left to do, and yields the pieces of all requests."""
        while not self.idle:
            yield from self.step()

    def stream(self, request: Request) -> Iterator[Piece]:
        """Steps until the request has ended, and yields its pieces; others go on besides.

        Raises the exception that ended it, if one did.
        """
        while not request.done:
            yield from (piece for piece in self.step() if piece.row == request.id)
        if request.error is not None:
            raise request.error

    @everywhere
    def warm_up(self) -> None:
        """Compiles all that any request of the present capacity needs: no later step compiles."""
        self.batch.warm_up()

    @everywhere
    def keep(self, keys: Sequence[int], row: Rows) -> None:
        """Puts a row that has read a prompt of these keys into the prefix cache."""
        if self.cache is not None:
            kv = self.batch.keys_and_values(row, self.cache.known(keys), len(keys))
            self.cache.insert(keys, kv, self.batch.snapshot(row))

    @everywhere
    def recall(self, keys: Sequence[int]) -> tuple[int, Rows]:
        """Returns how many of these keys the prefix cache knows, and the row after those."""
        if self.cache is not None:
            match = self.cache.lookup(keys)
            if match.snapshot is not None:
                return match.length, self.batch.restore(match)
        return 0, self.batch.blank()

    @everywhere
    def gather(self, keys: Sequence[int]) -> tuple[int, State, Tensor]:
        """Returns how many of these keys the prefix cache knows, and of the row after those the
        whole state and the logits, on the CPU: what `adopt` takes, on any mesh."""
        length, row = self.recall(keys)
        whole = gather_state(self.batch.params, row.state)
        return length, whole, device_put(row.logits, "cpu")

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
    def _adopt(self, keys: tuple[int, ...], state: State, logits: Tensor) -> None:
        self._make_room(len(keys))
        params = self.batch.params
        state = scatter_state(params, grow(state, self.batch.capacity))
        self.keep(keys, Rows(state, device_put(logits, params.device.type)))

    @property
    def leads(self) -> bool:
        """Whether requests go to this engine, rather than to that of another process."""
        return self._together is None or self._together.leads

    def follow(self) -> None:
        """Does what the engine of the first process does, until that one is closed.

        Raises:
            RuntimeError: that process has ended otherwise, or the two disagree.
        """
        if self._together is not None:
            self._together.follow(self)

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

    def _read_prompts(self) -> None:
        """Reads prompts for one step's budget, in order; a slot is taken when one is read."""
        budget, read = self.settings.budget_for(self._busy), 0
        while True:
            if self._filling is None:
                if not self.waiting or self._busy == self.settings.slots:
                    return
                request = self.waiting.popleft()
                with self._guard(request, alike=False):
                    self._filling = self._start(request)
                continue
            filling = self._filling
            with self._guard(filling.request, alike=False):
                if filling.done < len(filling.request.tokens):
                    size = self.batch.size_for(self._next_end(filling) - filling.done)
                    if read and read + size > budget:
                        return
                    read += size
                    filling = self._filling = self._read(filling)
                if filling.done == len(filling.request.tokens):
                    self._join(filling)

    @property
    def _busy(self) -> int:
        """Slots in use."""
        return self.settings.slots - self.running.count(None)

    def _start(self, request: Request) -> _Filling:
        """Prepares a row to read the prompt into, from the cache's best start."""
        size = len(request.tokens)
        self._make_room(size + request.max_new_tokens)
        if self.cache is None:
            return _Filling(request, self.batch.blank(), 0, (size,), self._encode(request, 0))
        match = self.cache.lookup(request.keys)
        request.cached_tokens = match.length
        regular = range(0, size, self.settings.snapshot_every)
        # Where this prompt leaves another one, a third may leave it too.
        stops = {size, match.shared, *request.boundaries, *regular}
        ahead = tuple(sorted(stop for stop in stops if match.length < stop <= size))
        row = self.batch.restore(match) if match.snapshot is not None else self.batch.blank()
        return _Filling(request, row, match.length, ahead, self._encode(request, match.length))

    def _encode(self, request: Request, start: int) -> RowPictures | None:
        """Encodes the pictures that are still to be read from `start` on."""
        prompt = request.pictures
        return None if prompt is None else encode_pictures(self.batch.params, prompt, start)

    def _read(self, filling: _Filling) -> _Filling:
        """Reads one chunk of the prompt."""
        request, row, done, stops, pictures = filling
        end = self._next_end(filling)
        here = None if pictures is None else piece([pictures], done, self.batch.chunk)
        row = self.batch.prefill(row, request.tokens[done:end], here)
        if end == stops[0]:
            stops = stops[1:]
            self.keep(request.keys[:end], row)
        return filling._replace(row=row, done=end, stops=stops)

    def _next_end(self, filling: _Filling) -> int:
        """Returns the prompt length up to which the next prefill step reads."""
        return min(filling.done + self.batch.chunk, filling.stops[0])

    def _join(self, filling: _Filling) -> None:
        """Gives the request a slot."""
        request, slot = filling.request, self.running.index(None)
        self.batch.put(slot, filling.row, request.sampling, request.tokens)
        self.running[slot], self._filling = request, None

    def _advance(self, pieces: list[Piece]) -> None:
        """Chooses a token for every running request and decodes it.

        Where steps run ahead, the choice is read when decoding has been started: see `Batch`.
        """
        running = [request for request in self.running if request is not None]
        if not running:
            return
        choice = self.batch.choose(
            [bool(request and request.new_tokens) for request in self.running],
            all(request.sampling.plain for request in running),
            all(request.sampling.short for request in running),
            [request.forced if request else None for request in self.running],
        )
        if self.batch.ahead:
            self._decode(pending=1)
        limits = [request.sampling.logprobs if request else None for request in self.running]
        chosen, now = read_choice(choice, limits), self._clock()
        for slot, (token, logprob) in enumerate(chosen):
            request = self.running[slot]
            if request is not None:
                with self._guard(request):
                    pieces.append(request.choose(token, logprob, now))
                    if request.done:
                        self._leave(slot, request.new_tokens[:-1])  # the last is not decoded
        if not self.batch.ahead:
            self._decode(pending=0)

    def _decode(self, pending: int) -> None:
        """Runs the tokens just chosen, `pending` of which are still to be read, but for those that
        are the last."""
        active = [
            request is not None and len(request.new_tokens) + pending < request.max_new_tokens
            for request in self.running
        ]
        if any(active):
            self.batch.decode(active)

    def _leave(self, slot: int, decoded: Sequence[int]) -> None:
        """Frees a slot, and keeps its state for a prompt that goes on from there."""
        request, self.running[slot] = self.running[slot], None
        if self.cache is not None and request is not None:
            self.keep((*request.keys, *decoded), self.batch.take(slot))

    def _make_room(self, needed: int) -> None:
        if needed > self.batch.capacity:
            self.batch.grow(min(buckets.doubling(needed), self.max_capacity))
            if self._filling is not None:
                row = self._filling.row
                row = row._replace(state=grow(row.state, self.batch.capacity))
                self._filling = self._filling._replace(row=row)

    def _present(self) -> list[Request]:
        """Lists the requests that have not ended."""
        filling = [self._filling.request] if self._filling is not None else []
        return [*self.waiting, *filling, *filter(None, self.running)]

    def _expire(self, now: float) -> None:
        for request in self._present():
            if request.deadline is not None and now >= request.deadline:
                with self._guard(request):
                    self._end(request, "timeout")

    def _end(self, request: Request, reason: str) -> None:
        """Takes a request out between two steps, wherever it is."""
        request.finish_reason = reason
        if request in self.running:
            self._leave(self.running.index(request), request.new_tokens)
        self._forget(request)
        request.text += request.stream.finish()

    def _forget(self, request: Request) -> None:
        if self._filling is not None and self._filling.request is request:
            self._filling = None
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.running:
            self.running[self.running.index(request)] = None

    @contextlib.contextmanager
    def _guard(self, request: Request, alike: bool = True) -> Iterator[None]:
        """Lets an exception inside end this request and nothing else.

        Args:
            alike: whether it comes in all processes of the engine, if in any. Otherwise it ends the
                engine: the other processes may wait in the middle of what they do together.
        """
        try:
            yield
        except Exception as error:
            if self._together is not None:
                if not alike:
                    raise
                self._together.note(f"request {request.id}: {error!r} ")
            request.finish_reason, request.error = "error", error
            self._forget(request)

    def _reset(self, error: BaseException) -> None:
        """Ends all running requests: a step that failed may have consumed their state."""
        for request in filter(None, self.running):
            request.finish_reason = "error"
            request.error = error if isinstance(error, Exception) else RuntimeError("interrupted")
        self.running = [None] * len(self.running)
        self.batch.reset()

    def _check(
        self,
        tokens: tuple[int, ...],
        max_new_tokens: int,
        sampling: Sampling,
        thinking: ThinkingBudget | None,
    ) -> None:
        needed = len(tokens) + max_new_tokens
        if needed > self.max_capacity:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens and {max_new_tokens} more are asked for: "
                f"{needed} in all, over the engine's capacity of {self.max_capacity}"
            )
        sampling.check_vocabulary(self.batch.params.config.vocab_size)
        if (sampling.logprobs or 0) > self.settings.top_logprobs:
            raise ValueError(
                f"logprobs is {sampling.logprobs}, over the engine's top_logprobs of "
                f"{self.settings.top_logprobs}"
            )
        if thinking is not None and sampling.logprobs is not None:
            raise ValueError("a thinking budget puts in tokens of its own, without logprobs")


def _join(params: Params, settings: EngineSettings) -> Together | None:
    """Joins the engines of the other processes, if the parameters are those of one rank of some."""
    mesh = params.runtime.mesh
    if mesh is None or mesh.size == 1:
        return None
    if params.runtime.rank is None and mesh.dp > 1:
        raise ValueError(
            f"an engine runs on the ranks of one dp row, not on dp = {mesh.dp}: replicas are "
            "engines of their own"
        )
    if params.runtime.rank is None or mesh.tp == 1:
        return None
    return Together(params, settings=settings)
