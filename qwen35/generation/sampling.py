"""Choosing the next token from logits: pure functions over per-row tensors, part of a step's graph.

No operation sorts. A draw is the argmax of logits with Gumbel noise added. Where no row keeps more
than its `CANDIDATES` most likely tokens, only those are looked at; elsewhere top-k and top-p are
thresholds, found bit by bit: each of the fixed number of rounds compares all logits with a
candidate and sums. Settings are data: other values, or other ones in each row, need no other graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..checks.values import as_integer, integer, is_number
from ..xla.devices import indices
from .largest import largest
from .threefry import gumbel, gumbel_at

# The most likely tokens among which a row draws if its top-k leaves no more.
CANDIDATES = 64
# Added to a token's count when it stands in the prompt.
_IN_PROMPT = 1 << 20
# A single setting for several rows gives each its own seed; the golden ratio spreads them.
_SEED_STEP = 0x9E3779B97F4A7C15
_SEEDS = 2**62


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are chosen.

    In this order: logit bias and banned tokens, the penalties, temperature, top-k, top-p over
    what top-k leaves, min-p, the draw. Tokens of equal logits stay or go together, unless that
    makes more than 64 of a top-k of at most 64.

    Attributes:
        temperature: 0 takes the most likely token; above, logits are divided by it.
        seed: a token's draw depends on the seed, its position in the sequence and the row's logits
            alone. Of a batch with one setting for all, row b has a seed derived from this and b,
            row 0 this one.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens up to and including the one whose probability brings
            their sum to top_p; 1 keeps all.
        min_p: keep tokens at least min_p times as likely as the most likely one; 0 keeps all.
        repetition_penalty: logits of tokens in prompt or continuation are divided by it where
            positive and multiplied where negative (Keskar et al., "CTRL", 2019); 1 is off.
        presence_penalty: subtracted from logits of tokens in the continuation.
        frequency_penalty: the same for each time they are there.
        logit_bias: by token id, what is added to its logit.
        banned: ids that are never chosen.
        stop: ids that end the row, besides the model's own end tokens.
        logprobs: report log probabilities of the chosen token and of this many most likely ones,
            as the model gives them, before all of the above. None reports none.
    """

    temperature: float = 0.0
    seed: int = 0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()
    banned: Iterable[int] = ()
    stop: Iterable[int] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        def check(name: str, good: bool, wanted: str) -> None:
            if not good:
                raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)!r}")

        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        def ids(name: str, tokens: Iterable[Any], wanted: str) -> list[int]:
            found = [as_integer(token) for token in tokens]
            check(name, all(token is not None and token >= 0 for token in found), wanted)
            return [token for token in found if token is not None]

        check("temperature", is_number(self.temperature) and self.temperature >= 0, "a number >= 0")
        put("seed", integer("seed", self.seed, 0, _SEEDS - 1))
        put("top_k", integer("top_k", self.top_k, 0, 2**24 - 1))
        check("top_p", is_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1")
        check("min_p", is_number(self.min_p) and 0 <= self.min_p <= 1, "from 0 to 1")
        penalty = self.repetition_penalty
        check("repetition_penalty", is_number(penalty) and penalty > 0, "a number above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            check(name, is_number(getattr(self, name)), "a number")
        if self.logprobs is not None:
            put("logprobs", integer("logprobs", self.logprobs, 0))
        bias, wanted = self.logit_bias, "numbers by token id (banned forbids a token)"
        pairs = list(bias.items() if isinstance(bias, Mapping) else map(tuple, bias))
        check("logit_bias", all(len(pair) == 2 and is_number(pair[1]) for pair in pairs), wanted)
        biased = ids("logit_bias", (token for token, _ in pairs), wanted)
        put("logit_bias", tuple(zip(biased, (value for _, value in pairs), strict=True)))
        for name in ("banned", "stop"):
            put(name, tuple(ids(name, getattr(self, name), "token ids")))

    @property
    def penalized(self) -> bool:
        """Whether tokens have to be counted."""
        penalties = self.repetition_penalty, self.presence_penalty, self.frequency_penalty
        return penalties != (1, 0, 0)

    @property
    def plain(self) -> bool:
        """Whether the most likely token is all that is asked for."""
        biased = self.logit_bias or self.banned
        return not (self.temperature or self.penalized or biased or self.logprobs is not None)

    @property
    def short(self) -> bool:
        """Whether it keeps no more than the `CANDIDATES` most likely tokens."""
        return not self.temperature or 0 < self.top_k <= CANDIDATES

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as it is kept, whatever it was given as."""
        return cast("tuple[tuple[int, float], ...]", self.logit_bias)

    def for_row(self, row: int) -> Sampling:
        """Returns the settings of row `row` of a batch that has been given this one for all."""
        if row == 0:
            return self
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Sampling(**values | {"seed": (self.seed + row * _SEED_STEP) % _SEEDS})

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises ValueError for an id outside the vocabulary, or if nothing may be chosen."""
        biased = tuple(token for token, _ in self.biases)
        for name, ids in (("logit_bias", biased), ("banned", self.banned), ("stop", self.stop)):
            wrong = [token for token in ids if token >= vocabulary]
            if wrong:
                raise ValueError(
                    f"{name} has token id {wrong[0]}, outside the vocabulary of {vocabulary}"
                )
        if len(set(self.banned)) == vocabulary:
            raise ValueError(f"banned has all {vocabulary} tokens: one must be left to choose")
        if self.logprobs is not None and self.logprobs > vocabulary:
            raise ValueError(f"logprobs is {self.logprobs}, over the vocabulary of {vocabulary}")


class Draw(NamedTuple):
    """seed [B, 2] int32, temperature [B] float32 (0: no noise)."""

    seed: Tensor
    temperature: Tensor


class Filters(NamedTuple):
    """top_k (0: off), top_p, min_p: [B] float32."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


class Penalties(NamedTuple):
    """repetition, presence, frequency: [B] float32."""

    repetition: Tensor
    presence: Tensor
    frequency: Tensor


class Controls(NamedTuple):
    """The settings of B rows as a pytree. What is None is in no row's settings, nor in the graph.

    bias [B, V] float32: added to the logits, -inf for banned tokens.
    """

    draw: Draw | None = None
    filters: Filters | None = None
    penalties: Penalties | None = None
    bias: Tensor | None = None


MOST_LIKELY = Controls()


class Choice(NamedTuple):
    """token [B] int64; logprob [B], top_tokens [B, n] and top_logprobs [B, n], or None."""

    token: Tensor
    logprob: Tensor | None = None
    top_tokens: Tensor | None = None
    top_logprobs: Tensor | None = None


def controls_for(
    samplings: Sequence[Sampling], vocabulary: int, *, everything: bool = False
) -> Controls:
    """Makes the controls of rows with these settings, on the CPU.

    Args:
        samplings: one for each row.
        vocabulary: V.
        everything: make all parts, whether or not a row uses them: one graph for any settings.

    Raises:
        ValueError: settings have ids outside the vocabulary.
    """
    for sampling in samplings:
        sampling.check_vocabulary(vocabulary)

    def columns(*names: str) -> list[Tensor]:
        rows = [[float(getattr(sampling, name)) for sampling in samplings] for name in names]
        return list(torch.tensor(rows, dtype=torch.float32))

    def used(condition: Callable[[Sampling], Any]) -> bool:
        return everything or any(map(condition, samplings))

    draw = filters = penalties = bias = None
    if used(lambda s: s.temperature):
        words = [(_signed(s.seed), _signed(s.seed >> 32)) for s in samplings]
        draw = Draw(torch.tensor(words, dtype=torch.int32), *columns("temperature"))
    if used(lambda s: s.temperature and (s.top_k or s.top_p < 1 or s.min_p)):
        filters = Filters(*columns("top_k", "top_p", "min_p"))
    if used(lambda s: s.penalized):
        kinds = ("repetition", "presence", "frequency")
        penalties = Penalties(*columns(*(f"{kind}_penalty" for kind in kinds)))
    if used(lambda s: s.logit_bias or s.banned):
        bias = torch.zeros(len(samplings), vocabulary)
        for row, sampling in enumerate(samplings):
            for token, value in sampling.biases:
                bias[row, token] += value
            bias[row, list(sampling.banned)] = -math.inf
    return Controls(draw, filters, penalties, bias)


def counts_for(prompts: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """Counts what penalties need to know of prompts: counts [B, V] int32, on the CPU.

    A count is the times that a token is in the continuation, plus 2^20 if it is in the prompt.
    """
    counts = torch.zeros(len(prompts), vocabulary, dtype=torch.int32)
    for row, prompt in enumerate(prompts):
        counts[row, list(prompt)] = _IN_PROMPT
    return counts


def count(counts: Tensor, token: Tensor, active: Tensor | None = None) -> Tensor:
    """Returns the counts [B, V] with token [B] added to the (active [B]) continuations."""
    here = indices(counts.shape[1], token.device) == token[:, None]
    if active is not None:
        here = here & active[:, None]
    return counts + here.to(torch.int32)


def choose(
    logits: Tensor,
    controls: Controls = MOST_LIKELY,
    position: Tensor | None = None,
    counts: Tensor | None = None,
    logprobs: int | None = None,
    short: bool = False,
) -> Choice:
    """Chooses the next token of each row.

    Args:
        logits: [B, V] float32, as the model gives them.
        controls: the rows' settings; without any, the most likely token is taken.
        position: [B] int32, the position that the token will have; a draw needs it.
        counts: [B, V] int32; penalties need them.
        logprobs: how many most likely tokens to report, None for no log probabilities. Static.
        short: whether every row's settings are `Sampling.short`, which chooses the same tokens in
            less time. Static.
    """
    token = _token(logits, controls, position, counts, short)
    if logprobs is None:
        return Choice(token)
    normal = logits.log_softmax(-1)
    chosen = normal.gather(1, token[:, None]).squeeze(1)
    if not logprobs:
        return Choice(token, chosen)
    top_values, top_tokens = largest(normal, logprobs)
    return Choice(token, chosen, top_tokens, top_values)


def _token(
    logits: Tensor,
    controls: Controls,
    position: Tensor | None,
    counts: Tensor | None,
    short: bool,
) -> Tensor:
    draw, filters, penalties, bias = controls
    if bias is not None:
        logits = logits + bias
    if penalties is not None:
        assert counts is not None
        logits = _penalize(logits, penalties, counts)
    if draw is None:
        return logits.argmax(-1)
    assert position is not None
    random = draw.temperature > 0
    temperature = torch.where(random, draw.temperature, 1.0)[:, None]
    size, ids = logits.shape[1], None
    if short:
        logits, ids = largest(logits, min(CANDIDATES, size))
    # How far each logit lies below the largest: what softmax depends on, and never negative.
    distance = (logits.amax(-1, keepdim=True) - logits) / temperature
    if ids is None:
        noise = gumbel(draw.seed, position, size)
    else:
        noise = gumbel_at(draw.seed, position, ids, size)
    score = torch.where(random[:, None], noise, 0.0) - distance
    if filters is not None:
        keep = kept(distance, filters) if ids is None else kept_candidates(distance, filters)
        score = torch.where(keep, score, -math.inf)
    _, best = largest(score, 1)
    return best.squeeze(1) if ids is None else ids.gather(1, best).squeeze(1)


def _penalize(logits: Tensor, penalties: Penalties, counts: Tensor) -> Tensor:
    repetition = penalties.repetition[:, None]
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(counts > 0, repeated, logits)
    times = (counts & (_IN_PROMPT - 1)).float()
    per_token = penalties.presence[:, None] * (times > 0).float()
    return logits - per_token - penalties.frequency[:, None] * times


def kept(distance: Tensor, filters: Filters) -> Tensor:
    """Tells which tokens top-k, top-p and min-p leave, bool [B, V].

    Args:
        distance: [B, V] >= 0, how far each logit is below the row's largest.
    """
    weight = torch.exp(-distance)
    top_k = torch.where(filters.top_k > 0, filters.top_k, math.inf)
    limit = _largest_below(torch.ones_like(distance), distance, top_k)
    weight = torch.where(distance <= limit[:, None], weight, 0.0)
    mass = torch.where(filters.top_p < 1, filters.top_p * weight.sum(-1), math.inf)
    limit = torch.minimum(limit, _largest_below(weight, distance, mass))
    return (distance <= limit[:, None]) & (weight >= filters.min_p[:, None])


def kept_candidates(distance: Tensor, filters: Filters) -> Tensor:
    """Tells which of a row's most likely tokens top-k, top-p and min-p leave, bool [B, n].

    Args:
        distance: [B, n] >= 0, rising, as for `kept`, of the n most likely tokens.
        filters: top_k from 1 to n; where it is 0, all n stay.
    """
    place = indices(distance.shape[1], distance.device)
    last = place == filters.top_k[:, None] - 1
    limit = torch.where(last, distance, 0.0).sum(-1, keepdim=True)
    limit = torch.where(filters.top_k[:, None] > 0, limit, math.inf)
    weight = torch.where(distance <= limit, torch.exp(-distance), 0.0)
    mass = torch.where(filters.top_p < 1, filters.top_p * weight.sum(-1), math.inf)
    nearer = distance[:, None, :] < distance[:, :, None]
    before = torch.where(nearer, weight[:, None, :], 0.0).sum(-1)
    enough = before < mass[:, None]
    return (distance <= limit) & enough & (weight >= filters.min_p[:, None])


def _largest_below(weight: Tensor, distance: Tensor, target: Tensor) -> Tensor:
    """Finds the largest float32 t [B] for which the weights at distances < t sum below target.

    Tokens at distance t or less are then the fewest that reach the target, ties included. t is
    built bit by bit, the exponent first (2^-64 to 2^63, nearer to 0 is 0), then 23 bits of the
    fraction: 31 rounds of a comparison and a sum, and exact, where halving an interval is not.
    """

    def below(t: Tensor) -> Tensor:
        return torch.where(distance < t[:, None], weight, 0.0).sum(-1) < target

    bit = torch.full_like(target, 2.0**-64)
    for power in (64, 32, 16, 8, 4, 2, 1):
        larger = bit * 2.0**power
        bit = torch.where(below(larger), larger, bit)
    t = torch.where(below(bit), bit, 0.0)
    for _ in range(23):
        bit = bit * 0.5
        t = torch.where(below(t + bit), t + bit, t)
    return t


def _signed(word: int) -> int:
    """Reads the low 32 bits as int32."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word
