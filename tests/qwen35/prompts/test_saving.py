"""A directory that `save` makes with a tokenizer or a processor is whole, for us and for others."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLVideoProcessor

import qwen35
from qwen35.files.extras import copy_extras
from qwen35.prompts.settings import VideoSettings

DEMO = Path(__file__).resolve().parents[3] / "demo"
TEXT = "Grüße! <|im_start|>user\nहिन्दी 12 345<|im_end|>"
MESSAGES = [{"role": "user", "content": "Why?"}]


def test_a_tokenizer_goes_along(tmp_path):
    """Words, template and end tokens; the command runs on the directory."""
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    params = qwen35.load(DEMO)
    params = dataclasses.replace(
        params, config=dataclasses.replace(params.config, eos_token_id=None)
    )
    qwen35.save(params, tmp_path, tokenizer=tokenizer)
    again = qwen35.Tokenizer.from_pretrained(tmp_path)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.render(MESSAGES) == tokenizer.render(MESSAGES)
    assert set(again.end_token_ids) == set(tokenizer.end_token_ids) != set()
    assert AutoTokenizer.from_pretrained(tmp_path).encode(TEXT) == tokenizer.encode(TEXT)
    [one], [other] = (
        qwen35.generate(qwen35.load(path), which, "The capital of France is", max_new_tokens=16)
        for path, which in ((tmp_path, again), (DEMO, tokenizer))
    )
    assert one.tokens == other.tokens and one.finish_reason == "stop"


def test_several_templates_go_along(tmp_path):
    """transformers would write a folder of them, which can't be switched as a file is."""
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    both = {"default": tokenizer.hf.chat_template, "tool_use": "{{ messages }}"}
    tokenizer.hf.chat_template = both
    qwen35.save(qwen35.load(DEMO), tmp_path, tokenizer=tokenizer)
    again = qwen35.Tokenizer.from_pretrained(tmp_path)
    assert again.hf.chat_template == both
    assert again.render(MESSAGES) == qwen35.Tokenizer.from_pretrained(DEMO).render(MESSAGES)


@pytest.mark.parametrize("whole", [False, True])
def test_a_tokenizer_in_the_place_of_another_leaves_nothing_of_it(whole, tmp_path):
    """Its template too, where the new one has none."""
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").exists()
    (tmp_path / "notes.txt").write_text("stays")
    tokenizer.hf.chat_template = None
    if whole:
        qwen35.save(qwen35.load(DEMO), tmp_path, tokenizer=tokenizer)
    else:
        tokenizer.save_pretrained(tmp_path)
    with pytest.raises(qwen35.CheckpointError, match="no chat template"):
        qwen35.Tokenizer.from_pretrained(tmp_path).render(MESSAGES)
    assert (tmp_path / "notes.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_one_of_transformers_does_as_well(tmp_path):
    qwen35.save(qwen35.load(DEMO), tmp_path, tokenizer=AutoTokenizer.from_pretrained(DEMO))
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    assert qwen35.Tokenizer.from_pretrained(tmp_path).encode(TEXT) == tokenizer.encode(TEXT)


def test_a_processor_goes_along(multimodal, multimodal_params, tmp_path):
    """Its settings too: transformers makes the same patches of a picture with them."""
    processor = qwen35.Processor.from_pretrained(multimodal.directory)
    qwen35.save(multimodal_params, tmp_path, tokenizer=processor)
    again = qwen35.Processor.from_pretrained(tmp_path)
    assert (again.images, again.videos) == (processor.images, processor.videos)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 170, 3)).astype(np.uint8)
    patches = [
        Qwen2VLImageProcessor.from_pretrained(path)(Image.fromarray(pixels), return_tensors="np")
        for path in (multimodal.directory, tmp_path)
    ]
    assert (patches[0]["pixel_values"] == patches[1]["pixel_values"]).all()
    theirs = Qwen3VLVideoProcessor.from_pretrained(tmp_path)
    assert (theirs.fps, theirs.min_frames, theirs.max_frames) == (2.0, 4, 768)


@pytest.mark.parametrize("capped", [True, False])
def test_settings_of_videos_read_back(multimodal, capped):
    content = json.loads((multimodal.directory / "video_preprocessor_config.json").read_text())
    content |= {"fps": 3.0, "max_frames": 90, "cap_pixels_per_frame": capped}
    settings = VideoSettings.from_dict(content)
    assert (settings.max_frame_pixels is not None) is capped
    assert VideoSettings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize("how", ["save_pretrained", "save", "copied"])
def test_a_processor_in_the_place_of_another_leaves_nothing_of_it(how, tmp_path):
    """Neither the file of transformers 5, which would be read first, nor settings of videos."""
    directory, vision = tmp_path / "out", DEMO.parent / "demo_vision"
    theirs = qwen35.Processor.from_pretrained(vision)
    qwen35.save(qwen35.load(vision), directory, tokenizer=theirs)
    settings = {"image_processor": theirs.images.to_dict()}
    (directory / "processor_config.json").write_text(json.dumps(settings))
    assert qwen35.Processor.from_pretrained(directory).videos is not None
    larger = dataclasses.replace(theirs.images, max_pixels=theirs.images.max_pixels * 2)
    ours = dataclasses.replace(theirs, images=larger, videos=None)
    if how == "save":
        qwen35.save(qwen35.load(vision), directory, tokenizer=ours)
    elif how == "save_pretrained":
        ours.save_pretrained(directory)
    else:
        ours.save_pretrained(tmp_path / "source")
        copy_extras(tmp_path / "source", directory)
    again = qwen35.Processor.from_pretrained(directory)
    assert again.images == larger and again.videos is None
    qwen35.Tokenizer.from_pretrained(DEMO).save_pretrained(directory)
    assert (directory / "preprocessor_config.json").exists(), "a tokenizer's has nothing of those"
