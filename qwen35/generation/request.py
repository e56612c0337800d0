"""A request of the engine: what was asked for, and what has come of it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..prompts.processor import Prompt
from .continuation import Continuation
from .results import Completion, Piece, Timings, TokenLogprob


class ThinkingBudget(NamedTuple):
    """Ends a thought that gets too long.

    tokens: how many a thought may have. end: the id that ends a thought ("</think>"). close: what
    is put in where the thought has not ended by itself, `end` among it.
    """

    tokens: int
    end: int
    close: tuple[int, ...]


@dataclass(eq=False, kw_only=True)
class Request(Continuation):
    """A continuation that was asked of an engine.

    Made by `Engine.submit`; the engine writes to it, everyone may read it.

    Attributes:
        tokens: the prompt's ids.
        keys: the same for the prefix cache, see `cache_keys`.
        pictures: what a processor made of the prompt, if it has pictures.
        thinking: as asked for.
        deadline: when it ends as "timeout", on the engine's clock; None never.
        boundaries: prompt lengths at which the prefix cache keeps the state.
        submitted, first, last: on the engine's clock, when it was queued and when its first and
            latest tokens came.
        cached_tokens: prompt tokens that the prefix cache saved.
        error: what ended it, if the finish reason is "error".
    """

    tokens: tuple[int, ...]
    keys: tuple[int, ...]
    pictures: Prompt | None
    thinking: ThinkingBudget | None
    deadline: float | None
    boundaries: tuple[int, ...]
    submitted: float
    first: float | None = None
    last: float | None = None
    cached_tokens: int = 0
    error: Exception | None = None
    _forced: deque[int] = field(default_factory=deque)

    def choose(self, token: int, logprob: TokenLogprob | None, now: float) -> Piece:
        """Takes the model's next token, or puts another in its place; may end the request."""
        token = self._thought_through(token)
        if self.first is None:
            self.first = now
        self.last = now
        return self.push(token, logprob)

    @property
    def forced(self) -> tuple[int, int] | None:
        """The token that will stand in the next one's place, and the one that the model may have
        chosen to keep its own (-1: none); None leaves the model its choice. Known beforehand."""
        if self._forced:
            return self._forced[0], -1
        budget = self.thinking
        if budget is None or len(self.new_tokens) < budget.tokens or not budget.close:
            return None
        return None if budget.end in self.new_tokens else (budget.close[0], budget.end)

    def _thought_through(self, token: int) -> int:
        if self.forced is None or token == self.forced[1]:
            return token
        if not self._forced:
            self._forced.extend(self.thinking.close)
            self.thinking = None
        return self._forced.popleft()

    def completion(self) -> Completion:
        """Returns the result, of a request that has ended.

        Raises:
            RuntimeError: it has not.
        """
        if not self.done:
            raise RuntimeError(f"request {self.id} is still running")
        first = decoding = 0.0
        if self.first is not None:
            first, decoding = self.first - self.submitted, self.last - self.first
        later = len(self.new_tokens) - 1
        return self.completed(Timings.of(0.0, first, decoding, later))


def cache_keys(tokens: Sequence[int], pictures: Prompt | None) -> tuple[int, ...]:
    """Returns what tells prompts apart: token ids, and numbers below 0 where a picture stands.

    All pictures have the same placeholder; what the model reads there comes from their pixels.
    """
    if pictures is None or not pictures.images.grid:
        return tuple(tokens)
    keys, images = list(tokens), pictures.images
    places, patches = iter(images.index.tolist()), images.patches
    per_token = len(patches) // len(images.index)
    for t, h, w in images.grid:
        picture, patches = patches[: t * h * w], patches[t * h * w :]
        content = repr((t, h, w)).encode() + picture.contiguous().numpy().tobytes()
        digest = int.from_bytes(hashlib.sha256(content).digest()[:7])
        for number in range(t * h * w // per_token):
            keys[next(places)] = -1 - digest - number
    return tuple(keys)
