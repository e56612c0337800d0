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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..sharding.split import Split
from ..xla.devices import indices
from .filters import Filters, kept, kept_candidates
from .largest import first_largest, largest, largest_of
from .sampling_settings import CANDIDATES, Sampling
from .threefry import gumbel, gumbel_at

# Added to a token's count when it stands in the prompt.
_IN_PROMPT = 1 << 20


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
    allowed: Tensor | None = None,
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
        allowed: [B, ceil(V / 32)] int32, of the whole vocabulary, the bits of the tokens that may
            be chosen; None if all may.
    """
    split = split or Split(logits.shape[1])
    free = logits
    if allowed is not None:
        free = torch.where(_unpacked(allowed, split), logits, -math.inf)
    token = _token(free, controls, position, counts, bias, short, split)
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


def _unpacked(words: Tensor, split: Split) -> Tensor:
    """Returns the bits of words [B, W] int32 for this block's tokens, bool [B, n]."""
    places = indices(32, words.device)
    # Under torch-xla >> divides.
    bits = torch.bitwise_right_shift(words[..., None], places).flatten(1) & 1
    if split.ways == 1:
        return bits[:, : split.size] != 0
    return bits.index_select(1, split.ids(words.device)) != 0


def _signed(word: int) -> int:
    """Reads the low 32 bits as int32."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word
