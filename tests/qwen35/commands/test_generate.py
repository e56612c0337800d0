"""`qwen35 generate`: messages; pictures as a process, on one device and on four."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

import qwen35
from qwen35.commands import cli

DEMO = Path(__file__).resolve().parents[3] / "demo"
PROMPT = "What is in them?"
STEPS = 32


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "qwen35", "generate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two images of sizes that are not resized, and a video."""
    av = pytest.importorskip("av")
    directory = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (64, 96, 3)), ("b.png", (96, 64, 3))):
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(directory / name)
    with av.open(directory / "clip.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "bgr0"
        for _ in range(9):
            frame = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return directory


@pytest.fixture(scope="module")
def expected(multimodal, files):
    """What transformers says to the two images: token ids."""
    images = [Image.open(files / name) for name in ("a.png", "b.png")]
    parts = [{"type": "image", "image": image} for image in images]
    inputs = multimodal.processor.apply_chat_template(
        [[{"role": "user", "content": [*parts, {"type": "text", "text": PROMPT}]}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        out = multimodal.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    said = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(said) == STEPS
    return said


def look(multimodal, files, *more):
    result = run(
        *("--model", multimodal.directory, "--image", files / "a.png", "--image", files / "b.png"),
        *("--prompt", PROMPT, "--max-new-tokens", STEPS, "--json", *more),
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["tokens"]


def test_two_images(multimodal, files, expected):
    assert look(multimodal, files, "--device", "cpu") == expected


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 4])
def test_compiled_and_on_four_devices(multimodal, files, expected, tp):
    assert look(multimodal, files, "--tp", tp) == expected


def test_a_video_alone(multimodal, files):
    result = run(
        *("--model", multimodal.directory, "--video", files / "clip.mkv", "--prompt", ""),
        *("--max-new-tokens", 3, "--device", "cpu", "--json"),
    )
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["tokens"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "no.png"], "message 0, part 0 (image): no.png: no such image file"),
        (["--image", __file__], "not a picture that Pillow can read"),
        (["--video", __file__], "not a video that can be read"),
    ],
)
def test_a_bad_picture_is_one_line(multimodal, capfd, arguments, message):
    """And no weights are read for it."""
    common = ["generate", "--model", str(multimodal.directory), "--prompt", "?", "--device", "cpu"]
    with mock.patch("qwen35.load", side_effect=AssertionError):
        assert cli.main([*common, *arguments]) == 2
    out, error = capfd.readouterr()
    [line] = error.strip().splitlines()
    assert out == ""
    assert line.startswith("qwen35: error: ") and message in line


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (64, 64)), "damaged or truncated"),
        (Image.new("1", (12000, 12000)), "12000 x 12000 is 144,000,000 pixels, over the limit"),
        (Image.new("1", (8, 4000)), "times"),
        (None, "no such image file"),
    ],
    ids=["truncated", "bomb", "sliver", "directory"],
)
def test_a_bad_picture_file_is_one_line(multimodal, tmp_path, capfd, picture, message):
    file = tmp_path / "bad.png"
    if picture is None:
        file.mkdir()
    else:
        picture.save(file)
    if "truncated" in message:
        file.write_bytes(file.read_bytes()[:-40])
    test_a_bad_picture_is_one_line(multimodal, capfd, ["--image", str(file)], message)


def test_a_place_without_a_picture_is_one_line(multimodal, capfd):
    """Though the command reads no tower where it is given no picture."""
    common = ["generate", "--model", str(multimodal.directory), "--device", "cpu"]
    assert cli.main([*common, "--prompt", "See <|image_pad|>?", "--max-new-tokens", "1"]) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert "qwen35: error: prompt 0 has 1 places for images or videos" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "template"),
    [
        (["--chat"], {}),
        (["--chat", "--no-thinking"], {"enable_thinking": False}),
        (["--chat", "--template-arg", "enable_thinking=false"], {"enable_thinking": False}),
        (
            ["--chat", "--reasoning-effort", "low", "--template-arg", 'more={"a": [1]}'],
            {"reasoning_effort": "low", "more": {"a": [1]}},
        ),
        (["--chat", "--template-arg", "reasoning_effort=x-high"], {"reasoning_effort": "x-high"}),
        (["--chat", "--stop", "Tok", "--no-thinking"], {"enable_thinking": False}),
    ],
)
def test_a_message_is_answered_as_transformers_renders_it(tmp_path, capsys, options, template):
    """With a template that shows what reaches it, in front of the chat."""
    for file in DEMO.iterdir():
        (tmp_path / file.name).symlink_to(file)
    template_file = tmp_path / "chat_template.jinja"
    source = template_file.read_text()
    template_file.unlink()
    template_file.write_text("{{ reasoning_effort }}{{ more | default(0) | tojson }}" + source)
    question, system = "What is the capital of Japan?", "You are brief."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    ids = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **template
    )
    params, tokenizer = qwen35.load(tmp_path), qwen35.Tokenizer.from_pretrained(tmp_path)
    [wanted] = qwen35.generate(params, tokenizer, ids, max_new_tokens=24)
    text, stop = wanted.text, "Tok" if "--stop" in options else "\0"
    arguments = ["--model", str(tmp_path), "--device", "cpu", "--prompt", question]
    arguments += ["--system", system, "--max-new-tokens", "24", *options]
    assert cli.main(["generate", *arguments]) == 0
    assert capsys.readouterr().out == text.partition(stop)[0] + "\n"
