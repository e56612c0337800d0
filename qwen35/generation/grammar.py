"""Which tokens may come next where an answer has to be JSON of a schema, or follow a grammar.

llguidance knows it, from the schema or grammar, the vocabulary and the tokens so far.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..prompts.tokenizer import TokenizerLike
from .sampling_settings import Sampling
from .thinking import THINK_END, is_open

# Between what counts a blank, or a line end and an indentation: where any white space may stand,
# models write it without end.
LAYOUT = {"whitespace_pattern": r"( |\n {0,24})?"}
_BLANKS = 2


class Grammar:
    """The tokens that one row may have next.

    A row that begins within a thought may have anything until that ends, and then the blank lines
    that its template has there.

    Args:
        matcher: llguidance's, of the schema or grammar.
        vocabulary: V.
        opened: the token that ends the thought in which the row begins; None: it does not.
        gap: the tokens of line ends, of which two may stand between the thought and what follows.

    Attributes:
        anything: the bits of all tokens.
    """

    def __init__(
        self, matcher: Any, vocabulary: int, opened: int | None, gap: frozenset[int]
    ) -> None:
        self._matcher = matcher
        self._opened = opened
        self._gap = gap if opened is not None else frozenset()
        self._blanks = 0
        self.anything = anything(vocabulary)

    @property
    def allowed(self) -> Tensor:
        """The tokens that may come next, as bits [ceil(V / 32)] int32."""
        if self._opened is not None:
            return self.anything
        from llguidance.numpy import fill_next_token_bitmask

        bits = torch.zeros_like(self.anything)[None]
        words = bits.numpy()
        fill_next_token_bitmask(self._matcher, words)
        for token in self._gap:
            words[0, token // 32] |= np.int32(np.uint32(1 << token % 32).view(np.int32))
        return bits[0]

    def take(self, token: int) -> None:
        """Goes on to the place behind a token.

        Raises:
            RuntimeError: it may not stand here, or the grammar asks for more than can be followed.
        """
        if self._opened is not None:
            self._opened = None if token == self._opened else self._opened
            return
        if token in self._gap:
            self._blanks += 1
        elif not self._matcher.consume_token(token):
            reason = self._matcher.get_error().partition("\n")[0] or f"token {token} stands there"
            raise RuntimeError(f"the answer does not follow its JSON schema or grammar: {reason}")
        if token not in self._gap or self._blanks == _BLANKS:
            self._gap = frozenset()


def installed() -> bool:
    """Tells whether there is a library that knows which tokens may come."""
    return importlib.util.find_spec("llguidance") is not None


def grammar_for(
    tokenizer: TokenizerLike,
    sampling: Sampling,
    prompt: Sequence[int],
    vocabulary: int,
    ends: frozenset[int],
) -> Grammar | None:
    """Makes the grammar of a row; None where its settings limit nothing.

    Args:
        tokenizer: whose tokenizer.json says what the tokens are.
        sampling: the row's settings.
        prompt: its tokens: where they end in the beginning of a thought, the answer comes after it.
        vocabulary: V.
        ends: the ids that end the row.

    Raises:
        ValueError: llguidance is not installed, the tokenizer is not of transformers' fast kind,
            nothing ends the row, or the schema or grammar is none that llguidance knows.
    """
    schema, lark = sampling.json_schema, sampling.grammar
    if schema is None and lark is None:
        return None
    what = "a JSON schema" if lark is None else "a grammar, as of a tool_choice,"
    if not installed():
        raise ValueError(f"{what} needs llguidance: pip install 'qwen35[structured]'")
    from llguidance import LLMatcher

    hf = getattr(tokenizer, "tokenizer", tokenizer)  # a Processor's
    hf = getattr(hf, "hf", hf)
    if not hasattr(hf, "backend_tokenizer"):
        raise ValueError(f"{what} needs a tokenizer.json, not a {type(tokenizer).__name__}")
    possible = sorted(token for token in ends if token < vocabulary)
    if not possible:
        raise ValueError(f"{what} needs an end token, to end at")
    known = _vocabulary(hf, vocabulary, possible[0])
    try:
        if lark is None:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=LAYOUT)
        else:
            grammar = LLMatcher.grammar_from_lark(lark)
        wrong = LLMatcher.validate_grammar(grammar, known)
    except ValueError as error:
        wrong = str(error)
    if wrong and not wrong.startswith("WARNING"):
        known_as = what.replace("a ", "the ", 1)
        raise ValueError(f"{known_as} can't be followed: {wrong.splitlines()[0]}")
    end = tokenizer.encode(THINK_END)
    opened = len(end) == 1 and is_open(tokenizer, prompt)
    gap = frozenset(token for text in ("\n", "\n\n") for token in tokenizer.encode(text))
    matcher = LLMatcher(known, grammar, log_level=0)
    return Grammar(matcher, vocabulary, end[0] if opened else None, gap)


@functools.lru_cache(maxsize=2)
def _vocabulary(hf: Any, vocabulary: int, end: int) -> Any:
    """Makes llguidance's view of a vocabulary, which takes a second for a published one."""
    from llguidance import LLTokenizer

    backend = type(hf.backend_tokenizer).from_str(hf.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return LLTokenizer(backend.to_str(), n_vocab=vocabulary, eos_token=end)


def anything(vocabulary: int) -> Tensor:
    """Returns the bits of all tokens, [ceil(V / 32)] int32."""
    return torch.full((-(-vocabulary // 32),), -1, dtype=torch.int32)


def stacked(allowed: Sequence[Tensor | None], vocabulary: int) -> Tensor | None:
    """Returns the bits of rows as [B, ceil(V / 32)] int32, of those that have none all; None where
    none has any."""
    if all(bits is None for bits in allowed):
        return None
    free = anything(vocabulary)
    return torch.stack([free if bits is None else bits for bits in allowed])
