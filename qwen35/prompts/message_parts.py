"""Parts of messages in others' forms: those of OpenAI's two APIs, and Qwen's without a type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMED = ("text", "image", "image_url", "video", "video_url")  # keys that say the type as well
_TEXTS = ("input_text", "output_text")  # of OpenAI's Responses API
_BESIDE = ("annotations", "logprobs")  # what that API has beside an answer's text


def known_part(part: Any) -> Any:
    """Returns a part as one of type "text", "image" or "video", and what is none as it is.

    A part without a type is of the kind of its only source, as templates of the family take it.
    Types of a URL are those of what it names; types of OpenAI's Responses API are told as such of
    its Chat Completions.
    """
    if not isinstance(part, Mapping):
        return part
    part = dict(part)
    if part.get("type") is None:
        kinds = [name for name in _NAMED if part.get(name) is not None]
        if len(kinds) != 1:
            return part
        part["type"] = kinds[0]
    if part["type"] in _TEXTS:
        nothing = [key for key in _BESIDE if not part.get(key)]
        part = {key: value for key, value in part.items() if key not in nothing}
        part["type"] = "text"
    elif part["type"] == "input_image":
        part["type"], source = "image", part.get("image_url")
        if isinstance(source, str):
            part["image_url"] = {"url": source, "detail": part.pop("detail", None)}
    elif part["type"] in ("image_url", "video_url"):
        part["type"] = part["type"].removesuffix("_url")
    return part
