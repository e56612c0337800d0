"""`Processor` against transformers' `Qwen3VLProcessor`, the one that Qwen3.5 uses.

Token ids, grids, `smart_resize` and positions must be equal. Patches are equal where nothing is
resized. Where something is, ours comes from Pillow: equal to transformers' Pillow processor to
the rounding of the normalisation, and within one grey level (of 255) of its torchvision one. Both
round to 8 bits between the two axes, with fixed-point weights of other precision; where one axis
is stretched and the other shrunk, as of slivers, that comes to three levels at single pixels.
"""

import base64
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen3_vl import video_processing_qwen3_vl as hf_video
from transformers.video_utils import VideoMetadata

import qwen35
from qwen35.prompts import images, video
from qwen35.prompts.settings import PatchSettings, VideoSettings

GREY = 2 / 255  # one grey level, after (x - 0.5) / 0.5
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def processor(multimodal):
    return qwen35.Processor.from_pretrained(multimodal.directory)


def picture(width, height, seed=0, mode="RGB"):
    """Smooth colours with edges and noise: resampling has something to get wrong."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c) + seed) + np.cos(y / (5 - c)) for c in range(3)]
    pixels = 127 + 50 * np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
    pixels[height // 3 :, width // 2 :] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def clip(frames, width, height):
    return [picture(width, height, seed) for seed in range(frames)]


def theirs(multimodal, messages, **processor_kwargs):
    """transformers' inputs for messages that it can read itself."""
    return multimodal.processor.apply_chat_template(
        [messages],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs=processor_kwargs,
    )


def assert_same_prompt(multimodal, ours, expected):
    """Ids, grids in each kind's order, and positions."""
    assert torch.equal(ours.tokens, expected["input_ids"])
    grids = [tuple(grid) for grid in ours.images.grid]
    both = [
        tuple(grid)
        for name in ("image_grid_thw", "video_grid_thw")
        for grid in expected.get(name, torch.zeros(0, 3)).tolist()
    ]
    assert sorted(grids) == sorted(both)
    positions, _ = multimodal.model.model.get_rope_index(
        expected["input_ids"],
        expected["mm_token_type_ids"],
        expected.get("image_grid_thw"),
        expected.get("video_grid_thw"),
    )
    assert torch.equal(ours.positions, positions)
    places = torch.isin(
        ours.tokens[0], torch.tensor([multimodal.ids["image"], multimodal.ids["video"]])
    )
    assert torch.equal(ours.images.index, places.nonzero()[:, 0])
    assert len(ours.images.patches) == 4 * len(ours.images.index)


def user(*parts):
    return {"role": "user", "content": list(parts)}


def words(text):
    return {"type": "text", "text": text}


CHATS = {
    "text": [user(words("What is the capital of France?"))],
    "string": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}],
    "image_first": [user({"type": "image", "image": picture(96, 64)}, words("What is this?"))],
    "between_words": [
        user(words("Look: "), {"type": "image", "image": picture(64, 128)}, words(" and speak"))
    ],
    "only_an_image": [user({"type": "image", "image": picture(64, 64)})],
    "back_to_back": [
        user(
            {"type": "image", "image": picture(64, 96)},
            {"type": "image", "image": picture(160, 64, 1)},
            words("Which is wider?"),
        )
    ],
    "several_turns": [
        {"role": "system", "content": [words("You see.")]},
        user({"type": "image", "image": picture(96, 96)}, words("First.")),
        {"role": "assistant", "content": "A circle."},
        user(words("Second: "), {"type": "image", "image": picture(64, 64, 2)}),
    ],
}


@pytest.mark.parametrize("name", CHATS)
def test_chats_with_images(multimodal, processor, name):
    """Sizes that need no resizing: patches are equal bit for bit."""
    ours = processor(CHATS[name])
    expected = theirs(multimodal, CHATS[name])
    assert_same_prompt(multimodal, ours, expected)
    assert torch.equal(ours.images.patches, expected.get("pixel_values", torch.zeros(0, 1536)))


@pytest.mark.parametrize(
    ("width", "height", "levels"),
    [
        (97, 65, 1),
        (1, 1, 1),
        (640, 480, 1),
        (161, 159, 1),
        (40, 30, 1),
        (33, 900, 3),
        (7, 1000, 3),
        (200, 3, 3),
    ],
)
def test_resized_patches(multimodal, processor, width, height, levels):
    chat = [user({"type": "image", "image": picture(width, height)}, words("?"))]
    ours, expected = processor(chat), theirs(multimodal, chat)
    assert_same_prompt(multimodal, ours, expected)
    change = (ours.images.patches - expected["pixel_values"]).abs()
    assert change.max() <= levels * GREY + ROUNDING
    assert change.mean() < GREY / 4
    settings = json.loads((multimodal.directory / "preprocessor_config.json").read_text())
    pillow = Qwen2VLImageProcessorPil(**settings)(picture(width, height), return_tensors="pt")
    assert (ours.images.patches - pillow["pixel_values"]).abs().max() <= ROUNDING


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "CMYK", "1"])
def test_colours(processor, multimodal, mode):
    """transformers lays transparency on white too."""
    image = picture(64, 96).convert(mode)
    if "A" in mode:
        image.putalpha(picture(64, 96, 1, "L"))
    chat = [user({"type": "image", "image": image})]
    assert torch.equal(processor(chat).images.patches, theirs(multimodal, chat)["pixel_values"])


def test_smart_resize():
    """On 1,000 random sizes, among them tiny, huge and long ones, at several factors."""
    draw = random.Random(0)
    for _ in range(1000):
        height, width = (int(10 ** draw.uniform(0, 4.3)) for _ in range(2))
        factor = draw.choice([28, 32])
        low = draw.choice([56 * 56, 65536])
        limits = dict(factor=factor, min_pixels=low, max_pixels=low * draw.choice([4, 256]))
        try:
            expected = smart_resize(height, width, **limits)
        except ValueError:
            with pytest.raises(ValueError, match="200 times"):
                images.smart_resize(height, width, **limits)
        else:
            assert images.smart_resize(height, width, **limits) == expected


def test_video_sizes_and_sampling(multimodal, processor):
    """On random lengths, rates and sizes, with and without a limit per frame."""
    draw = random.Random(1)
    hf = multimodal.processor.video_processor
    for _ in range(300):
        frames = draw.randint(2, 60)
        height, width = (int(10 ** draw.uniform(0.3, 3.5)) for _ in range(2))
        cap = draw.random() < 0.5
        settings = VideoSettings.from_dict(
            {**hf.to_dict(), "cap_pixels_per_frame": cap, "max_video_tokens": 9}
        )
        budget = settings.max_pixels
        if cap:
            share = max(min(9 * 32 * 32, budget // frames), int(settings.min_pixels * 1.05))
            budget = share * frames
        try:
            expected = hf_video.smart_resize(
                frames, height, width, 2, 32, settings.min_pixels, budget
            )
        except ValueError:
            with pytest.raises(ValueError, match="200 times"):
                video._size(frames, height, width, settings)
        else:
            assert video._size(frames, height, width, settings) == expected
        total, rate = draw.randint(1, 5000), draw.choice([1, 2, 12.5, 24, 30000 / 1001, 120])
        metadata = VideoMetadata(total_num_frames=total, fps=rate)
        assert video.sample(total, rate, settings) == hf.sample_frames(metadata).tolist()


def their_video(multimodal, parts, frames, fps, indices):
    """transformers' inputs for a chat with one video, given as sampled frames."""
    text = multimodal.processor.apply_chat_template([user(*parts)], add_generation_prompt=True)
    metadata = {"fps": fps, "total_num_frames": 10**6, "frames_indices": indices}
    return multimodal.processor(
        text=[text],
        images=[part["image"] for part in parts if part["type"] == "image"] or None,
        videos=[np.stack([np.asarray(frame) for frame in frames])],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )


@pytest.mark.parametrize(("count", "width", "height"), [(4, 64, 96), (5, 96, 64), (2, 32, 32)])
def test_video_of_frames(multimodal, processor, count, width, height):
    """Timestamps are given; an odd last frame is repeated. Nothing is resized."""
    frames = clip(count, width, height)
    indices = [0, 7, 12, 19, 31][:count]
    part = {"type": "video", "video": frames, "timestamps": [index / 24 for index in indices]}
    parts = [words("Watch "), part, words(" again")]
    ours = processor([user(*parts)])
    expected = their_video(multimodal, parts, frames, 24, indices)
    assert_same_prompt(multimodal, ours, expected)
    assert torch.equal(ours.images.patches, expected["pixel_values_videos"])


def test_resized_video_between_images(multimodal, processor):
    """Patches stand in the order of the places, whatever the kind."""
    first, last = picture(64, 64), picture(96, 64, 5)
    frames = clip(7, 150, 110)
    part = {"type": "video", "video": np.stack([np.asarray(f) for f in frames]), "fps": 2}
    parts = [{"type": "image", "image": first}, part, {"type": "image", "image": last}]
    ours = processor([user(*parts)])
    expected = their_video(multimodal, parts, frames, 2, list(range(7)))
    assert_same_prompt(multimodal, ours, expected)
    assert [grid[0] for grid in ours.images.grid] == [1, 4, 1]
    pixels, (one, clips, two) = ours.images.patches, map(np.prod, ours.images.grid)
    assert torch.equal(pixels[:one], expected["pixel_values"][:one])
    assert torch.equal(pixels[-two:], expected["pixel_values"][one:])
    change = pixels[one : one + clips] - expected["pixel_values_videos"]
    assert change.abs().max() <= GREY + ROUNDING


def test_videos_without_the_outer_pair(multimodal, processor):
    """`wrap_videos=False`: the frames' own pairs replace the template's, as before 5.12."""
    part = {"type": "video", "video": clip(4, 64, 64), "timestamps": [0, 0.5, 1, 1.5]}
    inner = qwen35.Processor(
        processor.tokenizer, processor.config, processor.images, processor.videos, wrap_videos=False
    )
    start, end = "<|vision_start|>", "<|vision_end|>"
    frame = f"{start}<|video_pad|>{end}"
    wanted = f"<0.2 seconds>{frame}<1.2 seconds>{frame}"
    assert f"user\n{wanted}<|im_end|>" in inner([user(part)]).text
    assert f"user\n{start}{wanted}{end}<|im_end|>" in processor([user(part)]).text


def test_video_file(multimodal, processor, tmp_path):
    """Decoded by PyAV in both, sampled at the processor's rate, with the file's own times."""
    av = pytest.importorskip("av")
    file = tmp_path / "clip.mkv"
    with av.open(file, "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "bgr0"
        for frame in clip(33, 64, 96):
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    taken = video.sample(33, 10, processor.videos)
    assert len(taken) == 6
    frames = [clip(33, 64, 96)[index] for index in taken]
    parts = [{"type": "video", "video": file}, words("What happens?")]
    expected = their_video(multimodal, parts, frames, 10, taken)
    data = file.read_bytes()
    lines = base64.encodebytes(data).decode()
    sources = [file, str(file), file.as_uri(), file.open("rb"), data, bytearray(data)]
    sources.append(memoryview(data))
    given = [{"type": "video", "video": source} for source in sources]
    given.append({"type": "video", "base64": lines})
    url = f"data:video/x-matroska;base64,{lines}"
    given.append({"type": "video_url", "video_url": {"url": url}})
    for part in given:
        ours = processor([user(part, words("What happens?"))])
        assert_same_prompt(multimodal, ours, expected)
        change = ours.images.patches - expected["pixel_values_videos"]
        assert change.abs().max() <= GREY + ROUNDING


def test_template_variables(multimodal, processor):
    chat = CHATS["image_first"]
    ended = processor(chat, add_generation_prompt=False)
    assert ended.text.endswith("<|im_end|>\n")
    silent = processor(chat, enable_thinking=False)
    assert silent.text.endswith("<think>\n\n</think>\n\n")
    assert ended.tokens.shape[1] < processor(chat).tokens.shape[1] < silent.tokens.shape[1]


def test_files_of_transformers_5(multimodal, processor, tmp_path):
    """`save_pretrained` puts all in one processor_config.json; it reads as the published files."""
    multimodal.processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((multimodal.directory / "config.json").read_text())
    assert (tmp_path / "processor_config.json").is_file()
    assert not (tmp_path / "preprocessor_config.json").exists()
    again = qwen35.Processor.from_pretrained(tmp_path)
    assert (again.images, again.videos) == (processor.images, processor.videos)
    hf = AutoProcessor.from_pretrained(multimodal.directory)
    assert hf.image_processor.size.longest_edge == processor.images.max_pixels
    assert hf.video_processor.size.longest_edge == processor.videos.max_pixels
    chat = CHATS["back_to_back"]
    assert torch.equal(again(chat).images.patches, processor(chat).images.patches)


def test_older_names_of_the_limits(multimodal):
    """`min_pixels` and `max_pixels` come before `size`, as in transformers."""
    content = json.loads((multimodal.directory / "preprocessor_config.json").read_text())
    content |= {"min_pixels": 3 * 64 * 64, "max_pixels": 9 * 64 * 64}
    settings = PatchSettings.from_dict(content)
    hf = Qwen2VLImageProcessorPil(**content)
    for size in ((40, 30), (150, 160), (500, 400)):
        _, grid = images.image_patches(picture(*size), settings)
        assert [list(grid)] == hf(picture(*size))["image_grid_thw"].tolist()


def test_embeds_stand_at_their_places(processor):
    prompt = processor(CHATS["several_turns"])
    count = len(prompt.images.index)
    embeds = prompt.embeds(torch.arange(1.0, count + 1)[:, None].repeat(1, 3))
    assert embeds.shape == (1, prompt.tokens.shape[1], 3)
    assert embeds[0, prompt.images.index, 1].tolist() == list(range(1, count + 1))
    assert embeds.count_nonzero() == 3 * count
    with pytest.raises(ValueError, match=f"{count - 1} image tokens for {count} places"):
        prompt.embeds(torch.zeros(count - 1, 3))
