"""Keys of a message's part, as qwen-vl-utils reads them: `qwen_vl_utils` itself is the oracle."""

import base64
import io
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qwen35
from qwen35.prompts import video
from qwen35.prompts.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # lets this file import the module beside it


@pytest.fixture(scope="module")
def processor(multimodal):
    return qwen35.Processor.from_pretrained(multimodal.directory)


@pytest.fixture(scope="module")
def utils():
    return pytest.importorskip("qwen_vl_utils.vision_process")


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def grid_of(processor, part):
    [grid] = processor(user(part)).images.grid
    return grid


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3)).astype(np.uint8))
SIZES = [
    {"min_pixels": 200 * 200, "max_pixels": 300 * 300},
    {"min_pixels": 32 * 32, "max_pixels": 70 * 70},
    {"resized_height": 280, "resized_width": 420},
    {"resized_height": 100, "resized_width": 50},
    {"resized_height": 5, "resized_width": 5},
]


@pytest.mark.parametrize("keys", SIZES, ids=str)
def test_sizes_of_images(processor, utils, keys):
    wanted = utils.fetch_image({"image": PICTURE, **keys}, image_patch_size=16)
    part = {"type": "image", "image": PICTURE, **keys}
    assert grid_of(processor, part) == (1, wanted.height // 16, wanted.width // 16)


@pytest.mark.parametrize("keys", [*SIZES, {**SIZES[0], "total_pixels": 300_000}], ids=str)
def test_sizes_of_videos(processor, utils, keys, monkeypatch):
    """Limits are of a frame, total_pixels of every second one together."""
    frames = [PICTURE] * 6
    stored = torch.zeros(6, 3, PICTURE.height, PICTURE.width), {}, 2.0
    monkeypatch.setattr(utils, "get_video_reader_backend", lambda: "stored")
    monkeypatch.setitem(utils.VIDEO_READER_BACKENDS, "stored", lambda part: stored)
    wanted = utils.fetch_video({"video": "a file", **keys}, image_patch_size=16)
    part = {"type": "video", "video": frames, "sample_fps": 2, **keys}
    # A frame may have a sixth of what the checkpoint's videos have.
    budget = 10 * processor.videos.max_pixels
    roomy = video.VideoSettings(**vars(processor.videos) | {"max_pixels": budget})
    wide = qwen35.Processor(processor.tokenizer, processor.config, processor.images, roomy)
    assert grid_of(wide, part) == (3, wanted.shape[2] // 16, wanted.shape[3] // 16)


@pytest.mark.parametrize("size", [(64, 64), (90, 40), (500, 300)])
def test_what_a_part_leaves_open_is_the_checkpoints(processor, size):
    """A largest size below the checkpoint's smallest lowers that."""
    image, own = Image.new("RGB", size), processor.images

    def pixels(**keys):
        _, rows, columns = grid_of(processor, {"type": "image", "image": image, **keys})
        return 256 * rows * columns

    assert 32 * 32 <= pixels(max_pixels=own.min_pixels // 2) <= own.min_pixels // 2
    assert own.min_pixels <= pixels(max_pixels=110 * 110) <= 110 * 110
    assert 120 * 120 <= pixels(min_pixels=120 * 120) <= own.max_pixels


def test_detail_as_in_openais_api(processor):
    """ "low" is 512 x 512 pixels at most; the others leave the checkpoint's limits."""
    buffer = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    images = type(processor.images)(**vars(processor.images) | {"max_pixels": 2**22})
    wide = qwen35.Processor(processor.tokenizer, processor.config, images)
    for detail, side in ((None, 64), ("auto", 64), ("high", 64), ("low", 32)):
        source = {"url": url} if detail is None else {"url": url, "detail": detail}
        part = {"type": "image_url", "image_url": source}
        assert grid_of(wide, part) == (1, side, side)
    part = {"type": "image_url", "image_url": {"url": url, "detail": "tiny"}}
    with pytest.raises(ValueError, match="detail must be auto, high or low, not 'tiny'"):
        wide(user(part))


def test_frames_of_a_file(processor, utils, tmp_path):
    """Which frames fps, nframes, video_start and video_end take, and their times in the file."""
    pytest.importorskip("av")
    import clips

    draw = random.Random(0)
    for rate, count in ((10, 57), (24, 60), (30, 31)):
        file = clips.write(tmp_path / f"{rate}.mp4", count=count, rate=rate)
        for _ in range(12):
            keys = {}
            if draw.random() < 0.6:
                keys["video_start"] = round(draw.uniform(0, count / rate / 2), 2)
            if draw.random() < 0.6:
                keys["video_end"] = round(draw.uniform(count / rate / 2 + 0.3, 2 * count / rate), 2)
            keys |= draw.choice([{"fps": draw.choice([0.5, 1, 3, 4.5])}, {"nframes": 7}])
            if "fps" in keys and draw.random() < 0.5:
                keys |= {"min_frames": 3, "max_frames": 7}
            start, end, within = utils.calculate_video_frame_range(keys, count, rate)
            number = utils.smart_nframes(keys, within, rate)
            taken = np.linspace(start, end, number).round().astype(int).tolist()
            prompt = processor(user({"type": "video", "video": file, **keys}))
            [grid] = prompt.images.grid
            assert clips.numbers(prompt.images.patches, grid) == taken, keys
            times = re.findall(r"<([\d.]+) seconds>", prompt.text)
            pairs = zip(taken[::2], taken[1::2], strict=True)
            assert times == [f"{(a / rate + b / rate) / 2:.1f}" for a, b in pairs]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "text", "text": "a", "cache_control": {}}, "part 0 of type 'text' has 'cache_co"),
        ({"type": "image", "image": PICTURE, "nframes": 2}, "has 'nframes', which is not known"),
        ({"type": "image", "image": PICTURE, "maxpixels": 9}, "known are image, path, url, base64"),
        ({"type": "image", "image": PICTURE, "max_pixels": 0}, "max_pixels must be a positive int"),
        ({"type": "image", "image": PICTURE, "max_pixels": "9"}, "max_pixels must be a positive"),
        (
            {"type": "image", "image": PICTURE, "max_pixels": 5000, "min_pixels": 6000},
            "min_pixels 6000 is above max_pixels 5000",
        ),
        ({"type": "image", "image": PICTURE, "min_pixels": 10**9}, "is above max_pixels"),
        (
            {"type": "image", "image": PICTURE, "resized_width": 64},
            "resized_width is given alone: both sides",
        ),
        (
            {
                "type": "image",
                "image": PICTURE,
                "resized_width": 64,
                "resized_height": 64,
                "max_pixels": 9999,
            },
            "resized_height and resized_width say the size: max_pixels can't as well",
        ),
        (
            {"type": "image_url", "image_url": {"url": "x", "size": 1}},
            "image_url has 'size', which",
        ),
        ({"type": "video_url", "video_url": {"url": "x", "detail": "low"}}, "has 'detail', which"),
        ({"type": "video", "video": [PICTURE] * 4, "raw_fps": 2}, "has 'raw_fps', which is not kn"),
        (
            {"type": "video", "video": [PICTURE] * 4, "fps": 2, "sample_fps": 2},
            "either fps or timestamps",
        ),
        (
            {"type": "video", "video": [PICTURE] * 4, "sample_fps": 2, "nframes": 2},
            "give those with fps",
        ),
        (
            {"type": "video", "video": [PICTURE] * 4, "fps": 2, "nframes": 9},
            "nframes must be from 2 to the video's 4 frames, not 9",
        ),
        (
            {"type": "video", "video": [PICTURE] * 4, "fps": 2, "video_start": 1.4},
            "from second 1.4 to inf the video has 1 of its 4 frames, the last of which is at 1.5",
        ),
        (
            {"type": "video", "video": [PICTURE] * 4, "fps": 2, "video_end": "1"},
            "video_end must be",
        ),
        (
            {"type": "video", "video": [PICTURE] * 4, "fps": 2, "min_frames": 9, "max_frames": 8},
            "min_frames 9 is above max_frames 8",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_what_is_refused(processor, part, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        processor(user(part))


def test_keys_without_a_value_are_none(processor):
    """As data sets give them that have one column for each key."""
    part = {"type": "image", "image": PICTURE, "text": None, "nframes": None, "max_pixels": None}
    assert grid_of(processor, part) == grid_of(processor, {"type": "image", "image": PICTURE})


def test_every_way_to_name_a_picture(processor, tmp_path):
    """Hugging Face's, OpenAI's Chat Completions and Responses, and Qwen's, which has no type."""
    pytest.importorskip("av")
    import clips

    PICTURE.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    bare = base64.b64encode(buffer.getvalue()).decode()
    url, file = "data:image/png;base64," + bare, str(tmp_path / "a.png")
    wanted = processor(user({"type": "image", "image": PICTURE}, {"type": "text", "text": "a"}))
    text = {"type": "text", "text": "a"}
    for picture in (
        {"type": "image", "image": file},
        {"type": "image", "path": file},
        {"type": "image", "url": url},
        {"type": "image", "base64": bare},
        {"type": "image", "image_url": {"url": url}},
        {"type": "image", "image_url": url},
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url},
        {"type": "input_image", "image_url": url, "detail": "high"},
        {"type": "input_image", "image_url": url, "file_id": None},
        {"image": file},
        {"image_url": {"url": url}},
        {"image": file, "text": None, "video": None},
    ):
        for words in (text, {"text": "a"}, {"type": "input_text", "text": "a"}):
            found = processor(user(picture, words))
            assert found.text == wanted.text
            assert torch.equal(found.images.patches, wanted.images.patches)
    clip = str(clips.write(tmp_path / "a.mp4", count=8, rate=2))
    wanted = processor(user({"type": "video", "video": clip}))
    for part in (
        {"type": "video_url", "video_url": {"url": clip}},
        {"type": "video_url", "video_url": clip},
        {"type": "video", "video_url": {"url": clip}},
        {"video": clip},
        {"video_url": {"url": clip}},
    ):
        found = processor(user(part))
        assert found.text == wanted.text
        assert torch.equal(found.images.patches, wanted.images.patches)


def test_an_answer_of_the_responses_api_is_a_message(processor):
    """As that API returned it, with what it notes beside the text."""
    said = {"type": "output_text", "text": "Red.", "annotations": [], "logprobs": []}
    question = user({"type": "input_text", "text": "What colour?"})[0]
    messages = [question, {"role": "assistant", "content": [said]}]
    plain = [
        {"role": "user", "content": "What colour?"},
        {"role": "assistant", "content": "Red."},
    ]
    assert processor(messages).text == processor(plain).text
    words = Tokenizer(processor.tokenizer.hf)
    assert words.render(messages) == words.render(plain) == processor(plain).text
    noted = {**said, "annotations": [{"type": "url_citation"}]}
    with pytest.raises(ValueError, match="message 1, part 0 of type 'text' has 'annotations', wh"):
        words.render([question, {"role": "assistant", "content": [noted]}])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "input_image", "file_id": "file-1"}, "has 'file_id', which is not known there"),
        ({"type": "input_image", "image_url": "a.png", "detail": "tiny"}, "detail must be auto, "),
        ({"type": "input_image"}, "exactly one of image, path, url, base64, image_url"),
        ({"type": "input_audio", "input_audio": {}}, "type 'input_audio' is not known"),
        ({"type": "input_file", "file_id": "file-1"}, "type 'input_file' is not known"),
        ({"type": "input_text"}, "type 'text' is not known, or has no text"),
        ({"image": "a.png", "text": "a"}, "a dict with a type is needed"),
        ({"image": "a.png", "image_url": "a.png"}, "a dict with a type is needed"),
        ({"type": "image", "image": "a.png", "image_url": "a.png"}, "exactly one of image, path"),
        ({}, "a dict with a type is needed"),
    ],
    ids=str,
)
def test_other_forms_are_refused_by_name(processor, part, message):
    with pytest.raises(ValueError, match=message):
        processor(user(part))


def test_numbers_as_qwen_documents_them(processor, tmp_path):
    """Its page writes a rate as a text, and limits of pixels are products with 0.9."""
    frames = [PICTURE] * 4
    texts = [
        processor(user({"type": "video", "video": frames, "sample_fps": rate})).text
        for rate in (1, 1.0, "1", "1.0")
    ]
    assert len(set(texts)) == 1 and "<0.5 seconds>" in texts[0] and "<2.5 seconds>" in texts[0]
    with pytest.raises(ValueError, match="sample_fps must be a positive number, not 'one'"):
        processor(user({"type": "video", "video": frames, "sample_fps": "one"}))
    image = {"type": "image", "image": PICTURE}
    for key, limit in (("max_pixels", 7 * 32 * 32), ("min_pixels", 24 * 32 * 32)):
        same = grid_of(processor, {**image, key: limit})
        assert grid_of(processor, {**image, key: float(limit)}) == same
        inside = limit + 0.9 if key == "max_pixels" else limit - 0.9
        assert grid_of(processor, {**image, key: inside}) == same


def test_words_without_a_processor(multimodal):
    tokenizer = Tokenizer.from_pretrained(multimodal.directory)
    with pytest.raises(ValueError, match="message 0, part 0 of type 'text' has 'lang', which"):
        tokenizer.render(user({"type": "text", "text": "a", "lang": "de"}))
