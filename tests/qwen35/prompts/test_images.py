"""Pictures of every kind become what a person sees, and bad ones a sentence.

The expected pixels are computed here from the values that were written, or are closed forms.
"""

import base64
import importlib.util
import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

import qwen35
from qwen35.prompts.images import MAX_SOURCE_PIXELS, read_image

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def processor(multimodal):
    return qwen35.Processor.from_pretrained(multimodal.directory)


def saved(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source):
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_every_way_to_give_a_picture(tmp_path):
    data = saved(Image.fromarray(COLOURS))
    file = tmp_path / "a picture.png"
    file.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    lines = base64.encodebytes(data).decode()  # as in e-mail: a line end every 76 characters
    urls = [url.replace(";base64", ";BASE64"), url.replace("data:", "DATA:"), f" {url}\n"]
    urls += ["data:image/png;base64," + lines, url.replace("+", "%2B").replace("=", "%3D")]
    assert "\n" in lines.strip()
    for way in urls:
        assert np.array_equal(pixels(way), COLOURS)
    with file.open("rb") as opened:
        ways = [file, str(file), file.as_uri(), url, data, io.BytesIO(data), opened, COLOURS]
        ways += [COLOURS.transpose(2, 0, 1), COLOURS.astype(np.int64), Image.fromarray(COLOURS)]
        ways += [COLOURS / 255, (COLOURS / 255).astype(np.float32), COLOURS.astype(np.uint16) * 257]
        for way in ways:
            assert np.array_equal(pixels(way), COLOURS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """A picture stored in each of the eight orientations looks the same."""
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: COLOURS.transpose(1, 0, 2)[::-1],
        7: COLOURS[::-1, ::-1].transpose(1, 0, 2),
        8: COLOURS.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(pixels(data), COLOURS)


def test_transparency_is_laid_on_white():
    """In RGBA, LA, a palette with a transparent colour, a greyscale with one, and arrays."""
    alpha = RNG.integers(0, 256, (6, 8, 1)).astype(np.uint8)
    share = alpha / 255.0
    for grey in (False, True):
        colours = COLOURS[..., :1] if grey else COLOURS
        image = Image.fromarray(np.concatenate([colours, alpha], -1), "LA" if grey else "RGBA")
        expected = np.broadcast_to(colours * share + 255 * (1 - share), COLOURS.shape)
        assert np.abs(pixels(saved(image)).astype(float) - expected).max() <= 1
    rgba = np.concatenate([COLOURS, alpha], -1)
    expected = COLOURS * share + 255 * (1 - share)
    assert np.abs(pixels(rgba).astype(float) - expected).max() <= 1
    assert np.abs(pixels(rgba / 255).astype(float) - expected).max() <= 1

    two = Image.new("P", (2, 1))
    two.putpalette([10, 20, 30, 200, 100, 50])
    two.putpixel((1, 0), 1)
    assert pixels(saved(two)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    see_through = saved(two, transparency=0)
    assert pixels(see_through).tolist() == [[[255] * 3, [200, 100, 50]]]
    assert pixels(saved(Image.new("L", (1, 1), 7), transparency=7)).tolist() == [[[255] * 3]]


def test_other_modes():
    grey = COLOURS[..., 0]
    three = np.repeat(grey[..., None], 3, 2)
    assert np.array_equal(pixels(saved(Image.fromarray(grey))), three)
    assert np.array_equal(pixels(grey), three)
    assert np.array_equal(pixels(grey[..., None]), three)
    assert np.array_equal(pixels(grey > 99), np.where(three > 99, 255, 0))
    assert np.array_equal(pixels(saved(Image.fromarray(grey > 99))), np.where(three > 99, 255, 0))
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    assert np.abs(pixels(saved(cmyk, "tiff")).astype(int) - COLOURS).max() <= 1
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    animation = saved(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert pixels(animation)[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bits():
    """0 is black and 65535 white: not the low byte, and not cut at 255."""
    values = RNG.integers(0, 65536, (6, 8)).astype(np.uint16)
    values[0, :3] = 0, 65535, 300
    expected = np.repeat(np.rint(values / 257)[..., None], 3, 2)
    for source in (values, Image.fromarray(values), saved(Image.fromarray(values))):
        assert np.array_equal(pixels(source), expected)
    big_endian = Image.frombytes("I;16B", (8, 6), values.astype(">u2").tobytes())
    wide = Image.fromarray(values.astype(np.int32))
    assert np.array_equal(pixels(big_endian), expected)
    assert np.array_equal(pixels(wide), expected)


def png_header(width, height):
    """The start of a PNG that claims a size; what follows would be its pixels."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    idat = b"IDAT" + zlib.compress(b"\0" * 100)
    rest = struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    return b"\x89PNG\r\n\x1a\n" + chunk + rest


WHOLE = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)))
JPEG = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)), "jpeg")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"not a picture at all", "bytes: not a picture"),
        (b"", "not a picture"),
        (WHOLE[:20], "not a picture|damaged or truncated"),
        (WHOLE[: len(WHOLE) // 2], "damaged or truncated"),
        (JPEG[: len(JPEG) // 2], "damaged or truncated"),
        (WHOLE[:200] + b"\0" * 99 + WHOLE[299:], "damaged or truncated"),
        (png_header(50000, 50000), "50000 x 50000|2500000000 pixels"),
        (png_header(12000, 12000), "12000 x 12000 is 144,000,000 pixels, over the limit"),
        (png_header(0, 10), "empty|not a picture"),
        ("/no/such/picture.png", "/no/such/picture.png: no such image file"),
        ("x" * 5000, "x{200}…: no such image file"),
        ("https://example.org/a.png", "nothing is downloaded"),
        ("data:image/png,abc", "must be data:image/...;base64"),
        ("data:image/png;base64,???", "is not base64"),
        ("data:image/png;base64,AAAA", "not a picture"),
        (None, "a NoneType is no picture"),
        ([1, 2], "a list is no picture"),
        (np.zeros((5, 5, 2)), r"shape \[5, 5, 2\] is no picture"),
        (np.zeros((0, 4, 3)), r"shape \[0, 4, 3\] has no pixels"),
        (np.zeros(5), r"shape \[5\] is no picture"),
        (np.full((4, 4), np.nan), "16 values that are NaN or infinite"),
        (np.full((4, 4), np.inf), "NaN or infinite"),
        (np.full((4, 4), 1.5), "float64 values go from 1.5 to 1.5; they must be from 0 to 1"),
        (np.full((4, 4), -1), "int64 values go from -1 to -1; they must be from 0 to 255"),
        (np.full((4, 4), 1j), "an array of complex128 is no picture"),
        (Image.new("F", (2, 2)), "mode F with values from 0.0 to 0.0 has no agreed meaning"),
        (Image.new("I", (2, 2), 70000), "mode I with values from 70000"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels is empty"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_bad_pictures(source, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a refusal is one sentence, not also a warning
        with pytest.raises(ValueError, match=message):
            read_image(source)


def test_the_limit_is_looked_up_before_decoding():
    """In the header: the file's data is not there at all."""
    assert 12000 * 12000 > MAX_SOURCE_PIXELS > 11000 * 11000
    with pytest.raises(ValueError, match="damaged or truncated"):
        read_image(png_header(11000, 11000))
    with pytest.raises(ValueError, match="over the limit of 47"):
        read_image(COLOURS, max_source_pixels=47)
    assert read_image(COLOURS, max_source_pixels=48).size == (8, 6)


def test_heic_pictures(monkeypatch):
    """As pillow-heif itself opens them, of which Pillow need not be told; or a hint at it."""
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    source = Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    pillow_heif.from_pillow(source).save(buffer, quality=90, exif=exif.tobytes())
    expected = pillow_heif.open_heif(buffer).to_pillow()
    found = read_image(buffer.getvalue())
    assert found.size == expected.size == (48, 64)
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pillow_heif" else find(name)
    )
    with pytest.raises(ValueError, match=r"a HEIC picture, which needs pillow-heif: pip install"):
        read_image(buffer.getvalue())


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


SMALL = Image.new("RGB", (64, 64))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        (["hello"], "message 0 must be a dict"),
        ([{"content": "hello"}], "message 0 must be a dict with role"),
        ([{"role": "user", "content": 5}], "message 0: content must be"),
        (user("hello"), "message 0, part 0: a dict with a type"),
        (user({"type": "sound", "sound": 1}), "type 'sound' is not known"),
        (user({"type": "text"}), "type 'text' is not known, or has no text"),
        (user({"type": "image"}), "exactly one of image, path, url, base64, image_url is needed"),
        (user({"type": "image", "image": SMALL, "path": "x"}), "exactly one of"),
        (user({"type": "image_url", "image_url": {}}), "a NoneType is no picture"),
        (user({"type": "image", "image": b"x"}), r"message 0, part 0 \(image\): .*not a picture"),
        (
            user({"type": "image", "image": np.zeros((1, 201))}),
            "201 x 1 pixels is too long: one side may be at most 200 times",
        ),
        (
            user({"type": "text", "text": "<|image_pad|>"}),
            "have 0 images, but the rendered chat has 1 places",
        ),
        (
            user({"type": "image", "image": SMALL}, {"type": "text", "text": "<|image_pad|>"}),
            "have 1 images, but the rendered chat has 2 places",
        ),
        (
            user({"type": "text", "text": "<|video_pad|>"}),
            "have 0 videos, but the rendered chat has 1 places",
        ),
        (user({"type": "video", "video": [SMALL] * 4}), "needs either fps or timestamps"),
        (
            user({"type": "video", "video": [SMALL] * 4, "fps": 2, "timestamps": [0] * 4}),
            "needs either fps or timestamps",
        ),
        (user({"type": "video", "video": [SMALL] * 4, "fps": 0}), "fps must be a positive"),
        (user({"type": "video", "video": [SMALL], "fps": 2}), "video of 1 frame is too short"),
        (user({"type": "video", "video": [], "fps": 2}), "a list is no video"),
        (
            user({"type": "video", "video": [SMALL] * 4, "timestamps": [0, 1, 2]}),
            "3 timestamps for 4 frames",
        ),
        (
            user({"type": "video", "video": [SMALL] * 2, "timestamps": [1, 0]}),
            "seconds from 0 that never go back",
        ),
        (
            user({"type": "video", "video": [SMALL] * 2, "timestamps": [0, float("nan")]}),
            "seconds from 0 that never go back",
        ),
        (
            user({"type": "video", "video": [SMALL, COLOURS], "fps": 2}),
            "frames differ in size: 64 x 64 and, at frame 1, 8 x 6",
        ),
        (
            user({"type": "video", "video": np.full((4, 64, 64, 3), np.nan), "fps": 2}),
            "frame 0: the picture has 12288 values that are NaN",
        ),
        (user({"type": "video", "video": "/no/clip.mp4"}), "/no/clip.mp4: no such video file"),
        (
            user({"type": "video", "video": "clip.mp4", "sample_fps": 2}),
            "a video file has its own",
        ),
        (user({"type": "video", "video": io.BytesIO(b"no")}), "not a video that can be read"),
    ],
)
def test_bad_messages(processor, messages, message):
    with pytest.raises(ValueError, match=message):
        processor(messages)


def test_template_that_makes_no_place(processor, monkeypatch):
    only_text = "{% for m in messages %}{{ m.content | string }}{% endfor %}"
    monkeypatch.setattr(processor.tokenizer.hf, "chat_template", only_text)
    with pytest.raises(ValueError, match="have 1 images, but the rendered chat has 0 places"):
        processor(user({"type": "image", "image": SMALL}))
    refusing = "{{ raise_exception('no user') }}"
    monkeypatch.setattr(processor.tokenizer.hf, "chat_template", refusing)
    with pytest.raises(ValueError, match="the chat template refuses the messages: no user"):
        processor(user({"type": "text", "text": "hello"}))
    monkeypatch.setattr(processor.tokenizer.hf, "chat_template", None)
    with pytest.raises(qwen35.CheckpointError, match="has no chat template"):
        processor(user({"type": "text", "text": "hello"}))


def test_video_file_without_pyav(processor, tmp_path, monkeypatch):
    file = tmp_path / "clip.mp4"
    file.write_bytes(b"anything")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "av" else find(name)
    )
    with pytest.raises(ValueError, match=r"needs PyAV: pip install 'qwen35\[video\]'"):
        processor(user({"type": "video", "video": str(file)}))


def test_damaged_video_files(processor, tmp_path):
    av = pytest.importorskip("av")
    file = tmp_path / "clip.mp4"
    with av.open(file, "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 64
        for seed in range(40):
            noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    data = file.read_bytes()
    whole = processor(user({"type": "video", "video": file}))
    assert whole.images.grid[0][0] == 4  # 4 seconds at 2 frames per second, in pairs
    for share, message in ((0.5, "truncated"), (0.01, "not a video that can be read")):
        file.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=message):
            processor(user({"type": "video", "video": file}))
    small = qwen35.Processor(
        processor.tokenizer, processor.config, processor.images, processor.videos, 64 * 63
    )
    file.write_bytes(data)
    with pytest.raises(ValueError, match="frames of 64 x 64 pixels are over the limit of 4,032"):
        small(user({"type": "video", "video": file}))
    sound = tmp_path / "sound.wav"
    with av.open(sound, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match="it has no video stream"):
        processor(user({"type": "video", "video": sound}))


@pytest.fixture
def copy(multimodal, tmp_path):
    """A checkpoint directory to damage, without weights."""
    for file in multimodal.directory.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 14}, "patch_size is 14, the vision tower's in config.json 16"),
        ({"merge_size": 4}, "merge_size is 4, the vision"),
        ({"image_mean": [0.5]}, "image_mean must be three numbers"),
        ({"image_mean": None}, "image_mean must be three numbers, not None"),
        ({"image_std": [0, 1, 1]}, "image_std must be three numbers"),
        ({"size": {"longest_edge": 100}}, "size must have shortest_edge and longest_edge"),
        ({"size": 5}, "size must be an object"),
        ({"size": {"longest_edge": 9, "shortest_edge": 10}}, "min_pixels 10 is above 9"),
        ({"do_normalize": False}, "do_normalize false is not supported"),
        ({"resample": 2}, "resample 2 is not supported"),
        ({"rescale_factor": 1}, "rescale_factor 1 is not supported"),
        ({"patch_size": 0}, "patch_size must be a positive integer, not 0"),
    ],
)
def test_bad_settings(copy, change, message):
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(qwen35.CheckpointError, match="preprocessor_config.json: " + message):
        qwen35.Processor.from_pretrained(copy)


def test_bad_directories(copy, multimodal):
    file = copy / "video_preprocessor_config.json"
    for change, message in (
        ({"fps": 0}, "fps must be"),
        ({"num_frames": 8}, "num_frames are not supported"),
        ({"min_frames": 0}, "min_frames must be"),
    ):
        content = json.loads((multimodal.directory / file.name).read_text())
        file.write_text(json.dumps(content | change))
        with pytest.raises(qwen35.CheckpointError, match=message):
            qwen35.Processor.from_pretrained(copy)
    file.unlink()
    still = qwen35.Processor.from_pretrained(copy)
    with pytest.raises(ValueError, match="no video_preprocessor_config"):
        still(user({"type": "video", "video": [SMALL] * 4, "fps": 2}))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"image_token_id": 5}))
    with pytest.raises(qwen35.CheckpointError, match=r"<\|image_pad\|> is \d+, config.json's .* 5"):
        qwen35.Processor.from_pretrained(copy)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "preprocessor_config.json").write_text("{")
    with pytest.raises(qwen35.CheckpointError, match="not readable as JSON"):
        qwen35.Processor.from_pretrained(copy)
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(qwen35.CheckpointError, match="no preprocessor_config"):
        qwen35.Processor.from_pretrained(copy)
    (copy / "config.json").write_text(json.dumps(config["text_config"]))
    with pytest.raises(qwen35.CheckpointError, match="a text-only checkpoint takes no pictures"):
        qwen35.Processor.from_pretrained(copy)
