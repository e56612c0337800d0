"""What a part of a message asks for its picture: the keys that Qwen's qwen-vl-utils documents."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ..checks.values import as_number, integer, positive_number, shown
from .settings import SIZE_TOKENS, FrameLimits, PatchSettings, VideoSettings

_SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")
# Of a video: what is asked of each frame, and which frames are taken.
_FRAMES = ("total_pixels", "min_frames", "max_frames")
_TIMES = ("fps", "sample_fps", "timestamps", "nframes", "video_start", "video_end")
OPTIONS = {"text": (), "image": _SIZES, "video": (*_SIZES, *_FRAMES, *_TIMES)}
_LOW_DETAIL = 512 * 512  # pixels, by OpenAI's description of "low"


def check_keys(where: str, part: Mapping[str, Any], kind: str, sources: tuple[str, ...]) -> None:
    """Checks that a part of a message has no key that would be dropped; None is no value.

    Args:
        where: what the part is called in an error.
        part: of the message.
        kind: "text", "image" or "video".
        sources: the keys that hold what is shown.

    Raises:
        ValueError: it has; the text names it, and those that are known.
    """
    known = ("type", *sources, *OPTIONS[kind])
    unknown = [key for key, value in part.items() if key not in known and value is not None]
    if unknown:
        raise ValueError(
            f"{where} of type {shown(part['type'])} has {', '.join(map(shown, unknown))}, which is "
            f"not known there: known are {', '.join(known[1:])}"
        )
    nested = part.get(kind + "_url")
    if isinstance(nested, Mapping):
        allowed = ("url", "detail") if kind == "image" else ("url",)
        unknown = [key for key, value in nested.items() if key not in allowed and value is not None]
        if unknown:
            raise ValueError(
                f"{where}: {kind}_url has {', '.join(map(shown, unknown))}, which is not known "
                f"there: known are {', '.join(allowed)}"
            )


def image_settings(part: Mapping[str, Any], settings: PatchSettings) -> PatchSettings:
    """Returns an image's settings with what its part asks for in place of the checkpoint's.

    Raises:
        ValueError: a value is impossible, or contradicts another.
    """
    given = {key: _whole(key, part[key]) for key in _SIZES if part.get(key) is not None}
    detail = _detail(part)
    if detail is not None:
        given["max_pixels"] = min(detail, given.get("max_pixels", settings.max_pixels))
    size = _size(given, settings)
    if size is not None:
        return dataclasses.replace(settings, size=size)
    high = given.get("max_pixels", settings.max_pixels)
    low = given.get("min_pixels", settings.min_pixels)
    if "min_pixels" not in given and low > high:
        low = min(high, SIZE_TOKENS[0] * settings.factor**2)
    _check_range(low, high)
    return dataclasses.replace(settings, min_pixels=low, max_pixels=high)


def video_settings(part: Mapping[str, Any], settings: VideoSettings) -> VideoSettings:
    """Returns a video's settings with what its part asks for in place of the checkpoint's.

    `min_pixels` and `max_pixels` are of a frame, `total_pixels` of the temporal patches, as
    qwen-vl-utils counts them.

    Raises:
        ValueError: a value is impossible, or contradicts another.
    """
    names = (*_SIZES, *_FRAMES)
    given = {key: _whole(key, part[key]) for key in names if part.get(key) is not None}
    size = _size(given, settings)
    low, high, total = map(given.get, ("min_pixels", "max_pixels", "total_pixels"))
    if low is not None and high is not None:
        _check_range(low, high)
    limits = None if low is high is total is None else FrameLimits(low, high, total)
    counts = {key: given[key] for key in ("min_frames", "max_frames") if key in given}
    changed = dataclasses.replace(settings, size=size, frame_limits=limits, **counts)
    if changed.min_frames > changed.max_frames:
        raise ValueError(
            f"min_frames {changed.min_frames} is above max_frames {changed.max_frames}"
        )
    return changed


def frames_wanted(part: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `read_video` that say which frames a part wants, and when they are.

    Raises:
        ValueError: a value is impossible, or contradicts another.
    """
    asked = {key: part[key] for key in _TIMES if part.get(key) is not None}
    for key in ("fps", "sample_fps"):
        if key in asked:
            asked[key] = positive_number(key, _rate(asked[key]))
    if "nframes" in asked:
        asked["nframes"] = integer("nframes", asked["nframes"])
    for key, name in (("video_start", "start"), ("video_end", "end")):
        if key in asked:
            value = asked.pop(key)
            second = as_number(value)
            if second is None or second < 0:
                raise ValueError(f"{key} must be a number of seconds, not {shown(value)}")
            asked[name] = float(second)
    return asked


def _rate(value: Any) -> Any:
    """Returns the number that a text writes, as Qwen's own example does: `"sample_fps": "1"`."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _whole(key: str, value: Any) -> int:
    """Returns an integer; of a limit of pixels, which may lie between two, the one inside."""
    number = as_number(value) if key.endswith("_pixels") else None
    if isinstance(number, float):
        value = math.ceil(number) if key == "min_pixels" else math.floor(number)
    return integer(key, value)


def _detail(part: Mapping[str, Any]) -> int | None:
    """Returns the most pixels that OpenAI's `detail` beside a URL allows, None for any number."""
    source = part.get("image_url")
    if not isinstance(source, Mapping):
        return None
    detail = source.get("detail")
    if detail not in (None, "auto", "high", "low"):
        raise ValueError(f"detail must be auto, high or low, not {shown(detail)}")
    return _LOW_DETAIL if detail == "low" else None


def _size(given: Mapping[str, int], settings: PatchSettings) -> tuple[int, int] | None:
    """Returns the (height, width) asked for, still in any number of pixels."""
    sides = [key for key in ("resized_height", "resized_width") if key in given]
    if not sides:
        return None
    if len(sides) == 1:
        raise ValueError(f"{sides[0]} is given alone: both sides say the size")
    limits = [key for key in ("min_pixels", "max_pixels", "total_pixels") if key in given]
    if limits:
        raise ValueError(
            f"resized_height and resized_width say the size: {', '.join(limits)} can't as well"
        )
    return given["resized_height"], given["resized_width"]


def _check_range(low: int, high: int) -> None:
    if low > high:
        raise ValueError(f"min_pixels {low} is above max_pixels {high}")
