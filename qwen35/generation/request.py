"""A request of the engine: what was asked for, and what has come of it."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..prompts.processor import Prompt
from ..prompts.tokenizer import TextStream
from .results import Completion, Piece, Timings, TokenLogprob
from .sampling import Sampling


class ThinkingBudget(NamedTuple):
    """Ends a thought that gets too long.

    tokens: how many a thought may have. end: the id that ends a thought ("</think>"). close: what
    is put in where the thought has not ended by itself, `end` among it.
    """

    tokens: int
    end: int
    close: tuple[int, ...]


@dataclass(eq=False)
class Request:
    """Made by `Engine.submit`; the engine writes to it, everyone may read it.

    Attributes:
        id: the `row` of its pieces.
        tokens: the prompt's ids.
        keys: the same for the prefix cache, see `cache_keys`.
        pictures: what a processor made of the prompt, if it has pictures.
        max_new_tokens, sampling, thinking: as asked for.
        deadline: when it ends as "timeout", on the engine's clock; None never.
        boundaries: prompt lengths at which the prefix cache keeps the state.
        cached_tokens: prompt tokens that the prefix cache saved.
        new_tokens, logprobs, text: what has come so far.
        finish_reason: None while it is waiting or running.
        error: what ended it, if the finish reason is "error".
    """

    id: int
    tokens: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    thinking: ThinkingBudget | None
    deadline: float | None
    boundaries: tuple[int, ...]
    ends: frozenset[int]
    stream: TextStream
    submitted: float
    keys: tuple[int, ...]
    pictures: Prompt | None = None
    cached_tokens: int = 0
    new_tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    error: Exception | None = None
    first: float | None = None
    last: float | None = None
    _forced: deque[int] = field(default_factory=deque)

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.finish_reason is not None

    def push(self, token: int, logprob: TokenLogprob | None, now: float) -> Piece:
        """Takes the model's next token, or puts another in its place; may end the request."""
        token = self._thought_through(token)
        self.new_tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if self.first is None:
            self.first = now
        self.last = now
        text = self.stream.push(token)
        if token in self.ends:
            self.finish_reason = "stop"
        elif len(self.new_tokens) == self.max_new_tokens:
            self.finish_reason = "length"
        if self.done:
            text += self.stream.finish()
        self.text += text
        return Piece(self.id, text, token)

    def _thought_through(self, token: int) -> int:
        budget = self.thinking
        if budget is not None and not self._forced and budget.end not in self.new_tokens:
            if len(self.new_tokens) >= budget.tokens and token != budget.end:
                self._forced.extend(budget.close)
                self.thinking = None
        return self._forced.popleft() if self._forced else token

    def completion(self) -> Completion:
        """The result, of a request that has ended.

        Raises:
            RuntimeError: it has not.
        """
        if not self.done:
            raise RuntimeError(f"request {self.id} is still running")
        first = decoding = 0.0
        if self.first is not None:
            first, decoding = self.first - self.submitted, self.last - self.first
        later = len(self.new_tokens) - 1
        rate = later / decoding if later > 0 and decoding > 0 else None
        return Completion(
            self.text,
            tuple(self.new_tokens),
            self.finish_reason,
            Timings(0.0, first, decoding, rate),
            tuple(self.logprobs) if self.sampling.logprobs is not None else None,
        )


def cache_keys(tokens: Sequence[int], pictures: Prompt | None) -> tuple[int, ...]:
    """What tells prompts apart: token ids, and numbers below 0 where a picture stands.

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
