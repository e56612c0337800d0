"""The lines of `qwen35 batch`: what is asked in one, and what is written of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..checks.values import shown
from ..generation import openai_form
from ..generation.openai_form import CHAT, COMPLETIONS, Asked
from ..generation.request import Request
from ..prompts.tokenizer import TokenizerLike

BEGINNING = b'{"id": "batch_req_'  # of every line that is written


class Line(NamedTuple):
    """A line of the input.

    number: from 1. start, size: where it stands, in bytes. key: its custom_id, or one of its
    number. digest: of its content.
    """

    number: int
    start: int
    size: int
    key: str
    digest: bytes


class Entry(NamedTuple):
    """What a line says: its custom_id, if any; where its body belongs; whether it is in OpenAI's
    envelope."""

    custom_id: str | None
    url: str
    body: Mapping[str, Any]
    enveloped: bool


class Written(NamedTuple):
    """What a line of the output says: its id, custom_id, and whether it has an answer."""

    id: str
    key: str
    answered: bool


def read_lines(path: str) -> tuple[list[Line], int]:
    """Lists the lines of a file, empty ones left out, and returns the most likely tokens that one
    of them asks for besides.

    Raises:
        ValueError: two have the same custom_id.
        OSError: the file can't be read.
    """
    lines: list[Line] = []
    numbers: dict[str, int] = {}
    start = logprobs = 0
    with Path(path).open("rb") as file:
        for number, content in enumerate(file, 1):
            here, start = start, start + len(content)
            if not content.strip():
                continue
            key = f"line-{number}"
            try:
                entry = parse(content)
                key = entry.custom_id or key
                logprobs = max(logprobs, _likely(entry))
            except ValueError:
                pass  # it is answered with what is wrong
            if key in numbers:
                raise ValueError(
                    f"{path}: lines {numbers[key]} and {number} have the same custom_id "
                    f"{shown(key)}, so that their answers could not be told apart"
                )
            numbers[key] = number
            lines.append(Line(number, here, len(content), key, digest_of(content)))
    return lines, logprobs


def parse(content: bytes) -> Entry:
    """Reads a line: OpenAI's form, with the body in an envelope; or a body with or without a
    custom_id; or a text, which is a prompt.

    Raises:
        ValueError: it is none of them.
    """
    try:
        line = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the line is not JSON ({error})") from None
    if isinstance(line, str):
        line = {"prompt": line}
    if not isinstance(line, dict):
        raise ValueError(f"the line must be an object or a text, not {shown(line)}")
    line = dict(line)
    custom_id = line.pop("custom_id", None)
    if custom_id is not None and (not isinstance(custom_id, str) or not custom_id):
        raise ValueError(f"custom_id must be a text, not {shown(custom_id)}")
    if "body" not in line:
        return Entry(custom_id, CHAT if "messages" in line else COMPLETIONS, line, False)
    if custom_id is None:
        raise ValueError("a line with a body needs a custom_id")
    if line.get("method", "POST") != "POST":
        raise ValueError(f"method must be POST, not {shown(line['method'])}")
    body = line["body"]
    if not isinstance(body, Mapping):
        raise ValueError(f"body must be an object, not {shown(body)}")
    return Entry(custom_id, line.get("url", ""), body, True)


def digest_of(content: bytes) -> bytes:
    """Returns what tells a line from another."""
    return hashlib.sha256(content.strip()).digest()


def id_of(line: Line, settings: bytes) -> str:
    """Names a line's answer by what it is an answer to, under which settings."""
    return "batch_req_" + hashlib.sha256(line.digest + settings).hexdigest()[:24]


def written(entry: Mapping[str, Any]) -> Written:
    """Reads back a line of the output.

    Raises:
        ValueError: it is none.
    """
    response = entry.get("response")
    found = entry.get("id"), entry.get("custom_id")
    if not all(isinstance(value, str) for value in found):
        raise ValueError("no id and custom_id")
    failed = isinstance(response, Mapping) and response.get("status_code") != 200
    return Written(*found, answered=not failed and entry.get("error") is None)


def answer(
    line: Line,
    enveloped: bool,
    id: str,
    asked: Asked,
    request: Request,
    tokenizer: TokenizerLike,
    **named: Any,
) -> dict[str, Any]:
    """Writes the line of a request that has been answered; `named` is as for `answer_body`."""
    short = id.removeprefix("batch_req_")
    body = openai_form.answer_body(asked, request, tokenizer, id=short, **named)
    if enveloped:
        return _enveloped(line, id, 200, body)
    [choice] = body["choices"]
    said = {"text": choice["text"]} if "text" in choice else {"message": choice["message"]}
    said["finish_reason"] = choice["finish_reason"]
    if choice["logprobs"] is not None:
        said["logprobs"] = choice["logprobs"]
    return {"id": id, "custom_id": line.key, **said, "usage": body["usage"], "error": None}


def refusal(line: Line, entry: Entry | None, id: str, error: Exception) -> dict[str, Any]:
    """Writes the line of a request that was refused; without an entry it could not be read."""
    if entry is not None and entry.enveloped:
        return _enveloped(
            line, id, 400, openai_form.error_body(str(error), "invalid_request_error")
        )
    return _failed(line, id, "invalid_line" if entry is None else "invalid_request", str(error))


def failure(line: Line, entry: Entry, id: str, error: Exception) -> dict[str, Any]:
    """Writes the line of a request over which the engine failed."""
    message = f"{type(error).__name__}: {error}"
    if entry.enveloped:
        return _enveloped(line, id, 500, openai_form.error_body(message, "server_error"))
    return _failed(line, id, "server_error", message)


def asked_of(entry: Entry, line: Line, chat: bool, system: str | None, **otherwise: Any) -> Asked:
    """Returns what a line asks for.

    Args:
        entry, line: the line.
        chat: whether a prompt that is a text is a message to be answered, after the system's.
        system: that one, or None.
        **otherwise: as `read_request` takes it. A seed for all lines gives each its own.
    """
    url, body = entry.url, dict(entry.body)
    if chat and not entry.enveloped and isinstance(body.get("prompt"), str):
        head = [] if system is None else [{"role": "system", "content": system}]
        url, body["messages"] = CHAT, [*head, {"role": "user", "content": body.pop("prompt")}]
    otherwise["sampling"] = otherwise["sampling"].for_row(line.number - 1)
    return openai_form.read_request(url, body, **otherwise)


def _enveloped(line: Line, id: str, status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": id.replace("batch_req_", "req_"), "body": body}
    return {"id": id, "custom_id": line.key, "response": response, "error": None}


def _failed(line: Line, id: str, code: str, message: str) -> dict[str, Any]:
    error = {"code": code, "message": message}
    return {"id": id, "custom_id": line.key, "response": None, "error": error}


def _likely(entry: Entry) -> int:
    """Returns how many likely tokens a line asks for, if it may."""
    name = "top_logprobs" if entry.url == CHAT else "logprobs"
    number = entry.body.get(name)
    known = isinstance(number, int) and 0 < number <= openai_form.MOST_LOGPROBS
    return number if known else 0
