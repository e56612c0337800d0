"""Messages to the text of a chat, as the checkpoint's template renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..checks.errors import CheckpointError
from ..checks.values import shown
from .message_parts import known_part
from .part_options import check_keys

_LONGEST = 300  # characters of what a template says


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns messages as templates of the family know them, OpenAI's differences taken out.

    A content of None becomes an empty text, parts of a content are as `known_part` returns them,
    and the arguments of tool calls, which OpenAI's API gives as the text of a JSON object, are that
    object; a text of nothing stands for no arguments.

    Raises:
        ValueError: they are no list; or one has no role, or tool calls of another form: the text
            has its number.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise ValueError(f"messages must be a list of dicts with a role, not {shown(messages)}")
    return [_for_template(f"message {n}", message) for n, message in enumerate(messages)]


def words_only(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns messages as `for_template` does, the parts of a content joined to one text.

    Raises:
        ValueError: as there; or a part is no text, or has a key that would be dropped.
    """
    return [
        {**message, "content": _joined(f"message {number}", message.get("content"))}
        for number, message in enumerate(for_template(messages))
    ]


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    template: Mapping[str, Any],
) -> str:
    """Renders messages that `for_template` returned.

    Args:
        tokenizer: transformers', with the chat template.
        messages: at least one.
        add_generation_prompt: end with the start of the assistant's turn.
        template: further variables of the template.

    Raises:
        CheckpointError: there is no chat template.
        ValueError: the template refuses the messages, or fails over them.
    """
    if not tokenizer.chat_template:
        raise CheckpointError("the checkpoint's tokenizer has no chat template")
    if not messages:
        raise ValueError("messages is empty: at least one is needed")
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **template
        )
    except TemplateError as error:
        reason = str(error)[:_LONGEST]
        raise ValueError(f"the chat template refuses the messages: {reason}") from None
    except Exception as error:  # a template is a program, and fails as programs do
        reason = f"{type(error).__name__}: {error}"[:_LONGEST]
        raise ValueError(f"the chat template fails over the messages: {reason}") from None


def _for_template(where: str, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message:
        raise ValueError(f"{where} must be a dict with role and content: {shown(message)}")
    plain = dict(message)
    content = plain.get("content", "")
    if content is None:
        plain["content"] = ""
    elif isinstance(content, Sequence) and not isinstance(content, str | bytes):
        plain["content"] = list(map(known_part, content))
    calls, called = plain.get("tool_calls"), plain.pop("function_call", None)
    if called is not None:  # as OpenAI's API had calls before
        if calls:
            raise ValueError(f"{where} has tool_calls and a function_call: one of them")
        calls = [{"type": "function", "function": called}]
    if calls is not None:
        if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
            raise ValueError(f"{where}: tool_calls must be a list, not {shown(calls)}")
        plain["tool_calls"] = [_call(f"{where}, tool call {n}", c) for n, c in enumerate(calls)]
    return plain


def _call(where: str, call: Any) -> dict[str, Any]:
    """Returns a tool call with its arguments as a dict, wrapped in `function` or not."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where} must be a dict with a function's name: {shown(call)}")
    parsed = {**function, "arguments": _arguments(where, function.get("arguments"))}
    return {**call, "function": parsed} if "function" in call else parsed


def _arguments(where: str, arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: its arguments are not JSON ({error})") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{where}: its arguments must be a JSON object, not {shown(arguments)}")
    return dict(arguments)


def _joined(where: str, content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise ValueError(f"{where}: content must be a text or a list of parts")
    for place, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else 0
        if not isinstance(text, str):
            raise ValueError(
                f"{where}, part {place}: only text can be shown to this model, not {shown(part)}: "
                "pictures need a checkpoint with vision and its qwen35.Processor"
            )
        check_keys(f"{where}, part {place}", part, "text", ("text",))
    return "".join(part["text"] for part in content)
