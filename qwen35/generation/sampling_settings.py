"""How a row's tokens are to be chosen, as a caller says it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..checks.values import as_boolean, as_integer, as_number, integer, is_number, shown

# The most likely tokens among which a row draws if its top-k leaves no more.
CANDIDATES = 64
# A single setting for several rows gives each its own seed; the golden ratio spreads them.
_SEED_STEP = 0x9E3779B97F4A7C15
_SEEDS = 2**62
_LEAST, _MOST = 1e-30, 1e30  # of what changes logits: float32 ends at 3e38, NaN comes behind
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
            row's text. A text may begin and end anywhere in tokens, or be a special token's.
        ignore_eos: go on after the model's own end tokens, up to `stop` or the most tokens.
        json_schema: the text is JSON of this schema (a dict, or its JSON text), after a thought
            that the prompt begins; needs `pip install 'qwen35[structured]'`. None leaves it free.
        grammar: the same of text that follows a grammar, in llguidance's form of Lark, such as one
            of `tool_grammar`.
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
    ignore_eos: bool = False
    json_schema: str | Mapping[str, Any] | None = None
    grammar: str | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        def check(name: str, good: bool, wanted: str) -> None:
            if not good:
                raise ValueError(f"{name} must be {wanted}, not {shown(getattr(self, name))}")

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
        check("repetition_penalty", _LEAST <= penalty <= _MOST, f"from {_LEAST} to {_MOST}")
        for name in ("presence_penalty", "frequency_penalty"):
            check(name, is_number(getattr(self, name)), "a number")
            check(name, abs(getattr(self, name)) <= _MOST, f"from -{_MOST} to {_MOST}")
        put("ignore_eos", as_boolean(self.ignore_eos))
        check("ignore_eos", isinstance(self.ignore_eos, bool), "True or False")
        if self.json_schema is not None:
            put("json_schema", _schema(self.json_schema))
            both = "None beside json_schema: an answer is limited by one of them"
            check("grammar", self.grammar is None, both)
        if self.grammar is not None:
            check("grammar", isinstance(self.grammar, str) and self.grammar != "", "a text")
        if self.limited:
            wanted = "False beside json_schema or grammar, which end by it"
            check("ignore_eos", not self.ignore_eos, wanted)
        if self.logprobs is not None:
            put("logprobs", integer("logprobs", self.logprobs, 0))
        bias, wanted = self.logit_bias, "numbers by token id (banned forbids a token)"
        pairs = list(bias.items() if isinstance(bias, Mapping) else map(tuple, bias))
        check("logit_bias", all(len(pair) == 2 and is_number(pair[1]) for pair in pairs), wanted)
        within = all(abs(as_number(value)) <= _MOST for _, value in pairs)
        check("logit_bias", within, f"numbers from -{_MOST} to {_MOST} by token id")
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
    def limited(self) -> bool:
        """Whether not every token may come everywhere."""
        return self.json_schema is not None or self.grammar is not None

    @property
    def plain(self) -> bool:
        """Whether the most likely token is all that is asked for."""
        asked = self.temperature or self.penalized or self.biased
        return not asked and self.logprobs is None and not self.limited

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

    def ends(self, model: Iterable[int]) -> frozenset[int]:
        """Returns the ids that end a row of a model with these end tokens."""
        return frozenset(self.stop_tokens if self.ignore_eos else (*model, *self.stop_tokens))

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


def settings_of_rows(
    sampling: Sampling | Sequence[Sampling], rows: int, what: str = "prompts"
) -> list[Sampling]:
    """Returns the settings of each row, given as one for all or as one for each.

    Raises:
        ValueError: it is neither, or there are more or fewer than rows, which are called `what`.
    """
    if isinstance(sampling, Sampling):
        return [sampling.for_row(row) for row in range(rows)]
    if isinstance(sampling, str | Mapping) or not isinstance(sampling, Sequence):
        raise ValueError(f"sampling must be a Sampling, or one for each row, not {shown(sampling)}")
    if len(sampling) != rows:
        raise ValueError(f"sampling has {len(sampling)} entries for {rows} {what}")
    for row, settings in enumerate(sampling):
        check_sampling(settings, f"sampling[{row}]")
    return list(sampling)


def check_sampling(sampling: Any, name: str = "sampling") -> None:
    """Raises a ValueError for what is no `Sampling`."""
    if not isinstance(sampling, Sampling):
        raise ValueError(f"{name} must be a Sampling, not {shown(sampling)}")


def _schema(schema: Any) -> str:
    """Returns a JSON schema as its text."""
    try:
        content = json.loads(schema) if isinstance(schema, str) else schema
        text = json.dumps(content, sort_keys=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"json_schema is no JSON ({error})") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"json_schema must be an object, not {shown(content)}")
    return text
