"""Tool calls as the models of the family write them, read as they come.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

A text is written as it is, anything else as JSON; which of the two a value is, the tool's schema
says, and without one it is a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

START, _END = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
_VALUE_END = "</parameter>"
# A value may say "</parameter>" too: the one that ends it has one of these behind it.
_BEHIND = re.compile(r"\s*(<parameter=|</function>)")
_CLOSE = re.compile(r"\s*</function>\s*</tool_call>")
_LONGEST_NAME = 256  # characters, of a function, before it is taken for something else


class CallReader:
    """Reads one call from the text behind `START`.

    Args:
        tools: the tools that may be called, as OpenAI's API has them.

    Attributes:
        name: of the function, once it is known.
        rest: the text that has not been understood yet; once the call is over, what is behind it.
        over: whether the call has ended, or is none.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._tools = tools
        self._count = 0  # arguments so far
        self._looked = 0  # how much of `rest` has no end of a value
        self.name: str | None = None
        self.rest = ""
        self.over = False

    def push(self, text: str) -> Iterator[str]:
        """Adds text, and yields pieces of the arguments' JSON."""
        self.rest += text
        if self.name is None:
            found = _FUNCTION.match(self.rest)
            if found is None:
                begun = self.rest.lstrip()
                like = "<function=".startswith(begun[:10]) and "\n" not in begun
                self.over = not like or len(begun) > _LONGEST_NAME
                return
            self.name = found[1].strip()
            self.rest = self.rest[found.end() :]
        while found := _PARAMETER.match(self.rest):
            end = self._end_of_value(found.end())
            if end is None:
                return
            key, value = found[1].strip(), self.rest[found.end() : end]
            content = json.dumps(self._value(key, value), ensure_ascii=False)
            yield f"{', ' if self._count else '{'}{json.dumps(key, ensure_ascii=False)}: {content}"
            self._count += 1
            self.rest, self._looked = self.rest[end + len(_VALUE_END) :], 0
        if found := _CLOSE.match(self.rest):
            self.rest, self.over = self.rest[found.end() :], True
            yield "}" if self._count else "{}"

    def finish(self) -> Iterator[str]:
        """Yields what is left, of a call behind which the text ends before its very last mark."""
        if not self.over and self.name is not None and self.rest.strip().startswith("</function>"):
            self.over = True
            yield "}" if self._count else "{}"

    def _end_of_value(self, start: int) -> int | None:
        place = max(start, self._looked)
        while (place := self.rest.find(_VALUE_END, place)) >= 0:
            behind = self.rest[place + len(_VALUE_END) :]
            if _BEHIND.match(behind):
                return place
            if any(mark.startswith(behind.lstrip()) for mark in ("<parameter=", "</function>")):
                return None  # it may come yet
            place += 1
        self._looked = max(start, len(self.rest) - len(_VALUE_END))
        return None

    def _value(self, key: str, text: str) -> Any:
        """Returns a value as its schema has it."""
        text = text.removeprefix("\n").removesuffix("\n")
        kinds = kinds_of(self._schema(key))
        if text == "null" and "null" in kinds:
            return None
        if not kinds or "string" in kinds:
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    def _schema(self, key: str) -> Any:
        for tool in self._tools:
            function = tool.get("function", tool)
            if isinstance(function, Mapping) and function.get("name") == self.name:
                return _inside(_inside(function, "parameters"), "properties").get(key)
        return None


def _inside(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object in an object; an empty one where there is none: tools come from outside."""
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}


def kinds_of(schema: Any) -> set[str]:
    """Returns the JSON types that a schema allows, none where it names none."""
    if not isinstance(schema, Mapping):
        return set()
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    found = {kind for kind in kinds if isinstance(kind, str)}
    for word in ("anyOf", "oneOf"):
        several = schema.get(word)
        for one in several if isinstance(several, list) else []:
            found |= kinds_of(one)
    if isinstance(schema.get("enum"), list):
        names = {str: "string", bool: "boolean", int: "integer", float: "number"}
        found |= {names.get(type(value), "null") for value in schema["enum"]}
    return found
