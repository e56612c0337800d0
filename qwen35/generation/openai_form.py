"""Requests and answers as OpenAI's API has them, of chats and of completions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks.values import as_integer, integer, shown
from ..prompts.inputs import OnePrompt
from ..prompts.tokenizer import TokenizerLike
from .answers import AnswerReader, message_of, read_answer
from .request import Request
from .results import TokenLogprob
from .sampling_settings import Sampling
from .tool_grammar import tool_grammar

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MOST_LOGPROBS = 20  # OpenAI's own limit
_REPLACED = "\N{REPLACEMENT CHARACTER}"

# Fields of `Sampling` under their own names: OpenAI's, and what other servers have besides.
_SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
# Fields that have one value here, the default.
_ONLY = {"n": 1, "best_of": 1, "stream": False, "echo": False, "suffix": ""}
# Fields that concern OpenAI's service.
_IGNORED = {
    *("model", "user", "metadata", "store", "service_tier", "stream_options", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
}
_OWN = {
    CHAT: {
        *("messages", "max_tokens", "max_completion_tokens", "logit_bias", "logprobs"),
        *("top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"),
        *("response_format", "chat_template_kwargs"),
    },
    COMPLETIONS: {"prompt", "max_tokens", "logit_bias", "logprobs"},
}


@dataclass(frozen=True)
class Asked:
    """What a request asks for, as `Engine.submit` takes it; `url` is where it was sent."""

    url: str
    prompt: OnePrompt
    max_new_tokens: int | None
    sampling: Sampling
    template: Mapping[str, Any]


def read_request(
    url: str,
    body: Mapping[str, Any],
    *,
    max_new_tokens: int | None,
    sampling: Sampling,
    template: Mapping[str, Any],
) -> Asked:
    """Reads a request's body.

    Args:
        url: `CHAT` or `COMPLETIONS`.
        body: what was sent there; a field of None is one that is not there.
        max_new_tokens, sampling, template: what holds where the body says nothing.

    Raises:
        ValueError: another url, a field that is not known, or a value that is not possible here.
            Values that `Engine.submit` checks are left to it.
    """
    if not isinstance(url, str) or url not in _OWN:
        raise ValueError(f"url must be {CHAT} or {COMPLETIONS}, not {shown(url)}")
    if not isinstance(body, Mapping):
        raise ValueError(f"body must be an object, not {shown(body)}")
    given = {name: value for name, value in body.items() if value is not None}
    known = {*_SAMPLING, *_ONLY, *_IGNORED, *_OWN[url]}
    for name in given:
        if name not in known:
            raise ValueError(f"{shown(name)} is no field of {url} that is known here")
    for name, only in _ONLY.items():
        if given.get(name, only) != only:
            raise ValueError(f"{name} must be {only!r}, not {shown(given[name])}")
    changes = {name: given[name] for name in _SAMPLING if name in given}
    if "logit_bias" in given:
        changes["logit_bias"] = _bias(given["logit_bias"])
    if "response_format" in given:
        changes["json_schema"] = _json_schema(given["response_format"])
    called = _called(given) if url == CHAT else None
    if called is not None:
        if changes.get("json_schema", sampling.json_schema) is not None:
            raise ValueError("a tool_choice that has a tool called goes with no JSON schema")
        changes["grammar"] = called
    logprobs = _logprobs(url, given)
    if logprobs is not None:
        changes["logprobs"] = logprobs
    limits = [given[name] for name in ("max_completion_tokens", "max_tokens") if name in given]
    if limits:
        max_new_tokens = integer("max_tokens", limits[0])
    return Asked(
        url=url,
        prompt=_prompt(url, given),
        max_new_tokens=max_new_tokens,
        sampling=dataclasses.replace(sampling, **changes),
        template=_template(given, template) if url == CHAT else {},
    )


def _prompt(url: str, given: Mapping[str, Any]) -> OnePrompt:
    if url == CHAT:
        messages = given.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError("messages must be a list of at least one message")
        return messages
    prompt = given.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(as_integer(id) is not None for id in prompt):
        return prompt
    raise ValueError(f"prompt must be one text or one list of token ids, not {shown(prompt)}")


def _template(given: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of the chat template."""
    more = given.get("chat_template_kwargs", {})
    if not isinstance(more, Mapping):
        raise ValueError(f"chat_template_kwargs must be an object, not {shown(more)}")
    variables = {**template, **more}
    if "reasoning_effort" in given:
        variables["reasoning_effort"] = given["reasoning_effort"]
    tools = _tools(given)
    if tools and given.get("tool_choice") != "none":
        variables["tools"] = tools
    return variables


def _tools(given: Mapping[str, Any]) -> list[Any]:
    tools = given.get("tools", [])
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"tools must be a list of objects, not {shown(tools)}")
    return tools


def _called(given: Mapping[str, Any]) -> str | None:
    """Returns the grammar of the calls that a tool_choice asks for; None where none has to be."""
    choice, several = given.get("tool_choice", "auto"), given.get("parallel_tool_calls", True)
    if not isinstance(several, bool):
        raise ValueError(f"parallel_tool_calls must be true or false, not {shown(several)}")
    if choice in ("auto", "none"):
        return None
    if choice == "required":
        return tool_grammar(_tools(given), several=several)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name is None or choice.get("type") != "function":
        raise ValueError(
            "tool_choice must be 'auto', 'none', 'required', or a function with a name, such as "
            f'{{"type": "function", "function": {{"name": "look"}}}}, not {shown(choice)}'
        )
    return tool_grammar(_tools(given), name)


def _bias(bias: Any) -> dict[int, Any]:
    if not isinstance(bias, Mapping) or not all(str(key).isdecimal() for key in bias):
        raise ValueError(f"logit_bias must have numbers by token id, not {shown(bias)}")
    return {int(key): value for key, value in bias.items()}


def _json_schema(form: Any) -> Any:
    """Returns the schema that a response_format asks for, None for any text."""
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    within = form.get("json_schema") if kind == "json_schema" else None
    if not isinstance(within, Mapping) or not isinstance(within.get("schema"), Mapping):
        raise ValueError(
            "response_format must have type 'text', 'json_object', or 'json_schema' with a schema "
            f"in json_schema, not {shown(form)}"
        )
    return within["schema"]


def _logprobs(url: str, given: Mapping[str, Any]) -> int | None:
    """Returns how many likely tokens are to be reported, None for no log probabilities."""
    asked, number = given.get("logprobs", False), given.get("top_logprobs")
    if url == CHAT:
        if not isinstance(asked, bool):
            raise ValueError(f"logprobs must be true or false, not {shown(asked)}")
        if not asked:
            if number is not None:
                raise ValueError("top_logprobs needs logprobs to be true")
            return None
        asked = 0 if number is None else number
    if asked is False:
        return None
    return integer("top_logprobs" if url == CHAT else "logprobs", asked, 0, MOST_LOGPROBS)


def answer_body(
    asked: Asked, request: Request, tokenizer: TokenizerLike, *, id: str, model: str, created: int
) -> dict[str, Any]:
    """Writes the body that answers a request which has ended.

    A chat's thought stands in `reasoning_content`, as with other servers.

    Args:
        asked: what was asked for.
        request: what came of it.
        tokenizer: the engine's.
        id: names the answer.
        model: the model's name.
        created: seconds since 1970.
    """
    completion = request.completion()
    chat = asked.url == CHAT
    choice: dict[str, Any] = {"index": 0, "finish_reason": completion.finish_reason}
    found = completion.logprobs
    if chat:
        message = message_of(read_answer(reader_for(asked, request, tokenizer, id), request))
        choice["message"] = {**message, "refusal": None}
        if "tool_calls" in message and completion.finish_reason == "stop":
            choice["finish_reason"] = "tool_calls"
        entries = None if found is None else [_entry(tokenizer, token) for token in found]
        choice["logprobs"] = None if entries is None else {"content": entries, "refusal": None}
    else:
        choice["text"] = completion.text
        choice["logprobs"] = None if found is None else _flat(tokenizer, found)
    return {
        "id": ("chatcmpl-" if chat else "cmpl-") + id,
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": usage(request),
    }


def reader_for(asked: Asked, request: Request, tokenizer: TokenizerLike, id: str) -> AnswerReader:
    """Makes a reader for the pieces of a chat's answer, of which `id` names the calls."""
    thinking = asked.template.get("enable_thinking", True) is not False
    tools = asked.template.get("tools", ())
    return AnswerReader(tokenizer, request.tokens, thinking=thinking, tools=tools, name=id)


def usage(request: Request) -> dict[str, Any]:
    """Counts a request's tokens."""
    read, written = len(request.tokens), len(request.new_tokens)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": request.cached_tokens},
    }


def error_body(message: str, kind: str) -> dict[str, Any]:
    """Writes the body that answers a request which failed."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _entry(tokenizer: TokenizerLike, found: TokenLogprob) -> dict[str, Any]:
    def one(token: int, value: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        # A token may be a part of a character, whose bytes its text does not tell.
        content = None if _REPLACED in text else list(text.encode("utf-8", "surrogatepass"))
        return {"token": text, "logprob": value, "bytes": content}

    return one(found.token, found.logprob) | {"top_logprobs": [one(*pair) for pair in found.top]}


def _flat(tokenizer: TokenizerLike, found: Sequence[TokenLogprob]) -> dict[str, Any]:
    texts = [tokenizer.decode([entry.token]) for entry in found]
    return {
        "tokens": texts,
        "token_logprobs": [entry.logprob for entry in found],
        "top_logprobs": [
            {tokenizer.decode([token]): value for token, value in entry.top} for entry in found
        ],
        "text_offset": [sum(map(len, texts[:place])) for place in range(len(texts))],
    }
