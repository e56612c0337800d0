"""What follows a prompt, as it grows token by token."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..prompts.tokenizer import TextStream, TokenizerLike
from .grammar import Grammar
from .results import Completion, Piece, Timings, TokenLogprob
from .sampling_settings import Sampling
from .thinking import ThinkingBudget, begins_thought


@dataclass(eq=False, kw_only=True)
class Continuation:
    """A row's tokens and text so far, and why they ended.

    Attributes:
        id: the `row` of its pieces.
        max_new_tokens, sampling: as asked for.
        ends: all token ids that end it.
        stream: turns its tokens into text.
        grammar: what it may say, if that is limited.
        thinking: what ends a thought that gets too long, if anything.
        new_tokens, logprobs, text: what has come so far.
        offsets: for each token how much of the text had been given out with it.
        finish_reason: None while it goes on.
        stopped_by_text: whether a stop text has ended it, which no device knows of.
    """

    id: int
    max_new_tokens: int
    sampling: Sampling
    ends: frozenset[int]
    stream: TextStream
    grammar: Grammar | None = None
    thinking: ThinkingBudget | None = None
    new_tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    offsets: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stopped_by_text: bool = False
    _held: str = ""
    _forced: deque[int] = field(default_factory=deque)
    _thought: int | None = None  # where the thought begins in `new_tokens`

    def __post_init__(self) -> None:
        if self.thinking is not None and not self.thinking.begin:
            self._thought = 0

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.finish_reason is not None

    @property
    def allowed(self) -> Tensor | None:
        """The tokens that may come next, see `Grammar.allowed`; None where nothing limits them."""
        if self.grammar is None:
            return None
        return self.grammar.anything if self.done else self.grammar.allowed

    @property
    def forced(self) -> tuple[int, int] | None:
        """The token that will stand in the next one's place, and the one that the model may have
        chosen to keep its own (-1: none); None leaves the model its choice. Known beforehand."""
        if self._forced:
            return self._forced[0], -1
        budget, start = self.thinking, self._thought
        if budget is None or start is None or not budget.close:
            return None
        if len(self.new_tokens) < start + budget.tokens or budget.end in self.new_tokens[start:]:
            return None
        return budget.close[0], budget.end

    def _thought_through(self, token: int) -> int:
        if self.forced is None or token == self.forced[1]:
            return token
        if not self._forced and self.thinking is not None:
            self._forced.extend(self.thinking.close)
            self.thinking = None
        return self._forced.popleft()

    def push(self, token: int, logprob: TokenLogprob | None) -> Piece:
        """Adds the model's next token, or puts another in its place; it may be the last, and one
        that ends the row has no text."""
        token = self._thought_through(token)
        if self.grammar is not None:
            self.grammar.take(token)
        piece = self._push(token, logprob)
        self.offsets.append(len(self.text))
        if self.thinking is not None and self._thought is None:
            self._look_for_thought(self.thinking.begin)
        return piece

    def _look_for_thought(self, begin: Sequence[int]) -> None:
        begins = begins_thought(self.text + self._held, self.new_tokens, begin)
        if begins:
            self._thought = len(self.new_tokens)
        elif begins is False:
            self.thinking = None

    def _push(self, token: int, logprob: TokenLogprob | None) -> Piece:
        self.new_tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self.ends:
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


def ends_of(tokenizer: TokenizerLike, sampling: Sampling, model: Iterable[int]) -> frozenset[int]:
    """Returns the ids that end a row of a model with these end tokens.

    Stop texts that are special tokens are among them: those have no text to be found in.
    """
    special = set()
    for text in sampling.stop_texts:
        ids = tokenizer.encode(text)
        if len(ids) == 1 and not tokenizer.decode(ids, skip_special_tokens=True):
            special.add(ids[0])
    return sampling.ends(model) | special


def cut_at(text: str, stops: Sequence[str]) -> int | None:
    """Returns where the first of the stop texts in a text begins."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def _may_complete(text: str, stops: Sequence[str]) -> int:
    """Counts the last characters of a text that may be the start of a stop text."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    sizes = range(longest, 0, -1)
    return next((size for size in sizes if any(s.startswith(text[-size:]) for s in stops)), 0)
