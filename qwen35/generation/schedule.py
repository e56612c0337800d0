"""Who is next: which prompt is read, which slots are decoded, when a request ends.

A step chooses a token for every slot in use and decodes all slots at once; idle ones are rows of
length 0. Requests at the head of the queue have their prompts read piece by piece, each into a row
of its own that is put into a slot when the prompt is read. A piece is read by the graph that
decodes: reading the weights takes most of a decode step's time, and one reading serves both. Where
a step reads several pieces, the last one is read so, and the others beside idle slots. `Batch` has
the tensors.

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
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ..checks.errors import causes
from ..model.rows import grow
from . import buckets, reading
from .batch import Batch
from .engine_settings import EngineSettings
from .keeping import Keeper
from .reading import Filling
from .request import Request
from .results import Piece, read_choice


class Schedule:
    """An engine's requests on their way from the queue through a slot to their end.

    Args:
        batch: the slots.
        keeper: the way into the prefix cache, or None.
        settings: the engine's, with nothing left open.
        clock: seconds.
        note: None where the engine has one process. Otherwise what fails on the device is raised,
            since the other processes may wait in the middle of what they do together; and what
            fails in a request everywhere alike is told to this function.

    Attributes:
        waiting, filling, running: requests in the queue; the one whose prompt is being read, or
            None; and those by slot, None where it is idle. One that has not ended stands in exactly
            one of these, between any two calls and whatever those raised.
    """

    def __init__(
        self,
        batch: Batch,
        keeper: Keeper | None,
        settings: EngineSettings,
        clock: Callable[[], float],
        note: Callable[[str], None] | None,
    ) -> None:
        self.waiting: deque[Request] = deque()
        self.filling: Filling | None = None
        self.running: list[Request | None] = [None] * settings.slots
        self._torn = False  # a step has begun to change what runs, and not come to its end
        self._errors: list[Exception] = []  # that ended requests in this step
        self._batch = batch
        self._keeper = keeper
        self._settings = settings
        self._clock = clock
        self._note = note

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs."""
        return not self.waiting and self.filling is None and not any(self.running)

    def step(self, now: float) -> list[Piece]:
        """Reads some of a prompt, adds a token to every running request, and returns them.

        See `Engine.step` for what goes wrong.
        """
        if self._torn:  # a second interrupt came while a first one's harm was mended
            self._reset(RuntimeError("interrupted"))
        self._expire(now)
        pieces: list[Piece] = []
        try:
            self._torn = True
            self._advance(pieces, self._read_prompts())
            if self.idle:
                self._settle()
            self._torn = False
        except BaseException as error:
            if self._note is not None:
                raise
            self._reset(error)
            if not isinstance(error, Exception):
                raise
        while self._errors:
            _let_go(self._errors.pop())
        return pieces

    def cancel(self, number: int) -> None:
        """Ends the request of this id, which has not ended."""
        request = next(request for request in self._present() if request.id == number)
        self._end(request, "cancelled")
        if self.idle:
            self._settle()

    def check_own(self, request: Request) -> None:
        """Checks that a request that has not ended is one of these.

        Raises:
            ValueError: it is another engine's.
        """
        if request not in self._present():
            raise ValueError(f"request {request.id} is not this engine's, which never got it")

    def make_room(self, needed: int) -> None:
        """Grows the slots, and the row beside them, where a request needs more tokens than they
        hold: all at once, or nothing."""
        batch, filling = self._batch, self.filling
        if needed <= batch.capacity:
            return
        capacity = min(buckets.doubling(needed), self._settings.max_capacity)
        rows = batch.rows._replace(state=grow(batch.rows.state, capacity))
        if filling is not None:
            row = filling.row._replace(state=grow(filling.row.state, capacity))
            filling = filling._replace(row=row)
        batch.rows, batch.capacity, self.filling = rows, capacity, filling

    # -- prompts ------------------------------------------------------------------------------

    def _read_prompts(self) -> bool:
        """Reads prompts for one step's budget, in order. While others run, the last piece is left
        to be read beside decoding: tells whether there is one."""
        budget, read, chunk = self._settings.budget_for(self._busy), 0, self._batch.chunk
        while filling := self._next():
            end = filling.next_end(chunk)
            size = self._batch.size_for(end - filling.done)
            if read and read + size > budget:
                return False
            read += size
            follows = bool(self.waiting) and self._busy < self._settings.slots
            more = end < len(filling.request.tokens) or follows
            if self._busy and (not more or read + chunk > budget):
                return True
            self._read_piece([False] * self._settings.slots)
            self._keep_piece()
        return False

    def _next(self) -> Filling | None:
        """Returns the request whose prompt is to be read on; those whose prompt is read have got
        their slots then. Where none of several is free, a prompt is read ahead for the next that
        is: it is read beside decoding, which a single slot's graphs don't do."""
        while True:
            if self.filling is None:
                if not self.waiting or self._busy == self._settings.slots == 1:
                    return None
                request = self.waiting[0]
                with self._guard(request, alike=False):
                    self.filling = self._start(request)
                    self.waiting.popleft()  # not before: what interrupts the start loses no request
            elif not self.filling.whole:
                return self.filling
            elif self._busy == self._settings.slots:
                return None
            else:
                self._join(self.filling)

    def _read_piece(self, active: Sequence[bool]) -> None:
        """Reads a piece of the prompt that is being read, and decodes the active slots."""
        filling, piece = self.filling, None
        if filling is not None:
            with self._guard(filling.request, alike=False):
                piece = reading.next_piece(self._batch, filling)
        if filling is None or piece is None:
            if any(active):
                self._batch.decode(active)
            return
        row = self._batch.prefill(filling.row, piece, active)
        self.filling = filling._replace(row=row, done=filling.next_end(self._batch.chunk))

    def _keep_piece(self) -> None:
        """Keeps what has been read of a prompt in the cache where it should be."""
        if self.filling is not None:
            with self._guard(self.filling.request, alike=False):
                self.filling = reading.keep_piece(self._keeper, self.filling)

    @property
    def _busy(self) -> int:
        """Slots in use."""
        return self._settings.slots - self.running.count(None)

    def _start(self, request: Request) -> Filling:
        self.make_room(len(request.tokens) + request.max_new_tokens)
        return reading.start(self._batch, self._keeper, request, self._settings.snapshot_every)

    def _join(self, filling: Filling) -> None:
        """Gives the request a slot. What fails here may have consumed what all slots share."""
        request, slot = filling.request, self.running.index(None)
        self._batch.put(slot, filling.row, request.sampling, request.tokens, request.ends)
        self.running[slot], self.filling = request, None

    # -- slots --------------------------------------------------------------------------------

    def _advance(self, pieces: list[Piece], reads: bool) -> None:
        """Chooses a token for every running request and decodes it.

        Where steps run ahead, the choice is read when decoding has been started: see `Batch`.

        Args:
            reads: whether a piece of a prompt is read beside decoding; some run then.
        """
        running = [request for request in self.running if request is not None]
        if not running:
            return
        choice = self._batch.choose(
            [bool(request and request.new_tokens) for request in self.running],
            all(request.sampling.plain for request in running),
            all(request.sampling.short for request in running),
            [request.forced if request else None for request in self.running],
            [request.allowed if request else None for request in self.running],
        )
        if self._batch.ahead:
            self._decode(1, reads)
        limits = [request.sampling.logprobs if request else None for request in self.running]
        chosen, now = read_choice(choice, limits), self._clock()
        self._settle()
        for slot, (token, logprob) in enumerate(chosen):
            request = self.running[slot]
            if request is not None:
                with self._guard(request):
                    pieces.append(request.choose(token, logprob, now))
                    if request.done:
                        self.running[slot] = None
                        self._keep(request, slot, self._decoded(request))
        if not self._batch.ahead:
            self._decode(0, reads)
        if reads:
            self._keep_piece()

    def _decoded(self, request: Request) -> Sequence[int]:
        """Returns the tokens that the device has read of a request that just ended: the last one
        only where it was ended by a text, of which the device knows nothing, and steps run ahead.
        """
        ahead = self._batch.ahead and len(request.new_tokens) < request.max_new_tokens
        last_too = request.stopped_by_text and ahead
        return request.new_tokens if last_too else request.new_tokens[:-1]

    def _decode(self, pending: int, reads: bool) -> None:
        """Runs the tokens just chosen, `pending` of which are still to be read, but for those that
        are the last."""
        active = [
            request is not None and len(request.new_tokens) + pending < request.max_new_tokens
            for request in self.running
        ]
        if reads:
            self._read_piece(active)
        elif any(active):
            self._batch.decode(active)

    def _keep(self, request: Request, slot: int, decoded: Sequence[int]) -> None:
        """Keeps the state of a request that leaves its slot, for a prompt that goes on there."""
        if self._keeper is not None:
            replica = self._batch.replica_of(slot)
            self._keeper.keep((*request.keys, *decoded), self._batch.take(slot), replica)

    def _settle(self) -> None:
        """Puts into the prefix cache what was copied for it."""
        if self._keeper is not None:
            self._keeper.settle()

    # -- ends ---------------------------------------------------------------------------------

    def _present(self) -> list[Request]:
        """Lists the requests that have not ended."""
        filling = [self.filling.request] if self.filling is not None else []
        return [*self.waiting, *filling, *filter(None, self.running)]

    def _expire(self, now: float) -> None:
        for request in self._present():
            if request.deadline is not None and now >= request.deadline:
                self._end(request, "timeout")

    def _end(self, request: Request, reason: str) -> None:
        """Ends a request between two steps, wherever it is."""
        with self._guard(request):
            if request in self.running:
                self._keep(request, self.running.index(request), request.new_tokens)
            self._take_out(request, reason)
            request.finish()

    def _take_out(self, request: Request, reason: str, error: Exception | None = None) -> None:
        """Ends a request and takes it out of where it stands, both or nothing."""
        waiting = deque(other for other in self.waiting if other is not request)
        running = [None if other is request else other for other in self.running]
        here = self.filling is not None and self.filling.request is request
        places = waiting, None if here else self.filling, running
        request.error = error
        (self.waiting, self.filling, self.running), request.finish_reason = places, reason

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
            if self._note is not None:
                if not alike:
                    raise
                self._note(f"request {request.id}: {error!r} ")
            self._take_out(request, "error", error)
            self._errors.append(error)

    def _reset(self, error: BaseException) -> None:
        """Ends all requests that have a state: a step that failed may have consumed it."""
        cause = error if isinstance(error, Exception) else RuntimeError("interrupted")
        self._errors.append(cause)
        filling = [] if self.filling is None else [self.filling.request]
        for request in (*filling, *filter(None, self.running)):
            self._take_out(request, "error", cause)
        self._batch.reset()
        if self._keeper is not None:
            self._keeper.clear()
        self._torn = False


def _let_go(error: BaseException) -> None:
    """Empties the frames of an error: they hold tensors, and it is kept as long as its request."""
    for one in causes(error, contexts=True):
        traceback.clear_frames(one.__traceback__)
