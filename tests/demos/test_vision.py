"""The vision demo: what it says about pictures that it has never seen, here and in transformers.

Most pictures are drawn by the code below, which shares nothing with the trainer's: shapes are
inequalities, sampled sixteen times a pixel, so that edges are smooth as in a paint program.
"""

import functools
import importlib
import io
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen3_5ForConditionalGeneration

import qwen35

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo_vision"
SIZE_LIMIT = 8_000_000
SAMPLES = 4  # along each side of a pixel
NEW_TOKENS = 32


class Drawing(NamedTuple):
    """A picture as a person would draw it: shapes are (kind, centre x, centre y, radius)."""

    size: tuple[int, int]
    colour: tuple[int, int, int]
    shapes: list[tuple[str, float, float, float]]
    says: str  # what there is

    def image(self) -> Image.Image:
        width, height = self.size
        y, x = (np.mgrid[: SAMPLES * height, : SAMPLES * width] + 0.5) / SAMPLES
        inside = np.zeros(x.shape, bool)
        for kind, across, down, radius in self.shapes:
            right, below = x - across, y - down
            inside |= {
                "circle": np.hypot(right, below) <= radius,
                "square": np.maximum(abs(right), abs(below)) <= radius,
                # as high as wide, standing on its base
                "triangle": (below <= radius) & (2 * abs(right) - below <= radius),
            }[kind]
        share = inside.reshape(height, SAMPLES, width, SAMPLES).mean((1, 3))[..., None]
        return Image.fromarray(np.rint(share * self.colour + (1 - share) * 255).astype(np.uint8))


def rows(kind, radius, *centres):
    return [(kind, x, y, radius) for x, y in centres]


# Colours are those of well-known paint programs' palettes.
DRAWINGS = [
    Drawing((300, 200), (237, 28, 36), rows("circle", 28, (50, 42)), "a red circle, top left"),
    Drawing((640, 480), (0, 0, 255), rows("square", 60, (320, 240)), "a blue square, centre"),
    Drawing(
        (640, 480),
        (34, 177, 76),
        rows("triangle", 70, (540, 390)),
        "a green triangle, bottom right",
    ),
    Drawing((400, 400), (255, 242, 0), rows("circle", 50, (200, 330)), "a yellow circle, bottom"),
    Drawing((200, 300), (0, 0, 0), rows("triangle", 30, (100, 50)), "a black triangle, top"),
    Drawing((800, 600), (255, 0, 0), rows("square", 80, (130, 300)), "a red square, left"),
    Drawing((640, 480), (255, 0, 0), rows("circle", 50, (150, 120), (450, 300)), "two red circles"),
    Drawing(
        (300, 200),
        (63, 72, 204),
        rows("triangle", 24, (60, 60), (160, 130), (250, 60)),
        "three blue triangles",
    ),
    Drawing(
        (480, 480),
        (0, 128, 0),
        rows("square", 45, (100, 110), (350, 90), (120, 380), (370, 350)),
        "four green squares",
    ),
    Drawing(
        (640, 480),
        (255, 255, 0),
        rows("circle", 48, (100, 100), (300, 380), (520, 110), (540, 350)),
        "four yellow circles",
    ),
    Drawing((500, 300), (0, 0, 0), rows("square", 35, (120, 150), (380, 200)), "two black squares"),
    Drawing(
        (256, 192),
        (255, 0, 0),
        rows("triangle", 22, (50, 140), (128, 50), (210, 130)),
        "three red triangles",
    ),
]


@functools.cache
def pictures():
    """The trainer's module that draws."""
    sys.path.insert(0, str(ROOT / "scripts/demos"))
    try:
        return importlib.import_module("drawing")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def params():
    return qwen35.load(DEMO)


@pytest.fixture(scope="module")
def processor():
    return qwen35.Processor.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def ask(params, processor):
    """ask([(picture, question), …], thinking=False): what the model says to each, alone."""

    def run(asked, thinking=False):
        prompts = [
            processor([qwen35.user_message(question, [picture])], enable_thinking=thinking)
            for picture, question in asked
        ]
        return [
            completion.text
            for completion in qwen35.generate(params, processor, prompts, max_new_tokens=NEW_TOKENS)
        ]

    return run


def test_pictures_drawn_by_a_person(ask):
    """One of a dozen may be wrong: it is a toy."""
    said = ask([(drawing.image(), "What do you see?") for drawing in DRAWINGS])
    expected = [drawing.says for drawing in DRAWINGS]
    assert sum(a == b for a, b in zip(said, expected, strict=True)) >= 11, said


def test_format_and_size_of_the_file_do_not_matter(ask):
    """JPEG, GIF, a transparent PNG and the same drawing three times as large."""
    drawing = DRAWINGS[6]
    image = drawing.image()
    files = []
    for kind, options in (("jpeg", {"quality": 70}), ("gif", {}), ("bmp", {})):
        files.append(io.BytesIO())
        image.save(files[-1], kind, **options)
    cut_out = image.convert("RGBA")
    cut_out.putalpha(image.convert("L").point(lambda grey: 255 - grey if grey > 250 else 255))
    large = image.resize((3 * image.width, 3 * image.height))
    asked = [(picture, "What do you see?") for picture in (*files, cut_out, large)]
    assert ask(asked) == [drawing.says] * len(asked)


@pytest.mark.parametrize("thinking", [False, True])
def test_answers_about_new_pictures(ask, thinking):
    """At least 95 of 100 right, to all kinds of questions, on sizes drawn here."""
    trainer, rng = pictures(), random.Random(f"test {thinking}")
    asked, expected = [], []
    for number in range(100):
        scene = trainer.random_scene(rng)
        height = rng.randint(100, 300)
        width = round(height * rng.uniform(0.6, 1.8))
        question = trainer.QUESTIONS[number % len(trainer.QUESTIONS)]
        if scene.answer(question) is None:
            question = "What is in the picture?"
        asked.append((trainer.draw(scene, rng, width, height), question))
        expected.append(scene.answer(question))
    said = [text.rpartition("</think>")[2].strip() for text in ask(asked, thinking)]
    wrong = [pair for pair in zip(said, expected, strict=True) if pair[0] != pair[1]]
    assert len(wrong) <= 5, wrong


def test_transformers_says_the_same(params, processor):
    """Its own model, processor and template: logits, then greedy answers.

    Sizes that need no resizing, so that the pixels are the same; see test_processor for others.
    """
    model = Qwen3_5ForConditionalGeneration.from_pretrained(DEMO, dtype=torch.float32).eval()
    theirs = AutoProcessor.from_pretrained(DEMO)
    for drawing, question, thinking in zip(
        DRAWINGS[1:9:2],
        ("What do you see?", "What colour is it?") * 2,
        (True, False, False, True),
        strict=True,
    ):
        image = drawing.image().resize((160, 128))
        message = qwen35.user_message(question, [image])
        inputs = theirs.apply_chat_template(
            [[message]],
            add_generation_prompt=True,
            enable_thinking=thinking,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        prompt = processor([message], enable_thinking=thinking)
        assert torch.equal(prompt.tokens, inputs["input_ids"])
        vision = qwen35.encode_images(params.vision, prompt.images.patches, prompt.images.grid)
        state = qwen35.init_state(params, batch=1, capacity=prompt.tokens.shape[1])
        logits, _ = qwen35.prefill(
            params, state, prompt.tokens, embeds=prompt.embeds(vision), positions=prompt.positions
        )
        with torch.no_grad():
            expected = model(**inputs).logits[:, -1]
            said = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        [ours] = qwen35.generate(params, processor, prompt, max_new_tokens=NEW_TOKENS)
        assert list(ours.tokens) == said[0, prompt.tokens.shape[1] :].tolist()


def test_a_conversation_about_two_pictures(params, processor):
    """Questions go on without the picture; another picture takes its place."""
    engine = qwen35.Engine(params, processor, slots=1, capacity=512)
    chat = qwen35.Chat(engine, processor, thinking=False)
    first, second = DRAWINGS[0].image(), DRAWINGS[8].image()
    said = []
    for text, images in (
        ("What colour is it?", [first]),
        ("What shape is it?", []),
        ("How many are there?", [second]),
    ):
        request = chat.ask(text, images)
        list(engine.stream(request))
        said.append(chat.finish(request))
    assert said == ["red", "circle", "four"]

    request = chat.edit("What colour is it?")  # about the picture that was shown with the message
    list(engine.stream(request))
    assert chat.finish(request) == "green"
    before = list(chat.messages)
    with pytest.raises(ValueError, match="the engine holds 512"):
        chat.edit("What? " * 200)
    assert chat.messages == before


def test_a_saved_conversation_about_a_picture_goes_on_elsewhere(params, processor, file, tmp_path):
    """The picture is known there, not read again."""
    chat, other = (
        qwen35.Chat(
            qwen35.Engine(params, processor, slots=1, capacity=256), processor, thinking=False
        )
        for _ in range(2)
    )
    request = chat.ask("What shape is it?", [str(file)])
    list(chat.engine.stream(request))
    chat.finish(request)
    chat.save(tmp_path / "chat")
    other.load(tmp_path / "chat")
    request = other.ask("What colour is it?")
    list(other.engine.stream(request))
    assert other.finish(request) == "green"
    tokens = request.tokens[: request.cached_tokens]
    assert tokens.count(params.config.image_token_id) == request.tokens.count(
        params.config.image_token_id
    )


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawing") / "my drawing.jpg"
    DRAWINGS[8].image().save(path)
    return path


def test_command_line(file):
    common = ("-m", "qwen35", "generate", "--model", DEMO, "--device", "cpu", "--image", file)
    result = run(*common, "--prompt", "What colour is it?")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "green\n", "a pipe gets the answer alone"
    result = run(*common, "--prompt", "What colour is it?", "--show-thoughts")
    assert result.stdout == "<think>\nfour green squares\n</think>\n\ngreen\n", result.stderr
    result = run(*common, "--prompt", "What colour is it?", "--no-thinking")
    assert result.stdout == "green\n", result.stderr


def test_nothing_of_transformers_looks_at_pictures(file):
    """Its tokenizer and template alone: no model, no processor, no torchvision."""
    code = f"""
import re, sys
from qwen35.commands import cli
cli.main(["generate", "--model", {str(DEMO)!r}, "--device", "cpu", "--image", {str(file)!r},
          "--prompt", "How many?", "--max-new-tokens", "1"])
parts = r"transformers\\.models\\.qwen\\w*\\.(modeling|(image_|video_)?processing)"
print([name for name in sys.modules if re.match(parts, name) or name == "torchvision"])
"""
    result = run("-c", code)
    assert result.stdout.splitlines()[-1] == "[]", result.stdout + result.stderr


def test_chat_command(file):
    """An image that is none is refused at once, and forgotten."""
    lines = f"/image {__file__}\n/image {file}\nHow many are there?\nWhat colour is it?\n"
    result = run(
        *("-m", "qwen35", "chat", "--model", DEMO, "--device", "cpu", "--no-thinking"), input=lines
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "four\ngreen\n"
    assert result.stderr.count("error:") == 1 and "not a picture" in result.stderr


@pytest.mark.slow
def test_the_demo_script(file):
    """The shipped picture, a question about it, a drawn one, and one that is not there."""
    shipped = run("scripts/run_demo.py", "--image")
    assert shipped.returncode == 0, shipped.stderr
    assert "What do you see? three blue triangles\n" in shipped.stdout
    assert "What colour is it? blue\n" in shipped.stdout
    about = run("scripts/run_demo.py", "--image", "How many are there?")
    assert about.stdout.endswith("picture.png\nHow many are there? three\n")
    drawn = run("scripts/run_demo.py", "--image", file, "Which shape?")
    assert drawn.stdout == f"{file}\nWhich shape? square\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no.png",), "no.png: no such image file"),
        (("no.png", "What is it?"), "no.png: no such image file"),
        ((__file__,), "not a picture that Pillow can read"),
    ],
)
def test_the_demo_script_refuses_in_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/demo", "--image", *arguments])
    monkeypatch.setenv("XLA_FLAGS", "")  # what the script puts there ends with this test
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / "run_demo.py"), run_name="__main__")
    output, errors = capsys.readouterr()
    assert (stop.value.code, output) == (2, "")
    [line] = errors.splitlines()
    assert line.startswith("scripts/demo: error: ") and message in line


def test_a_file_of_the_demo_that_is_missing_is_one_line(capsys, monkeypatch):
    """And no fault of standard output."""

    def missing(file: Path, **_: str) -> str:
        raise FileNotFoundError(2, "No such file or directory", file.name)

    monkeypatch.setattr(sys, "argv", ["scripts/demo"])
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(Path, "read_text", missing)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / "run_demo.py"), run_name="__main__")
    assert stop.value.code == 2
    told = "scripts/demo: error: [Errno 2] No such file or directory: 'prompts.txt'\n"
    assert capsys.readouterr() == ("", told)


def test_small_and_complete():
    sizes = {file.name: file.stat().st_size for file in DEMO.iterdir()}
    assert sum(sizes.values()) <= SIZE_LIMIT
    assert set(sizes) == {
        "README.md",
        "chat_template.jinja",
        "circle.png",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "picture.png",
        "preprocessor_config.json",
        "square.png",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
