"""Video files as phones, cameras and cutters write them. What is right is what FFmpeg decodes, held
in the way that the container says, at the times that it says."""

import contextlib
import io
import itertools
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import qwen35
from qwen35.prompts import video

av = pytest.importorskip("av")
sys.path.insert(0, str(Path(__file__).parent))  # lets this file import the module beside it

import clips  # noqa: E402


@pytest.fixture(scope="module")
def processor(multimodal):
    return qwen35.Processor.from_pretrained(multimodal.directory)


def read(processor, source, **keys):
    """A prompt with one video, the numbers of its frames and its times."""
    part = {"type": "video", "video": source, **keys}
    prompt = processor([{"role": "user", "content": [part]}])
    [grid] = prompt.images.grid
    times = [float(time) for time in re.findall(r"<([\d.]+) seconds>", prompt.text)]
    assert len(times) == grid[0]
    return clips.numbers(prompt.images.patches, grid), times


def decoded(path):
    """FFmpeg's frames: the grey middles and times of all."""
    with av.open(path) as container:
        found = [(f.to_ndarray(format="rgb24"), f.time) for f in container.decode(video=0)]
    return [round((float(a[48, 32].mean()) - 16) / 3) for a, _ in found], [t for _, t in found]


def middles(times):
    times = [*times, times[-1]] if len(times) % 2 else times
    return [float(f"{(a + b) / 2:.1f}") for a, b in zip(times[::2], times[1::2], strict=True)]


ORIENTATIONS = [
    m
    for m in itertools.product((-1, 0, 1), repeat=4)
    if abs(m[0] * m[3] - m[1] * m[2]) == 1 and sum(map(abs, m)) == 2
]


@pytest.mark.parametrize("matrix", ORIENTATIONS, ids=str)
def test_frames_are_upright(processor, tmp_path, matrix):
    """Pixel (p, q) is shown at (a p + c q, b p + d q), all eight ways of it."""
    a, b, c, d = matrix
    stored = list(clips.frames(4))
    q, p = np.mgrid[: clips.HEIGHT, : clips.WIDTH]
    x, y = a * p + c * q, b * p + d * q
    x, y = x - x.min(), y - y.min()
    shown = []
    for array in stored:
        turned = np.zeros((y.max() + 1, x.max() + 1, 3), np.uint8)
        turned[y, x] = array
        shown.append(turned)
    file = clips.write(tmp_path / "clip.mp4", arrays=stored, rate=2)
    clips.set_matrix(file, a, b, c, d)
    ours = video.read_video(file, processor.videos)
    expected = video.read_video(np.stack(shown), processor.videos, fps=2)
    assert ours.grid == expected.grid and ours.timestamps == expected.timestamps
    assert (ours.patches - expected.patches).abs().mean() < 4 / 127.5


def test_wide_pixels_are_shown_wide(processor, tmp_path):
    """Pixels twice as wide as high: 64 x 96 stored is 128 x 96 shown, and 96 x 128 turned."""
    file = clips.write(tmp_path / "clip.mp4", count=4, rate=2, aspect=Fraction(2))
    with av.open(file) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2
    assert video.read_video(file, processor.videos).grid == (2, 6, 8)
    clips.set_matrix(file, 0, 1, -1, 0)
    assert video.read_video(file, processor.videos).grid == (2, 8, 6)


def test_frames_before_an_edit_list_do_not_count(processor, tmp_path):
    source = clips.write(tmp_path / "whole.mp4", count=80, gop=20)
    file = clips.cut_by_copy(source, tmp_path / "cut.mp4", 20, 7)
    with av.open(file) as container:
        assert container.streams.video[0].frames == 60  # of which 7 are not to be shown
    shown, times = decoded(file)
    assert len(shown) == 53 and times[0] == 0
    taken = video.sample(len(shown), 30, processor.videos)
    numbers, found = read(processor, file)
    assert numbers[: len(taken)] == [shown[index] for index in taken]
    assert found == middles([times[index] for index in taken])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
def test_times_are_the_containers(processor, tmp_path, name):
    """A screen recording: ten frames in the first second, then one in five."""
    marks = [*range(0, 30, 3), *range(150, 1200, 150)]
    file = clips.write(tmp_path / name, count=len(marks), marks=marks)
    seconds = [mark / 30 for mark in marks]
    shown, times = decoded(file)
    assert shown == list(range(17))
    assert np.allclose([t - times[0] for t in times], seconds, atol=1e-3)
    numbers, found = read(processor, file)
    assert found == middles([seconds[number] for number in numbers])
    assert found[-1] > 30


def test_a_header_with_another_rate_does_not_thin_out(processor, tmp_path):
    """Matroska tells a nominal rate: a frame a second is no reason to take one in thirty."""
    file = clips.write(tmp_path / "a.mkv", count=12, marks=range(0, 360, 30))
    with av.open(file) as container:
        assert container.streams.video[0].average_rate == 30
    numbers, found = read(processor, file)
    assert numbers == list(range(12)) and found == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]


WHOLE = ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.ts", "a.avi", "a.flv", "a.m2ts"]
CODECS = {"a.webm": "libvpx", "a.avi": "mpeg4"}


@pytest.mark.parametrize("name", WHOLE)
def test_files_that_end_inside_a_frame(processor, tmp_path, name):
    """Cut in the middle of a packet, near the middle of the file and in its last packet."""
    start = {"movflags": "faststart"} if name in ("a.mp4", "a.mov") else {}
    file = clips.write(tmp_path / name, CODECS.get(name, "libx264"), options=start)
    data, places = file.read_bytes(), clips.packets(file)
    assert len(read(processor, file)[1]) == 2
    for number in (30, len(places) - 1):
        place, size = places[number]
        if name.endswith("ts"):  # it is the container's own packet that ends early
            place += 60
        file.write_bytes(data[: place + max(8, size // 2)])
        with pytest.raises(ValueError, match=r"ends inside a frame, after \d+ whole ones"):
            read(processor, file)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
def test_files_that_end_between_frames(processor, tmp_path, name):
    """A recording that was stopped: what is there is a video."""
    file = clips.write(tmp_path / name, count=60)
    place, _ = clips.packets(file)[40]
    if name == "a.mkv":  # the packet's element begins before its content
        place = file.read_bytes().rindex(b"\xa3", 0, place + 1)
    file.write_bytes(file.read_bytes()[:place])
    shown, _ = decoded(file)
    taken = video.sample(len(shown), 30, processor.videos)
    assert 35 < len(shown) <= 40
    assert read(processor, file)[0][: len(taken)] == [shown[index] for index in taken]


@pytest.mark.parametrize("damaged", [(30,), (0,), (59,), (10, 11, 12, 40)], ids=str)
def test_a_damaged_frame_costs_that_frame(processor, tmp_path, damaged):
    """Every frame for itself (PNG), so that all others can be decoded."""
    file = clips.write(tmp_path / "a.mov", "png")
    clips.blank(file, damaged)
    left = [number for number in range(60) if number not in damaged]
    taken = [left[index] for index in video.sample(len(left), 30, processor.videos)]
    numbers, found = read(processor, file)
    assert numbers[: len(taken)] == taken
    assert found == middles([number / 30 - left[0] / 30 for number in taken])


@pytest.mark.parametrize("number", [7, 30])
def test_a_damaged_frame_of_h264(processor, tmp_path, number):
    """Others are made of it: what FFmpeg makes of those is taken, at their own times."""
    file = clips.write(tmp_path / "a.mp4")
    clips.blank(file, [number])
    shown = []
    with av.open(file) as container:
        for packet in container.demux(video=0):
            with contextlib.suppress(av.InvalidDataError):
                shown += [frame.time for frame in packet.decode()]
    assert len(shown) == 59
    taken = [shown[index] for index in video.sample(59, 30, processor.videos)]
    assert read(processor, file)[1] == middles([time - shown[0] for time in taken])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_cover_picture_is_not_the_video(processor, tmp_path, name, first):
    source = clips.write(tmp_path / "video.mp4")
    cover = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
    file = tmp_path / name
    with av.open(source) as whole, av.open(file, "w") as container:
        old = whole.streams.video[0]
        new = None if first else container.add_stream_from_template(old)
        still = container.add_stream("mjpeg", rate=1)
        still.width, still.height, still.pix_fmt = 32, 32, "yuvj420p"
        new = new or container.add_stream_from_template(old)
        moving = []
        for packet in whole.demux(old):
            if packet.size:
                packet.stream = new
                moving.append(packet)
        for packet in [*still.encode(cover), *still.encode(), *moving]:
            container.mux(packet)
    with av.open(file) as container:
        assert len(container.streams.video) == 2
    assert read(processor, file) == read(processor, source)


def test_files_of_no_video(processor, tmp_path):
    file = clips.write(tmp_path / "a.mov", "png", count=20)
    clips.blank(file, range(20))
    with pytest.raises(ValueError, match="none of its 20 frames can be decoded"):
        read(processor, file)


@pytest.mark.parametrize(("name", "codec"), [("a.flac", "flac"), ("a.mp4", "aac")])
def test_a_song_with_a_cover_is_no_video(processor, tmp_path, name, codec):
    file = tmp_path / name
    with av.open(file, "w") as container:
        song = container.add_stream(codec, rate=44100)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        still = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(still), *cover.encode()])
        for number in range(4):
            sound = av.AudioFrame(song.format.name, "stereo", 1024)
            for plane in sound.planes:
                plane.update(bytes(plane.buffer_size))
            sound.rate, sound.pts = 44100, 1024 * number
            container.mux(song.encode(sound))
        container.mux(song.encode())
    with pytest.raises(ValueError, match="it has no video stream, only a cover picture"):
        read(processor, file)


@pytest.mark.parametrize("name", ["12:30:00.mp4", "rtmp:a.mp4", "concat:b.mp4", "pipe:0", "-a.mp4"])
def test_names_that_are_other_things_to_ffmpeg(processor, tmp_path, monkeypatch, name):
    """A file's name is a file's name, though FFmpeg takes what stands before a colon for a
    protocol."""
    clips.write(tmp_path / "b.mp4", count=8, rate=2, arrays=[*clips.frames(12)][4:])
    file = clips.write(tmp_path / "c.mp4", count=8, rate=2)
    (tmp_path / name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert read(processor, name) == read(processor, file)
    assert read(processor, name)[0][0] == 0


def test_a_matroska_that_ends_inside_its_index(processor, tmp_path):
    """What stands behind the frames is lost: the frames are all there."""
    file = clips.write(tmp_path / "a.mkv")
    data, whole = file.read_bytes(), read(processor, file)
    index = data.index(b"\x1c\x53\xbb\x6b", clips.packets(file)[-1][0])  # RFC 9559: Cues
    for end in (index, index + 2, index + 9, len(data) - 1):
        file.write_bytes(data[:end])
        assert read(processor, file) == whole
    file.write_bytes(data[: index - 1])
    with pytest.raises(ValueError, match="ends inside a frame"):
        read(processor, file)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_a_recording_without_its_index(processor, tmp_path, name):
    file = clips.write(tmp_path / name)
    data = file.read_bytes()
    for end in (len(data) // 2, data.index(b"moov") + 2, data.index(b"moov") + 60):
        for source in (file, io.BytesIO(data[:end])):
            file.write_bytes(data[:end])
            with pytest.raises(ValueError, match=r"ends before its index \(moov\) does"):
                read(processor, source)
    file.write_bytes(b"no video at all, but of some length")
    with pytest.raises(ValueError, match="not a video that can be read"):
        read(processor, file)


def test_recordings_that_were_joined(processor, tmp_path):
    """`cat a.ts b.ts`: times go back where the second begins, which goes on behind the first."""
    file = clips.write(tmp_path / "a.ts", count=30)
    file.write_bytes(file.read_bytes() * 2)
    shown, times = decoded(file)
    assert shown == [*range(30)] * 2 and times[30] < times[29]
    taken = video.sample(60, 30, processor.videos)
    numbers, found = read(processor, file)
    assert numbers[: len(taken)] == [shown[index] for index in taken]
    assert found == middles([index / 30 for index in taken])


def test_frames_that_change_their_size(processor, tmp_path):
    """As in calls: FFmpeg shows the later ones as large as the first."""
    parts = [
        clips.write(tmp_path / f"{width}.ts", count=4, rate=4, size=(width, height), arrays=arrays)
        for width, height, arrays in (
            (64, 96, [*clips.frames(4)]),
            (128, 192, [*clips.frames(8, 128, 192)][4:]),
        )
    ]
    file = tmp_path / "a.ts"
    file.write_bytes(b"".join(part.read_bytes() for part in parts))
    with av.open(file) as container:
        assert {frame.width for frame in container.decode(video=0)} == {64, 128}
    numbers, _ = read(processor, file, nframes=8)
    assert numbers == list(range(8))
