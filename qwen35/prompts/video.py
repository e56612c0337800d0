"""Videos to patches: sampling, sizes and timestamps, as the published processor does."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..checks.values import positive_number
from .images import MAX_SOURCE_PIXELS, data_url, exact_size, fit, patchify, read_image
from .settings import VideoSettings
from .video_file import Frame, OtherFrames, VideoFile, open_video

_ROUNDING = 1e-6  # seconds


class Video(NamedTuple):
    """A video as the vision tower's input.

    patches [t * h * w, patch_dim] float32; grid (t, h, w) in patches; timestamps: the second of
    each of the t temporal patches.
    """

    patches: Tensor
    grid: tuple[int, int, int]
    timestamps: tuple[float, ...]


class _Wanted(NamedTuple):
    """Which frames are asked for: so many a second, or in all, from one second to another."""

    fps: float | None = None
    nframes: int | None = None
    start: float | None = None
    end: float | None = None


def read_video(
    source: Any,
    settings: VideoSettings,
    *,
    fps: float | None = None,
    sample_fps: float | None = None,
    timestamps: Sequence[float] | None = None,
    nframes: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_source_pixels: int = MAX_SOURCE_PIXELS,
) -> Video:
    """Samples a video and cuts it into patches.

    Of a file the frames are turned and stretched as players do, and the times are the file's own.
    A frame that is damaged is left out.

    Args:
        source: a path, a `file:` or `data:` URL, the bytes of a file or a binary file (read
            through PyAV); or frames: a sequence of what `read_image` takes, or an array
            [T, H, W, C] or [T, C, H, W].
        settings: sizes, limits and sampling.
        fps: of a file, how many frames a second are wanted, in place of the settings'; frames per
            second of frames, of which some are sampled.
        sample_fps: frames per second of frames, all of which are taken.
        timestamps: the second of every frame instead: then all are taken.
        nframes: how many frames are wanted, rounded to whole temporal patches.
        start, end: the seconds between which they are, both included.
        max_source_pixels: the most that a frame may have.

    Raises:
        ValueError: it can't be read, ends inside a frame, has fewer than two frames or frames of
            different sizes; arguments contradict each other, or are of frames and the video is a
            file; PyAV is needed and not installed.
    """
    content = data_url(source, "video") if isinstance(source, str) else source
    if isinstance(content, bytes | bytearray | memoryview):
        source = io.BytesIO(content)
    if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        if timestamps is not None or sample_fps is not None:
            raise ValueError("timestamps and sample_fps are for frames: a video file has its own")
        wanted = _Wanted(fps, nframes, start, end)
        return _from_file(open_video(source, max_source_pixels), settings, wanted)
    count = len(source) if hasattr(source, "__len__") else 0
    if count == 0:
        raise ValueError(f"a {type(source).__name__} is no video: give a path or frames")
    if sum(given is not None for given in (fps, sample_fps, timestamps)) != 1:
        raise ValueError(
            "a video given as frames needs either fps or timestamps (in seconds), or sample_fps, "
            "frames per second of which all are taken (qwen-vl-utils supposes 2)"
        )
    if fps is not None:
        fps = positive_number("fps", fps)
        times = [index / fps for index in range(count)]
        indices = _choose(times, fps, settings, _Wanted(None, nframes, start, end))
    else:
        if (nframes, start, end) != (None, None, None):
            raise ValueError("nframes, start and end choose among frames: give those with fps")
        times = _given_times(count, sample_fps, timestamps)
        indices = list(range(count))
    frames = _alike(_read_frames(source, indices, max_source_pixels))
    return _cut(frames, [times[index] for index in indices], settings)


def _given_times(
    count: int, sample_fps: float | None, timestamps: Sequence[float] | None
) -> list[float]:
    if timestamps is None:
        rate = positive_number("sample_fps", sample_fps)
        return [index / rate for index in range(count)]
    seconds = [float(second) for second in timestamps]
    if len(seconds) != count:
        raise ValueError(f"{len(seconds)} timestamps for {count} frames")
    if not np.isfinite(seconds).all() or min(seconds) < 0 or seconds != sorted(seconds):
        raise ValueError("timestamps must be seconds from 0 that never go back")
    return seconds


def sample(count: int, fps: float, settings: VideoSettings) -> list[int]:
    """Which of `count` frames at `fps` per second are taken: evenly spread, ends included."""
    fps = positive_number("fps", fps)
    wanted = int(count / fps * settings.fps)
    wanted = min(max(wanted, settings.min_frames), settings.max_frames, count)
    return _spread(0, count - 1, wanted)


def _spread(first: int, last: int, count: int) -> list[int]:
    return np.linspace(first, last, count).round().astype(int).tolist()


def _choose(times: list[float], rate: float, settings: VideoSettings, wanted: _Wanted) -> list[int]:
    """Chooses among frames shown at `times`, `rate` of them per second; what is asked for is
    counted as qwen-vl-utils counts it."""
    start, end = wanted.start or 0.0, math.inf if wanted.end is None else wanted.end
    within = [n for n, t in enumerate(times) if start - _ROUNDING <= t <= end + _ROUNDING]
    if len(within) < min(len(times), settings.temporal_patch_size):
        raise ValueError(
            f"from second {start:g} to {end:g} the video has {len(within)} of its {len(times)} "
            f"frames, the last of which is at {times[-1]:.1f}"
        )
    first, count, span = within[0], len(within), settings.temporal_patch_size
    if wanted.nframes is not None:
        if wanted.fps is not None:
            raise ValueError("either fps or nframes says how many frames are wanted, not both")
        number = round(wanted.nframes / span) * span
        if not span <= number <= count:
            raise ValueError(
                f"nframes must be from {span} to the video's {count} frames, not {wanted.nframes}"
            )
    elif wanted.fps is not None:
        fewest = -(-settings.min_frames // span) * span
        number = int(min(max(count / rate * wanted.fps, fewest), settings.max_frames, count))
        number = max(number // span * span, min(span, count))
    else:
        return [first + index for index in sample(count, rate, settings)]
    return _spread(first, within[-1], number)


def _read_frames(source: Any, indices: list[int], max_source_pixels: int) -> Iterator[Frame]:
    for index in indices:
        try:
            yield Frame(read_image(source[index], max_source_pixels=max_source_pixels))
        except ValueError as error:
            raise ValueError(f"frame {index}: {error}") from None


def _alike(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Checks that frames which somebody gives have one size."""
    first = None
    for number, frame in enumerate(frames):
        first = first or frame.image
        if frame.image.size != first.size:
            raise ValueError(
                f"the video's frames differ in size: {first.width} x {first.height} and, at frame "
                f"{number}, {frame.image.width} x {frame.image.height}"
            )
        yield frame


def _cut(frames: Iterable[Frame], seconds: list[float], settings: VideoSettings) -> Video:
    """Patches of `len(seconds)` frames, resized as they come: at full size they may be many GB.

    Those of a file may change their size midway, as in calls: all are shown as large as the first.
    """
    count, span = len(seconds), settings.temporal_patch_size
    if count < span:
        raise ValueError(f"a video of {count} frame is too short: give a picture as an image")
    frames = iter(frames)
    first, aspect = next(frames)
    shown = round(first.height / min(aspect, 1)), round(first.width * max(aspect, 1))
    height, width = _size(count, *shown, settings)
    images = itertools.chain([first], (frame.image for frame in frames))
    patches, grid = patchify(images, height, width, settings)
    seconds = seconds + [seconds[-1]] * (-count % span)
    middles = [(seconds[i] + seconds[i + span - 1]) / 2 for i in range(0, len(seconds), span)]
    return Video(patches, grid, tuple(middles))


def _size(frames: int, height: int, width: int, settings: VideoSettings) -> tuple[int, int]:
    factor, span = settings.factor, settings.temporal_patch_size
    if settings.size is not None:
        return exact_size(settings)
    budget = settings.max_pixels
    if settings.max_frame_pixels is not None:
        share = min(settings.max_frame_pixels, budget // frames)
        budget = frames * max(share, int(settings.min_pixels * 1.05))
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if settings.frame_limits is not None:
        return _size_within(frames, height, width, budget, settings)
    padded = round(frames / span) * span
    return fit(frames, padded, height, width, factor, settings.min_pixels, budget)


def _size_within(
    frames: int, height: int, width: int, budget: int, settings: VideoSettings
) -> tuple[int, int]:
    """A frame's size by the limits that a message sets, for what it leaves open within `budget`
    pixels of all frames."""
    low, high, total = settings.frame_limits
    least = low or min(high or budget, max(1, settings.min_pixels // frames))
    most = budget // frames
    if total is not None:
        most = min(most, total * settings.temporal_patch_size // frames)
    most = max(most, int(least * 1.05))
    return fit(1, 1, height, width, settings.factor, least, min(most, high or most))


def _from_file(file: VideoFile, settings: VideoSettings, wanted: _Wanted) -> Video:
    """Samples over the frames that the file promises and, where those are not there, over those
    that can be decoded."""
    times = file.times
    indices = _choose(times, file.rate, settings, wanted)
    try:
        return _cut(file.frames(indices), [times[index] for index in indices], settings)
    except OtherFrames:
        return _from_file(file.found(), settings, wanted)
