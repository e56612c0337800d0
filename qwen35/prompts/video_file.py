"""Video files through PyAV: which frames a file has, when each is shown, and how it is held."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import math
import os
import statistics
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from PIL import Image

from .file_ends import ends_before_index, ends_inside_packet
from .images import local_path

# How a display matrix's first two columns show a picture: what is right, what is down.
_TRANSPOSE = Image.Transpose
_SHOWN = {
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): _TRANSPOSE.ROTATE_270,
    (-1, 0, 0, -1): _TRANSPOSE.ROTATE_180,
    (0, -1, 1, 0): _TRANSPOSE.ROTATE_90,
    (-1, 0, 0, 1): _TRANSPOSE.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): _TRANSPOSE.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): _TRANSPOSE.TRANSPOSE,
    (0, -1, -1, 0): _TRANSPOSE.TRANSVERSE,
}
_LAST = 3  # packets at the end of which one is marked where the file ends inside it
_HELD_BACK = 64  # frames that a decoder holds back, at most
_RATE_TOLERANCE = 0.05  # a header's rate that is further from the frames' times is wrong
_COVER = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC
_LONG = 8  # frames of a recording that is joined to others, on average


class Frame(NamedTuple):
    """A frame, upright, RGB, and how wide its pixels are in proportion to their height."""

    image: Image.Image
    aspect: float = 1.0


class OtherFrames(Exception):
    """The file has other frames than its packets promise: list those that can be decoded."""


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """A video in a file, with the frames that it is said or found to have.

    Attributes:
        source: a path, or a seekable binary file.
        name: what it is called in errors.
        stream: the number of the video's stream.
        marks: when each frame is shown, in units; None of one whose container does not say.
        unit: seconds.
        rate: frames per second, on average.
        decoded: whether the frames have been decoded to list them.
    """

    source: Any
    name: str
    stream: int
    marks: tuple[int | None, ...]
    unit: Fraction
    rate: float
    decoded: bool

    @property
    def times(self) -> list[float]:
        """When each frame is shown, in seconds from the first.

        At a constant rate they are number / rate, of which a container may hold rounded values;
        and where the container's times are missing or go back again and again.
        """
        regular = [number / self.rate for number in range(len(self.marks))]
        marks = _joined(self.marks)
        if marks is None:
            return regular
        times = [float((mark - marks[0]) * self.unit) for mark in marks]
        rounding = float(self.unit)
        same = all(abs(a - b) <= rounding for a, b in zip(times, regular, strict=True))
        return regular if same else times

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Decodes the frames of these numbers, ascending, each once.

        Raises:
            OtherFrames: there are fewer frames, or others.
        """
        wanted = set(indices)
        with _opened(self.source, self.name) as container:
            stream = container.streams[self.stream]
            aspect = float(stream.sample_aspect_ratio or 1)
            # Frames decoded side by side come out otherwise where one is damaged.
            stream.thread_type = "SLICE" if self.decoded else "AUTO"
            for index, frame in enumerate(_decode(container, stream)):
                if index >= len(self.marks) or frame.pts != self.marks[index]:
                    raise OtherFrames
                if index in wanted:
                    yield _upright(frame, aspect)
                if index == indices[-1]:
                    return
        raise OtherFrames

    def found(self) -> VideoFile:
        """Returns the video with the frames that can be decoded.

        Raises:
            ValueError: there is none, or they have been listed by decoding already.
        """
        if self.decoded:
            raise ValueError(f"{self.name}: it changes while it is read")
        with _opened(self.source, self.name) as container:
            stream = container.streams[self.stream]
            stream.thread_type = "SLICE"
            stated = stream.average_rate
            marks = tuple(frame.pts for frame in _decode(container, stream))
        if not marks:
            raise ValueError(f"{self.name}: none of its {len(self.marks)} frames can be decoded")
        rate, joined = self.rate, _joined(marks)
        if joined is not None and joined != list(marks):  # packets told of frames side by side
            shown = [_Packet(mark, 0, False, False) for mark in joined]
            rate = _rate(shown, self.unit, stated) or rate
        return dataclasses.replace(self, marks=marks, rate=rate, decoded=True)


def open_video(source: Any, max_source_pixels: int) -> VideoFile:
    """Lists the frames of a video file by its packets, none of which is decoded.

    Args:
        source: a path, a `file:` URL or a binary file.
        max_source_pixels: the most that a frame may have.

    Raises:
        ValueError: it is no video file, has no video, ends inside a packet, or has frames that are
            too large; PyAV is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise ValueError("reading a video file needs PyAV: pip install 'qwen35[video]'")
    name = "the video"
    if not hasattr(source, "read"):
        name = str(local_path(os.fspath(source), "video"))
        source = os.path.abspath(name)  # of "12:30:00.mp4" FFmpeg would take "12" for a protocol
    elif not (hasattr(source, "seekable") and source.seekable()):
        source = io.BytesIO(source.read())
    try:
        return _listed(source, name, max_source_pixels)
    except ValueError:
        with _bytes_of(source) as file:
            if ends_before_index(file):
                raise ValueError(
                    f"{name}: not a video that can be read: the file ends before its index (moov) "
                    "does, which says where the frames are: is it truncated?"
                ) from None
        raise


def _listed(source: Any, name: str, max_source_pixels: int) -> VideoFile:
    with _opened(source, name) as container:
        stream, packets = _packets(container, name, max_source_pixels)
        kind, number, unit = container.format.name, stream.index, stream.time_base
        stated = stream.average_rate or stream.guessed_rate
    _check_end(source, name, kind, packets)
    shown = [packet for packet in packets if not packet.discarded]
    if not shown:
        raise ValueError(f"{name}: it has no frame")
    rate = _rate(shown, unit, stated)
    if rate is None:
        raise ValueError(f"{name}: its frame rate is not known; give it as frames")
    marks = [packet.mark for packet in shown]
    known = [mark for mark in marks if mark is not None]
    marks = sorted(known) if len(known) == len(marks) else marks
    return VideoFile(source, name, number, tuple(marks), unit, rate, False)


class _Packet(NamedTuple):
    """Of the demuxer: when its frame is shown and for how long, in units of the stream."""

    mark: int | None
    duration: int
    incomplete: bool
    discarded: bool  # by the container's edit list


@contextlib.contextmanager
def _opened(source: Any, name: str) -> Iterator[Any]:
    import av

    if hasattr(source, "seek"):
        source.seek(0)
    try:
        with av.open(source) as container:
            yield container
    except av.FFmpegError as error:
        raise ValueError(f"{name}: not a video that can be read ({error})") from None


def _bytes_of(source: Any) -> contextlib.AbstractContextManager[Any]:
    return open(source, "rb") if isinstance(source, str) else contextlib.nullcontext(source)


def _packets(container: Any, name: str, max_source_pixels: int) -> tuple[Any, list[_Packet]]:
    """Returns the video's stream and its packets: no cover picture, nor another still one."""
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        only = ", only a cover picture" if container.streams.video else ""
        raise ValueError(f"{name}: it has no video stream{only}")
    packets: dict[int, list[_Packet]] = {stream.index: [] for stream in streams}
    for packet in container.demux(streams):
        if packet.size:  # what ends a stream has none
            found = _Packet(packet.pts, packet.duration or 0, packet.is_corrupt, packet.is_discard)
            packets[packet.stream_index].append(found)
    best = container.streams.best("video")
    streams.sort(key=lambda stream: (len(packets[stream.index]) < 2, stream is not best))
    stream = streams[0]
    if stream.codec_context is None:
        raise ValueError(f"{name}: not a video that can be read (no decoder for its stream)")
    if stream.width * stream.height > max_source_pixels:
        raise ValueError(
            f"{name}: frames of {stream.width} x {stream.height} pixels are over the limit of "
            f"{max_source_pixels:,} pixels"
        )
    return stream, packets[stream.index]


def _is_cover(stream: Any) -> bool:
    disposition = getattr(stream, "disposition", None)  # PyAV 14.0 has none
    return bool(getattr(disposition, "value", 0) & _COVER)


def _check_end(source: Any, name: str, container: str, packets: list[_Packet]) -> None:
    """Checks that the file does not end inside a packet, by FFmpeg's marks or its own bytes."""
    inside = any(packet.incomplete for packet in packets[-_LAST:])
    if not inside:
        with _bytes_of(source) as file:
            inside = ends_inside_packet(file, container)
    if inside:
        raise ValueError(
            f"{name}: the file ends inside a frame, after {max(0, len(packets) - 1)} whole ones: "
            "is it truncated?"
        )


def _rate(shown: list[_Packet], unit: Fraction, stated: Fraction | None) -> float | None:
    """Returns frames per second: the header's, unless the frames' own times say otherwise."""
    marks = [packet.mark for packet in shown if packet.mark is not None]
    durations = collections.Counter(packet.duration for packet in shown)
    found = None
    if len(marks) > 1 and max(marks) > min(marks):
        last = max((packet.mark, packet.duration) for packet in shown if packet.mark is not None)[1]
        last = (
            last or durations.most_common(1)[0][0] or (max(marks) - min(marks)) / (len(marks) - 1)
        )
        found = len(marks) / float((max(marks) - min(marks) + last) * unit)
    if stated and (found is None or math.isclose(found, stated, rel_tol=_RATE_TOLERANCE)):
        return float(stated)
    return found


def _joined(marks: Sequence[int | None]) -> list[int] | None:
    """Returns when frames are shown, in their order, of recordings that were joined each a frame
    behind the one before; None where a container does not say, or too often goes back."""
    known = [mark for mark in marks if mark is not None]
    steps = [after - before for before, after in itertools.pairwise(known)]
    back = sum(step < 0 for step in steps)
    if len(known) < len(marks) or back * _LONG > len(known):
        return None
    frame = statistics.median_low([step for step in steps if step > 0] or [1])
    return list(
        itertools.accumulate((frame if step < 0 else step for step in steps), initial=known[0])
    )


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    """Yields the frames as they are shown; a packet that can't be decoded costs its frame."""
    import av

    for packet in container.demux(stream):
        # What ends the stream brings the frames still held back; each can be a damaged one.
        for _ in range(1 if packet.size else _HELD_BACK):
            try:
                frames = packet.decode()
            except av.EOFError:
                break
            except av.FFmpegError:
                continue
            yield from (frame for frame in frames if not frame.is_corrupt)


def _upright(frame: Any, aspect: float) -> Frame:
    """Turns a frame as its display matrix says (ISO/IEC 14496-12, 8.3.2), as players do."""
    image, data = frame.to_image(), frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return Frame(image, aspect)
    a, b, _, c, d = struct.unpack("=9i", bytes(data))[:5]
    turned = abs(a) + abs(d) < abs(b) + abs(c)
    a, b, c, d = (0, b, c, 0) if turned else (a, 0, 0, d)
    how = _SHOWN.get(tuple((value > 0) - (value < 0) for value in (a, b, c, d)))
    image = image if how is None else image.transpose(how)
    return Frame(image, 1 / aspect if turned else aspect)
