"""Whether a video file ends inside a packet, in the containers of which FFmpeg does not tell."""

from __future__ import annotations

from typing import BinaryIO

# Matroska's elements that are looked into: Segment, Cluster, BlockGroup (RFC 9559, section 5).
_INTO = (0x18538067, 0x1F43B675, 0xA0)
_APART = 4  # bytes of the names of those that stand beside clusters, such as the index behind them
_VOID = 0xEC
_SYNC, _TS_SIZES = 0x47, (188, 192, 204)  # of MPEG-TS: bare, with a time, with a checksum
_FIRST_BOXES = (b"ftyp", b"wide", b"mdat", b"free", b"skip", b"moov")
_SEARCHED = 4096  # bytes at the start, for the first packet


def ends_inside_packet(file: BinaryIO, container: str) -> bool:
    """Tells whether a file ends before its last packet does.

    Args:
        file: seekable; its position is moved.
        container: FFmpeg's name of the format. Of others than Matroska (WebM) and MPEG-TS the
            answer is False: FFmpeg marks such a packet itself.
    """
    size = file.seek(0, 2)
    if container.startswith("matroska"):
        return _inside_element(file, size)
    return container == "mpegts" and _inside_ts_packet(file, size)


def _inside_element(file: BinaryIO, size: int) -> bool:
    """Walks over Matroska's elements: an identifier, a size, and the content (RFC 8794).

    What ends inside the index behind the clusters, or inside other elements that hold no frame,
    has all of its frames.
    """
    place, frame = 0, True
    while place < size:
        file.seek(place)
        head = file.read(12)
        key_length = _length(head)
        size_length = _length(head[key_length:])
        if max(key_length, size_length) > 8:
            return False  # what stands here is no element, whatever it is
        header = key_length + size_length
        frame = key_length < _APART and head[0] != _VOID
        if not size_length or header > len(head):
            return frame
        place += header
        if int.from_bytes(head[:key_length]) not in _INTO:
            bits = int.from_bytes(head[key_length:header])
            place += bits & ((1 << 7 * size_length) - 1)
    return frame and place > size


def _length(data: bytes) -> int:
    """Returns how many bytes a number of variable length takes, as the zeros say that its first
    one starts with; of no bytes 0."""
    return 9 - data[0].bit_length() if data else 0


def _inside_ts_packet(file: BinaryIO, size: int) -> bool:
    """Looks for the first packet, and whether a whole number of them follows."""
    file.seek(0)
    head = file.read(_SEARCHED)
    for start in range(len(head)):
        for step in _TS_SIZES:
            marks = head[start : start + 3 * step + 1 : step]
            if len(marks) > 1 and set(marks) == {_SYNC}:
                first = start - 4 if step == 192 and start >= 4 else start
                return (size - first) % step != 0
    return False


def ends_before_index(file: BinaryIO) -> bool:
    """Tells whether a file is an MP4 or MOV that ends before its index does: the box "moov" of
    ISO/IEC 14496-12, 4.2, which cameras write last.

    Args:
        file: seekable; its position is moved.
    """
    size, place = file.seek(0, 2), 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4]), head[4:8]
        if place == 0 and kind not in _FIRST_BOXES:
            return False
        if length == 1:  # a size of 64 bits
            length = int.from_bytes(head[8:16])
        place = place + length if length >= 8 else size  # 0: up to the end
        if kind == b"moov":
            return place > size
    return place > 0
