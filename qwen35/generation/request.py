"""A request of the engine: what was asked for, and what has come of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..prompts.processor import Prompt
from .continuation import Continuation
from .results import Completion, Piece, Timings, TokenLogprob


@dataclass(eq=False, kw_only=True)
class Request(Continuation):
    """A continuation that was asked of an engine.

    Made by `Engine.submit`; the engine writes to it, everyone may read it.

    Attributes:
        tokens: the prompt's ids.
        keys: the same for the prefix cache, see `cache_keys`.
        pictures: what a processor made of the prompt, if it has pictures.
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
    deadline: float | None
    boundaries: tuple[int, ...]
    submitted: float
    first: float | None = None
    last: float | None = None
    cached_tokens: int = 0
    error: Exception | None = None

    def choose(self, token: int, logprob: TokenLogprob | None, now: float) -> Piece:
        """Takes the model's next token, or puts another in its place; may end the request."""
        if self.first is None:
            self.first = now
        self.last = now
        return self.push(token, logprob)

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
