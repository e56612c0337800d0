"""A grammar of calls of tools, for answers that have to call one.

It is written in llguidance's form of Lark (its docs/syntax.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..checks.values import shown
from .grammar import LAYOUT
from .tool_calls import kinds_of

# The first "</parameter>" ends a text, as it does for the reader of calls.
_TEXT = r"text[lazy]: /(?s:.*)<\/parameter>/"


def tool_grammar(
    tools: Sequence[Mapping[str, Any]], name: str | None = None, *, several: bool = False
) -> str:
    """Writes the grammar of an answer that calls a tool and says nothing else: `Sampling.grammar`.

    A call has each argument that its schema requires and may have its others, in the schema's
    order. One of text has any text, or one of its `enum`; others are JSON of their schemas.

    Args:
        tools: those that may be called, as OpenAI's API has them.
        name: the one to call; None leaves the choice.
        several: whether more than one call may stand there.

    Raises:
        ValueError: there are no tools, or none of that name; or one can't be called.
    """
    functions = [_object("a tool's function", tool.get("function", tool)) for tool in tools]
    if not functions:
        raise ValueError("no tools: there is nothing that could be called")
    if name is not None:
        names = [function.get("name") for function in functions]
        functions = [function for function in functions if function.get("name") == name]
        if not functions:
            known = ", ".join(map(str, names))
            raise ValueError(f"no tool is named {shown(name)}; there are {known}")
    rules = []
    for number, function in enumerate(functions):
        rules += _rules(f"call_{number}", function)
    calls = " | ".join(f"call_{number}" for number in range(len(functions)))
    start = r'start: call ("\n" call)*' if several else "start: call"
    return "\n".join((start, f"call: {calls}", *rules, _TEXT))


def _rules(call: str, function: Mapping[str, Any]) -> list[str]:
    """Writes the rules of a function's call."""
    name = _name(function.get("name"))
    schema = _object(f"parameters of {shown(name)}", function.get("parameters") or {})
    properties = _object(f"properties of {shown(name)}", schema.get("properties") or {})
    required = schema.get("required") or []
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise ValueError(
            f"required of {shown(name)} must be a list of names, not {shown(required)}"
        )
    properties = {**properties, **{key: {} for key in required if key not in properties}}
    shared = {}
    for word in ("$defs", "definitions"):  # what a property may refer to
        if word in schema:
            shared[word] = schema[word]
    parts, rules = [_literal(f"<tool_call>\n<function={name}>\n")], []
    for number, (key, one) in enumerate(properties.items()):
        rule, mark = f"{call}_{number}", f"<parameter={_name(key)}>\n"
        parts.append(rule if key in required else f"{rule}?")
        rules.append(f"{rule}: {_literal(mark)} {_value(one, shared)}")
    parts.append(_literal("</function>\n</tool_call>"))
    return [f"{call}: {' '.join(parts)}", *rules]


def _value(schema: Any, shared: Mapping[str, Any]) -> str:
    """Writes what stands between the marks of an argument, and the mark behind it."""
    end = _literal("\n</parameter>\n")
    enum = schema.get("enum") if isinstance(schema, Mapping) else None
    if isinstance(enum, list) and enum:
        texts = [one if isinstance(one, str) else json.dumps(one) for one in enum]
        return f"({' | '.join(map(_literal, texts))}) {end}"
    kinds = kinds_of(schema)
    refers = isinstance(schema, Mapping) and "$ref" in schema
    if "string" in kinds or not (kinds or refers):
        return r'text "\n"'
    return f"%json {json.dumps({**shared, **schema, 'x-guidance': LAYOUT})} {end}"


def _object(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be an object, not {shown(value)}")
    return value


def _name(name: Any) -> str:
    """Checks a name that stands in a mark."""
    if not isinstance(name, str) or not name or set(name) & set(">\n"):
        raise ValueError(
            f"a tool and its arguments need names without > and line ends, not {shown(name)}"
        )
    return name


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
