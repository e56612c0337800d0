"""What an answer is made of: the model's thought, what it says, and the tools that it calls.

The end of a thought is told by its token: thought and answer may both say "</think>".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..checks.values import integer
from ..prompts.tokenizer import TokenizerLike
from .continuation import Continuation
from .thinking import THINK, THINK_END, ThinkingBudget, is_open
from .tool_calls import START as _CALL
from .tool_calls import CallReader

_CLOSE = f"\n{THINK_END}\n\n"


class Part(NamedTuple):
    """A piece of an answer.

    Attributes:
        kind: "thought", "text", "call" (a tool's name, with which a call begins) or "arguments"
            (a piece of the JSON text of its arguments).
        text: the piece.
        number, id: of the call, from 0.
    """

    kind: str
    text: str
    number: int = 0
    id: str = ""


class AnswerReader:
    """Takes an answer apart as it comes.

    Args:
        tokenizer: the engine's.
        prompt: the prompt's tokens, which may end in the beginning of a thought.
        thinking: whether to tell a thought from what is said.
        tools: the tools that may be called, as OpenAI's API has them; without any, the text of a
            call is text.
        name: of the answer, from which its calls get their ids.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        prompt: Sequence[int],
        *,
        thinking: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        name: str = "",
    ) -> None:
        self._tools = tools
        self._name = name
        self._start, self._end = (tokenizer.encode(mark) for mark in (THINK, THINK_END))
        # Special tokens have no text.
        self._shown = THINK_END in tokenizer.decode(self._end, skip_special_tokens=True)
        opened = is_open(tokenizer, prompt)
        self._state = ("thought" if opened else "start") if thinking else "text"
        self._held = ""  # what has not been given out
        self._begun = False  # whether something of the present part has been
        self._closing = False  # whether the token that ends the thought has come
        self._call: CallReader | None = None
        self._calls = 0

    def push(self, token: int, text: str) -> list[Part]:
        """Adds a token, with the text that came with it, and returns what that completes."""
        self._held += text
        parts: list[Part] = []
        if self._state == "start":
            self._begin(token)
        if self._state == "thought":
            self._closing |= len(self._end) == 1 and token == self._end[0]
            self._read_thought(parts)
        if self._state == "text":
            self._read_text(parts)
        return parts

    def finish(self, text: str = "") -> list[Part]:
        """Adds text that came with no token, and returns what is left."""
        self._held += text
        parts: list[Part] = []
        if self._state == "thought":
            self._read_thought(parts)
        if self._state == "text":
            self._read_text(parts)
        if self._call is not None:
            parts += [self._arguments(piece) for piece in self._call.finish()]
            if self._call.name is None:
                self._give(parts, "text", _CALL + self._call.rest)
        self._give(
            parts, "thought" if self._state == "thought" else "text", self._held.rstrip("\n")
        )
        self._held = ""
        return parts

    def _begin(self, token: int) -> None:
        """Finds out whether the model begins with a thought."""
        begun = self._held.lstrip()
        if begun.startswith(THINK):
            self._held, self._state = begun.removeprefix(THINK), "thought"
        elif [token] == self._start and not self._shown:
            self._state = "thought"
        elif not THINK.startswith(begun):
            self._state = "text"

    def _read_thought(self, parts: list[Part]) -> None:
        if len(self._end) > 1:
            place = self._held.find(THINK_END)
        elif self._closing:
            place = self._held.rfind(THINK_END) if self._shown else len(self._held)
        else:
            place = -1
        if place < 0:
            marked = len(self._end) > 1 or self._closing
            self._give_most(parts, "thought", THINK_END if marked else "")
            return
        rest = self._held[place:].removeprefix(THINK_END) if self._shown else self._held[place:]
        self._give(parts, "thought", self._held[:place].rstrip("\n"))
        self._held, self._state, self._begun = rest, "text", False

    def _read_text(self, parts: list[Part]) -> None:
        while True:
            if self._call is not None:
                held, self._held = self._held, ""
                begins = self._call.name is None
                pieces = list(self._call.push(held))
                if begins and self._call.name is not None:
                    parts.append(Part("call", self._call.name, self._calls, self._id()))
                parts += [self._arguments(piece) for piece in pieces]
                if not self._call.over:
                    return
                self._held = self._call.rest
                if self._call.name is None:  # a text about calls
                    self._give(parts, "text", _CALL)
                else:
                    self._calls += 1
                    self._begun = False
                self._call = None
            place = self._held.find(_CALL) if self._tools else -1
            if place < 0:
                self._give_most(parts, "text", _CALL if self._tools else "")
                return
            self._give(parts, "text", self._held[:place].rstrip("\n"))
            self._held = self._held[place + len(_CALL) :]
            self._call = CallReader(self._tools)

    def _give_most(self, parts: list[Part], kind: str, mark: str) -> None:
        """Gives out what is held, but for line ends and a beginning of the mark at its end."""
        held = self._held
        sizes = range(min(len(held), len(mark) - 1), 0, -1)
        size = next((size for size in sizes if mark.startswith(held[-size:])), 0)
        most = held[: len(held) - size].rstrip("\n")
        self._held = held[len(most) :]
        self._give(parts, kind, most)

    def _give(self, parts: list[Part], kind: str, text: str) -> None:
        if not self._begun:
            text = text.lstrip("\n")
        if text:
            self._begun = True
            parts.append(Part(kind, text))

    def _arguments(self, piece: str) -> Part:
        return Part("arguments", piece, self._calls, self._id())

    def _id(self) -> str:
        content = f"{self._name} {self._calls}".encode()
        return "call_" + hashlib.sha256(content).hexdigest()[:24]


def read_answer(reader: AnswerReader, row: Continuation) -> list[Part]:
    """Returns the parts of a row that has ended."""
    parts, start = [], 0
    for token, end in zip(row.new_tokens, row.offsets, strict=True):
        parts += reader.push(token, row.text[start:end])
        start = end
    return parts + reader.finish(row.text[start:])


def delta_of(part: Part) -> dict[str, Any]:
    """Writes a part as OpenAI's API streams it; a thought as other servers do there."""
    if part.kind in ("thought", "text"):
        return {"content" if part.kind == "text" else "reasoning_content": part.text}
    if part.kind == "arguments":
        call: dict[str, Any] = {"index": part.number, "function": {"arguments": part.text}}
    else:
        function = {"name": part.text, "arguments": ""}
        call = {"index": part.number, "id": part.id, "type": "function", "function": function}
    return {"tool_calls": [call]}


def message_of(parts: Iterable[Part]) -> dict[str, Any]:
    """Joins parts to a message of the assistant, as OpenAI's API has it: `content`, None where it
    only calls tools, `reasoning_content` and `tool_calls` where there are some."""
    texts = {"thought": "", "text": ""}
    calls: list[dict[str, Any]] = []
    for part in parts:
        if part.kind in texts:
            texts[part.kind] += part.text
        elif part.kind == "call":
            function = {"name": part.text, "arguments": ""}
            calls.append({"id": part.id, "type": "function", "function": function})
        else:
            calls[-1]["function"]["arguments"] += part.text
    message: dict[str, Any] = {"role": "assistant", "content": texts["text"]}
    if texts["thought"]:
        message["reasoning_content"] = texts["thought"]
    if calls:
        message["content"] = texts["text"] or None
        message["tool_calls"] = calls
    return message


def is_whole(call: Mapping[str, Any]) -> bool:
    """Tells whether a call of `message_of` has all of its arguments."""
    try:
        json.loads(call["function"]["arguments"])
    except ValueError:
        return False
    return True


def thinking_budget(tokenizer: TokenizerLike, tokens: int) -> ThinkingBudget:
    """Makes a budget of so many tokens for a thought, whether a prompt begins it or the answer.

    Raises:
        ValueError: that is no number of tokens, or the tokenizer has no single token "</think>".
    """
    tokens = integer("thinking_tokens", tokens, 0)
    end = tokenizer.encode(THINK_END)
    if len(end) != 1:
        raise ValueError(
            f"a thinking budget needs {THINK_END} to be one token, and this tokenizer has it as "
            f"{len(end)}"
        )
    begin = tuple(tokenizer.encode(THINK))
    return ThinkingBudget(tokens, end[0], tuple(tokenizer.encode(_CLOSE)), begin)
