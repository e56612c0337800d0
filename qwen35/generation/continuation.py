"""What follows a prompt, as it grows token by token."""

from __future__ import annotations

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

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.finish_reason is not None

    def push(self, token: int, logprob: TokenLogprob | None) -> Piece:
        """Adds a token, which may be the last."""
        self.new_tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        text = self.stream.push(token)
        if token in self.ends or token in self.sampling.stop:
            self.finish_reason = "stop"
        elif len(self.new_tokens) == self.max_new_tokens:
            self.finish_reason = "length"
        if self.done:
            text += self.stream.finish()
        self.text += text
        return Piece(self.id, text, token)

    def completed(self, timings: Timings) -> Completion:
        """Returns the result, of one that has ended."""
        return Completion(
            self.text,
            tuple(self.new_tokens),
            self.finish_reason,
            timings,
            tuple(self.logprobs) if self.sampling.logprobs is not None else None,
        )
