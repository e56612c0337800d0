"""The marks around a thought, whether a prompt begins one, and how one that gets too long ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..checks.values import integer, shown, token_ids
from ..prompts.tokenizer import TokenizerLike
from .sampling_settings import Sampling, check_sampling

THINK, THINK_END = "<think>", "</think>"
_TAIL = 4  # tokens behind a "<think>" that ends a prompt


class ThinkingBudget(NamedTuple):
    """Ends a thought that gets too long.

    tokens: how many a thought may have. end: the id that ends a thought ("</think>"). close: what
    is put in where the thought has not ended by itself, `end` among it. begin: the ids with which
    the row begins its thought ("<think>"), and without which it has none; none where the thought is
    its beginning.
    """

    tokens: int
    end: int
    close: tuple[int, ...]
    begin: tuple[int, ...] = ()

    def check(self, vocabulary: int) -> None:
        """Raises ValueError for a number of tokens that is none, or ids outside the vocabulary."""
        integer("thinking.tokens", self.tokens, 0)
        for name, ids in (("end", (self.end,)), ("close", self.close), ("begin", self.begin)):
            if not isinstance(ids, tuple | list):
                raise ValueError(f"thinking.{name} must be token ids, not {shown(ids)}")
            token_ids(f"thinking.{name}", ids, vocabulary)

    def behind(self, tokenizer: TokenizerLike, prompt: Sequence[int]) -> ThinkingBudget:
        """Returns the budget of what follows a prompt, which may have begun the thought."""
        open_ = bool(self.begin) and is_open(tokenizer, prompt)
        return self._replace(begin=()) if open_ else self


def check_asked(sampling: Sampling, thinking: ThinkingBudget | None, vocabulary: int) -> None:
    """Checks how a row's tokens are to be chosen, whatever was passed.

    Raises:
        ValueError: one is something else than it should be, has ids outside the vocabulary, or they
            do not go together.
    """
    check_sampling(sampling)
    sampling.check_vocabulary(vocabulary)
    if thinking is None:
        return
    if not isinstance(thinking, ThinkingBudget):
        raise ValueError(f"thinking must be a ThinkingBudget, not {shown(thinking)}")
    thinking.check(vocabulary)
    if sampling.logprobs is not None:
        raise ValueError("a thinking budget puts in tokens of its own, without logprobs")


def begins_thought(said: str, tokens: Sequence[int], begin: Sequence[int]) -> bool | None:
    """Tells whether an answer begins with a thought, and None while that can't be known.

    Args:
        said: its text so far, in which "<think>" may be missing, as a special token.
        tokens: its tokens so far.
        begin: those of "<think>".
    """
    said = said.lstrip()
    if said.startswith(THINK) or (not said and list(tokens[-len(begin) :]) == list(begin)):
        return True
    return None if THINK.startswith(said) else False


def is_open(tokenizer: TokenizerLike, prompt: Sequence[int]) -> bool:
    """Tells whether a prompt ends in the beginning of a thought."""
    start = tokenizer.encode(THINK)
    tail = list(prompt[-len(start) - _TAIL :])
    for place in range(len(tail) - len(start), -1, -1):
        if tail[place : place + len(start)] == list(start):
            return not tokenizer.decode(tail[place + len(start) :]).strip()
    return False
