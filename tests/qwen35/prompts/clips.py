"""Video files to read: frames that tell which they are, in any container, whole and damaged."""

import struct
from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT = 64, 96
_STEP = 3  # grey levels from one frame to the next


def frames(count, width=WIDTH, height=HEIGHT):
    """Arrays [H, W, 3]: four colours in the corners, and the frame's number as a grey middle."""
    for number in range(count):
        array = np.zeros((height, width, 3), np.uint8)
        array[: height // 2, : width // 2] = (220, 30, 30)
        array[: height // 2, width // 2 :] = (30, 220, 30)
        array[height // 2 :, : width // 2] = (30, 30, 220)
        array[height // 2 :, width // 2 :] = (220, 220, 30)
        array[height // 4 : -height // 4, width // 4 : -width // 4] = 16 + _STEP * number % 224
        yield array


def numbers(patches, grid):
    """Which frame each of a video's is, told from the grey middle of its patches (no resizing)."""
    t, rows, columns = grid
    cells = patches.view(t, rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)
    planes = cells.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(2 * t, 3, 16 * rows, 16 * columns)
    middle = planes[..., 8 * rows, 8 * columns].mean(1)
    return (((middle * 127.5 + 127.5) - 16) / _STEP).round().int().tolist()


def write(path, codec="libx264", *, count=60, rate=30, marks=None, gop=12, options=None, **extra):
    """Writes a clip; `marks`: when each frame is shown, in 1 / rate seconds."""
    settings = {"libx264": {"qp": "1", "bf": "2"}, "mpeg4": {}}.get(codec, {})
    formats = {"ffv1": "bgr0", "png": "rgb24", "mjpeg": "yuvj444p", "libx264": "yuv444p"}
    with av.open(path, "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=settings)
        stream.width, stream.height = extra.get("size", (WIDTH, HEIGHT))
        stream.pix_fmt = formats.get(codec, "yuv420p")
        stream.codec_context.gop_size = gop
        if "aspect" in extra:
            stream.codec_context.sample_aspect_ratio = extra["aspect"]
        for number, array in enumerate(extra.get("arrays") or frames(count)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if marks is not None:
                frame.pts, frame.time_base = marks[number], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def packets(path):
    """Where the video's packets stand in the file: (start, size) in the file's order."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        return [(p.pos, p.size) for p in container.demux(stream) if p.size]


def cut_by_copy(source, path, first, hidden):
    """Copies the packets from key frame `first` on, the first `hidden` frames before time 0: the
    container then has an edit list, as phones and FFmpeg's -c copy write it."""
    with av.open(source) as whole, av.open(path, "w") as container:
        old = whole.streams.video[0]
        new = container.add_stream_from_template(old)
        frame = round(1 / old.average_rate / old.time_base)
        for packet in whole.demux(old):
            if packet.size and packet.dts is not None and packet.pts >= first * frame:
                packet.pts -= (first + hidden) * frame
                packet.dts -= (first + hidden) * frame
                packet.stream = new
                container.mux(packet)
    return path


def set_matrix(path, a, b, c, d):
    """Puts a display matrix into the track header of an MP4 (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    # After the name: version and flags, two times, track, zero, duration, zeros, four shorts.
    place = data.index(b"tkhd") + 4 + 4 * 6 + 8 + 8
    old = struct.unpack(">9i", data[place : place + 36])
    assert old == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    values = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *values)
    path.write_bytes(data)


def blank(path, numbers):
    """Damages packets of a clip: zeros in place of all their bytes."""
    data, places = bytearray(path.read_bytes()), packets(path)
    for number in numbers:
        place, size = places[number]
        data[place : place + size] = bytes(size)
    path.write_bytes(data)
