"""What generation returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..xla.devices import device_put
from .sampling import Choice


class Piece(NamedTuple):
    """What one step adds to a row: the token and the text that it completes (maybe "")."""

    row: int
    text: str
    token: int


@dataclass(frozen=True)
class Timings:
    """Where the time of a call went, in seconds; the whole batch's, not one row's.

    Attributes:
        compile: tracing and compiling, part of neither of the others.
        first_token: from the start of prefill to the first token.
        decode: from the first token to the last.
        tokens_per_second: tokens of all rows after their first, over `decode`; None if no row
            has a second token.
    """

    compile: float
    first_token: float
    decode: float
    tokens_per_second: float | None

    @classmethod
    def of(cls, compile: float, first_token: float, decode: float, later: int) -> Timings:
        """Timings of a call with `later` tokens after its rows' first ones."""
        rate = later / decode if later > 0 and decode > 0 else None
        return cls(compile, first_token, decode, rate)


class TokenLogprob(NamedTuple):
    """A token's log probability, and the likeliest tokens at its place as (token, logprob)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Completion:
    """A row's result.

    Attributes:
        text: the continuation, without special tokens.
        tokens: the continuation's ids, a final end token included.
        finish_reason: "stop" at an end token, "length" at max_new_tokens; an engine's requests
            also end as "cancelled", "timeout" or "error".
        timings: of the call that produced it; an engine's request has its own.
        logprobs: for each token, if the row's `Sampling.logprobs` asked for them.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None


def read_choice(
    choice: Choice, limits: Sequence[int | None]
) -> list[tuple[int, TokenLogprob | None]]:
    """Reads a choice back: for each row its token and, where the row's limit is a number, its log
    probabilities with that many likeliest tokens."""
    choice = device_put(choice, "cpu")
    tokens = choice.token.tolist()
    if choice.logprob is None:
        return [(token, None) for token in tokens]
    values = choice.logprob.tolist()
    tops: list[list[tuple[int, float]]] = [[]] * len(tokens)
    if choice.top_tokens is not None and choice.top_logprobs is not None:
        pairs = zip(choice.top_tokens.tolist(), choice.top_logprobs.tolist(), strict=True)
        tops = [list(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]
    return [
        (token, None if limit is None else TokenLogprob(token, value, tuple(top[:limit])))
        for token, value, top, limit in zip(tokens, values, tops, limits, strict=True)
    ]
