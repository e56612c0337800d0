"""Choosing the next token from logits: pure functions over per-row tensors, part of a step's graph.

No operation sorts. A draw is the argmax of logits with Gumbel noise added. Where no row keeps more
than its `CANDIDATES` most likely tokens, only those are looked at; elsewhere top-k and top-p are
thresholds, found bit by bit: each of the fixed number of rounds compares all logits with a
candidate and sums. Settings are data: other values, or other ones in each row, need no other graph.

Whatever is of the vocabulary, [B, V], may be a rank's block of it, [B, V / tp]: a `Split` says so.
Ranks then exchange largest values, sums and candidates, never logits of the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..checks.values import as_integer, as_number, integer, is_number
from ..sharding.split import Split
from .filters import Filters, kept, kept_candidates
from .largest import first_largest, largest, largest_of
from .threefry import gumbel, gumbel_at

# The most likely tokens among which a row draws if its top-k leaves no more.
CANDIDATES = 64
# Added to a token's count when it stands in the prompt.
_IN_PROMPT = 1 << 20
# A single setting for several rows gives each its own seed; the golden ratio spreads them.
_SEED_STEP = 0x9E3779B97F4A7C15
_SEEDS = 2**62
_NUMBERS = (
    *("temperature", "top_p", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty"),
)


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
        stop: ids and texts that end the row, besides the model's own end tokens; none shows in the
            row's text. A text may begin and end anywhere in tokens.
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
    stop: str | int | Iterable[int | str] = ()
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

        for name in _NUMBERS:
            found = as_number(getattr(self, name))
            if found is not None:
                put(name, found)
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
        put("logit_bias", tuple(zip(biased, (as_number(value) for _, value in pairs), strict=True)))
        put("banned", tuple(ids("banned", self.banned, "token ids")))
        wanted = "token ids and texts that are not empty"
        single = isinstance(self.stop, str) or as_integer(self.stop) is not None
        check("stop", single or isinstance(self.stop, Iterable), wanted)
        stops = [self.stop] if single else list(cast("Iterable[int | str]", self.stop))
        texts = [stop for stop in stops if isinstance(stop, str)]
        check("stop", all(texts), wanted)
        tokens = ids("stop", (stop for stop in stops if not isinstance(stop, str)), wanted)
        put("stop", (*tokens, *texts))

    @property
    def penalized(self) -> bool:
        """Whether tokens have to be counted."""
        penalties = self.repetition_penalty, self.presence_penalty, self.frequency_penalty
        return penalties != (1, 0, 0)

    @property
    def biased(self) -> bool:
        """Whether something is added to logits."""
        return bool(self.logit_bias or self.banned)

    @property
    def plain(self) -> bool:
        """Whether the most likely token is all that is asked for."""
        asked = self.temperature or self.penalized or self.biased or self.logprobs is not None
        return not asked

    @property
    def short(self) -> bool:
        """Whether it keeps no more than the `CANDIDATES` most likely tokens."""
        return not self.temperature or 0 < self.top_k <= CANDIDATES

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The ids of `stop`."""
        return tuple(stop for stop in cast("tuple", self.stop) if isinstance(stop, int))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts of `stop`."""
        return tuple(stop for stop in cast("tuple", self.stop) if isinstance(stop, str))

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
        for name, ids in (
            ("logit_bias", biased),
            ("banned", self.banned),
            ("stop", self.stop_tokens),
        ):
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


class Penalties(NamedTuple):
    """repetition, presence, frequency: [B] float32."""

    repetition: Tensor
    presence: Tensor
    frequency: Tensor


class Controls(NamedTuple):
    """The settings of B rows as a pytree. What is None is in no row's settings, nor in a graph."""

    draw: Draw | None = None
    filters: Filters | None = None
    penalties: Penalties | None = None


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

    draw = filters = penalties = None
    if used(lambda s: s.temperature):
        words = [(_signed(s.seed), _signed(s.seed >> 32)) for s in samplings]
        draw = Draw(torch.tensor(words, dtype=torch.int32), *columns("temperature"))
    if used(lambda s: s.temperature and (s.top_k or s.top_p < 1 or s.min_p)):
        filters = Filters(*columns("top_k", "top_p", "min_p"))
    if used(lambda s: s.penalized):
        kinds = ("repetition", "presence", "frequency")
        penalties = Penalties(*columns(*(f"{kind}_penalty" for kind in kinds)))
    return Controls(draw, filters, penalties)


def bias_for(samplings: Sequence[Sampling], vocabulary: int) -> Tensor:
    """Makes what rows with these settings add to logits: [B, V] float32, -inf for banned tokens, on
    the CPU; their ids are within the vocabulary."""
    bias = torch.zeros(len(samplings), vocabulary)
    for row, sampling in enumerate(samplings):
        for token, value in sampling.biases:
            bias[row, token] += value
        bias[row, list(sampling.banned)] = -math.inf
    return bias


def counts_for(prompts: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """Counts what penalties need to know of prompts: counts [B, V] int32, on the CPU.

    A count is the times that a token is in the continuation, plus 2^20 if it is in the prompt.
    """
    counts = torch.zeros(len(prompts), vocabulary, dtype=torch.int32)
    for row, prompt in enumerate(prompts):
        counts[row, list(prompt)] = _IN_PROMPT
    return counts


def count(
    counts: Tensor, token: Tensor, active: Tensor | None = None, split: Split | None = None
) -> Tensor:
    """Returns the counts [B, V] with token [B] added to the (active [B]) continuations."""
    split = split or Split(counts.shape[1])
    here = split.ids(token.device) == token[:, None]
    if active is not None:
        here = here & active[:, None]
    return counts + here.to(torch.int32)


def choose(
    logits: Tensor,
    controls: Controls = MOST_LIKELY,
    position: Tensor | None = None,
    counts: Tensor | None = None,
    bias: Tensor | None = None,
    logprobs: int | None = None,
    short: bool = False,
    split: Split | None = None,
) -> Choice:
    """Chooses the next token of each row.

    Args:
        logits: [B, V] float32, as the model gives them.
        controls: the rows' settings; without any, the most likely token is taken.
        position: [B] int32, the position that the token will have; a draw needs it.
        counts: [B, V] int32; penalties need them.
        bias: [B, V] float32, added to the logits.
        logprobs: how many most likely tokens to report, None for no log probabilities. Static.
        short: whether every row's settings are `Sampling.short`, which chooses the same tokens in
            less time. Static.
        split: how ranks hold the vocabulary of logits, counts and bias; None if whole. The choice
            is the same on all of them.
    """
    split = split or Split(logits.shape[1])
    token = _token(logits, controls, position, counts, bias, short, split)
    if logprobs is None:
        return Choice(token)
    return _with_log_probabilities(token, logits, logprobs, split)


def _with_log_probabilities(token: Tensor, logits: Tensor, count: int, split: Split) -> Choice:
    """Reports a chosen token's log probability and those of the most likely; one exchange."""
    peak = logits.amax(-1, keepdim=True)
    mass = torch.exp(logits - peak).sum(-1, keepdim=True)
    place, here = split.locate(token[:, None])
    chosen = torch.where(here, logits.gather(1, place), -math.inf)
    likeliest = []
    if count:
        values, places = largest(logits, min(count, logits.shape[1]))
        likeliest = [values, split.ids_at(places).float()]
    # Of each rank, [B, ranks, n].
    peaks, masses, chosens, *found = split.gather(peak, mass, chosen, *likeliest)
    peak = peaks.amax(1)
    normal = peak + (masses * torch.exp(peaks - peak[:, None])).sum(1).log()
    logprob = (chosens.amax(1) - normal).squeeze(1)
    if not count:
        return Choice(token, logprob)
    values, ids = (part.flatten(1) for part in found)
    if split.ways > 1:
        values, places = largest(values, count)
        ids = ids.gather(1, places)
    return Choice(token, logprob, ids.long(), values - normal)


def _token(
    logits: Tensor,
    controls: Controls,
    position: Tensor | None,
    counts: Tensor | None,
    bias: Tensor | None,
    short: bool,
    split: Split,
) -> Tensor:
    draw, filters, penalties = controls
    if bias is not None:
        logits = logits + bias
    if penalties is not None:
        assert counts is not None
        logits = _penalize(logits, penalties, counts)
    if draw is None:
        return first_largest(logits, split)
    assert position is not None
    random = draw.temperature > 0
    temperature = torch.where(random, draw.temperature, 1.0)[:, None]
    size, ids = split.size, None
    if short:  # of all ranks, to all ranks: what follows is of one device
        logits, ids = largest_of(logits, min(CANDIDATES, size), split)
        split = Split(logits.shape[1])
    # How far each logit lies below the largest: what softmax depends on, and never negative.
    distance = (split.max(logits.amax(-1, keepdim=True)) - logits) / temperature
    if ids is None and split.ways == 1:
        noise = gumbel(draw.seed, position, size)
    else:
        here = split.ids(logits.device)[None] if ids is None else ids
        noise = gumbel_at(draw.seed, position, here, size)
    score = torch.where(random[:, None], noise, 0.0) - distance
    if filters is not None:
        keep = kept_candidates(distance, filters) if short else kept(distance, filters, split)
        score = torch.where(keep, score, -math.inf)
    _, best = largest_of(score, 1, split)
    return best.squeeze(1) if ids is None else ids.gather(1, best).squeeze(1)


def _penalize(logits: Tensor, penalties: Penalties, counts: Tensor) -> Tensor:
    repetition = penalties.repetition[:, None]
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(counts > 0, repeated, logits)
    times = (counts & (_IN_PROMPT - 1)).float()
    per_token = penalties.presence[:, None] * (times > 0).float()
    return logits - per_token - penalties.frequency[:, None] * times


def _signed(word: int) -> int:
    """Reads the low 32 bits as int32."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word
