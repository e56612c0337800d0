"""What follows a prompt, as it grows token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..prompts.tokenizer import TextStream
from .results import Completion, Piece, Timings, TokenLogprob
from .sampling import Sampling


@dataclass(eq=False, kw_only=True)
class Continuation:
    """A row's tokens and text so far, and why they ended.

    Attributes:
        id: the `row` of its pieces.
        max_new_tokens, sampling: as asked for.
        ends: token ids that end it, `sampling.stop` aside.
        stream: turns its tokens into text.
        new_tokens, logprobs, text: what has come so far.
        finish_reason: None while it goes on.
        stopped_by_text: whether a stop text has ended it, which no device knows of.
    """

    id: int
    max_new_tokens: int
    sampling: Sampling
    ends: frozenset[int]
    stream: TextStream
    new_tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stopped_by_text: bool = False
    _held: str = ""

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.finish_reason is not None

    def push(self, token: int, logprob: TokenLogprob | None) -> Piece:
        """Adds a token, which may be the last; one that ends the row has no text."""
        self.new_tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self.ends or token in self.sampling.stop_tokens:
            self.finish_reason = "stop"
            return Piece(self.id, self.finish(), token)
        self._held += self.stream.push(token)
        text = self._release(_may_complete(self._held, self.sampling.stop_texts))
        if not self.done and len(self.new_tokens) == self.max_new_tokens:
            self.finish_reason = "length"
            text += self.finish()
        return Piece(self.id, text, token)

    def finish(self) -> str:
        """Gives out the text still held back, of a row that has ended for whatever reason."""
        self._held += self.stream.finish()
        return self._release(0)

    def _release(self, kept: int) -> str:
        """Gives out the text held back but for its last characters, or what comes before a stop
        text in it, which ends a row that goes on."""
        cut = cut_at(self._held, self.sampling.stop_texts)
        if cut is None:
            cut, rest = len(self._held) - kept, self._held[len(self._held) - kept :]
        else:
            self.stopped_by_text, rest = not self.done, ""
            self.finish_reason = self.finish_reason or "stop"
        text, self._held = self._held[:cut], rest
        self.text += text
        return text

    def completed(self, timings: Timings) -> Completion:
        """Returns the result, of one that has ended."""
        return Completion(
            self.text,
            tuple(self.new_tokens),
            self.finish_reason,
            timings,
            tuple(self.logprobs) if self.sampling.logprobs is not None else None,
        )


def cut_at(text: str, stops: Sequence[str]) -> int | None:
    """Returns where the first of the stop texts in a text begins."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def _may_complete(text: str, stops: Sequence[str]) -> int:
    """Counts the last characters of a text that may be the start of a stop text."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    sizes = range(longest, 0, -1)
    return next((size for size in sizes if any(s.startswith(text[-size:]) for s in stops)), 0)
