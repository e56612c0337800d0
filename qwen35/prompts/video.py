"""Videos to patches: reading, sampling and timestamps, as the published processor does."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..checks.values import positive_number
from .images import MAX_SOURCE_PIXELS, data_url, fit, local_path, patchify, read_image
from .settings import VideoSettings


class Video(NamedTuple):
    """A video as the vision tower's input.

    patches [t * h * w, patch_dim] float32; grid (t, h, w) in patches; timestamps: the second of
    each of the t temporal patches.
    """

    patches: Tensor
    grid: tuple[int, int, int]
    timestamps: tuple[float, ...]


def read_video(
    source: Any,
    settings: VideoSettings,
    *,
    fps: float | None = None,
    timestamps: Sequence[float] | None = None,
    max_source_pixels: int = MAX_SOURCE_PIXELS,
) -> Video:
    """Samples a video and cuts it into patches.

    Args:
        source: a path, a `file:` or `data:` URL, the bytes of a file or a binary file (read
            through PyAV), whose own frame rate counts; or frames: a sequence of what
            `read_image` takes, or an array [T, H, W, C] or [T, C, H, W].
        settings: sizes, limits and sampling.
        fps: frames per second of `source`'s frames: some of them are sampled.
        timestamps: the second of every frame instead: then all are taken.
        max_source_pixels: the most that a frame may have.

    Raises:
        ValueError: it can't be read, has fewer than two frames or frames of different sizes; both
            or neither of `fps` and `timestamps` are given for frames, or one for a file; PyAV is
            needed and not installed.
    """
    content = data_url(source, "video") if isinstance(source, str) else source
    if isinstance(content, bytes | bytearray):
        source = io.BytesIO(content)
    if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        if fps is not None or timestamps is not None:
            raise ValueError("fps and timestamps are for frames: a video file has its own")
        return _from_file(source, settings, max_source_pixels)
    count = len(source) if hasattr(source, "__len__") else 0
    if count == 0:
        raise ValueError(f"a {type(source).__name__} is no video: give a path or frames")
    if (fps is None) == (timestamps is None):
        raise ValueError("a video given as frames needs either fps or timestamps (in seconds)")
    if timestamps is None:
        indices = sample(count, fps, settings)
        seconds = [index / fps for index in indices]
    else:
        indices, seconds = list(range(count)), [float(second) for second in timestamps]
        if len(seconds) != count:
            raise ValueError(f"{len(seconds)} timestamps for {count} frames")
        if not np.isfinite(seconds).all() or min(seconds) < 0 or seconds != sorted(seconds):
            raise ValueError("timestamps must be seconds from 0 that never go back")
    frames = _read_frames(source, indices, max_source_pixels)
    return _cut(frames, seconds, settings)


def sample(count: int, fps: float, settings: VideoSettings) -> list[int]:
    """Which of `count` frames at `fps` per second are taken: evenly spread, ends included."""
    fps = positive_number("fps", fps)
    wanted = int(count / fps * settings.fps)
    wanted = min(max(wanted, settings.min_frames), settings.max_frames, count)
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist()


def _read_frames(source: Any, indices: list[int], max_source_pixels: int) -> Iterator[Image.Image]:
    for index in indices:
        try:
            yield read_image(source[index], max_source_pixels=max_source_pixels)
        except ValueError as error:
            raise ValueError(f"frame {index}: {error}") from None


def _cut(frames: Iterable[Image.Image], seconds: list[float], settings: VideoSettings) -> Video:
    """Patches of `len(seconds)` frames, resized as they come: at full size they may be many GB."""
    count, span = len(seconds), settings.temporal_patch_size
    if count < span:
        raise ValueError(f"a video of {count} frame is too short: give a picture as an image")
    frames = iter(frames)
    first = next(frames)
    height, width = _size(count, first.height, first.width, settings)

    def alike() -> Iterator[Image.Image]:
        yield first
        for number, frame in enumerate(frames, start=1):
            if frame.size != first.size:
                raise ValueError(
                    f"the video's frames differ in size: {first.width} x {first.height} and, at "
                    f"frame {number}, {frame.width} x {frame.height}"
                )
            yield frame

    patches, grid = patchify(alike(), height, width, settings)
    seconds = seconds + [seconds[-1]] * (-count % span)
    middles = [(seconds[i] + seconds[i + span - 1]) / 2 for i in range(0, len(seconds), span)]
    return Video(patches, grid, tuple(middles))


def _size(frames: int, height: int, width: int, settings: VideoSettings) -> tuple[int, int]:
    factor, span = settings.factor, settings.temporal_patch_size
    budget = settings.max_pixels
    if settings.max_frame_pixels is not None:
        share = min(settings.max_frame_pixels, budget // frames)
        budget = frames * max(share, int(settings.min_pixels * 1.05))
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    padded = round(frames / span) * span
    return fit(frames, padded, height, width, factor, settings.min_pixels, budget)


def _from_file(source: Any, settings: VideoSettings, max_source_pixels: int) -> Video:
    if importlib.util.find_spec("av") is None:
        raise ValueError("reading a video file needs PyAV: pip install 'qwen35[video]'")
    import av

    name = "the video"
    if not hasattr(source, "read"):
        name = source = str(local_path(os.fspath(source), "video"))
    try:
        count = _count_frames(av, source, name, max_source_pixels)
        with av.open(source) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise ValueError(f"{name}: its frame rate is not known; give it as frames")
            stream.thread_type = "AUTO"
            indices = sample(count, float(rate), settings)
            seconds = [index / float(rate) for index in indices]
            return _cut(_decode(container, indices, count, name), seconds, settings)
    except av.FFmpegError as error:
        raise ValueError(f"{name}: not a video that can be read ({error})") from None


def _count_frames(av: Any, source: Any, name: str, max_source_pixels: int) -> int:
    """As its header says, or where it doesn't, by decoding it once."""
    _rewind(source)
    with av.open(source) as container:
        if not container.streams.video:
            raise ValueError(f"{name}: it has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError(f"{name}: not a video that can be read (no decoder for its stream)")
        if stream.width * stream.height > max_source_pixels:
            raise ValueError(
                f"{name}: frames of {stream.width} x {stream.height} pixels are over the limit of "
                f"{max_source_pixels:,} pixels"
            )
        count = stream.frames or sum(1 for _ in container.decode(video=0))
    _rewind(source)
    if count == 0:
        raise ValueError(f"{name}: it has no frame")
    return count


def _rewind(source: Any) -> None:
    if hasattr(source, "seek"):
        source.seek(0)


def _decode(container: Any, indices: list[int], count: int, name: str) -> Iterator[Image.Image]:
    wanted, seen = set(indices), 0
    for index, frame in enumerate(container.decode(video=0)):
        seen = index + 1
        if index in wanted:
            yield frame.to_image()
        if index == indices[-1]:
            return
    raise ValueError(f"{name}: {count} frames were announced and {seen} found: is it truncated?")
