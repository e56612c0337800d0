"""What is asked: messages, requests, lines of a batch; tokenizers' files; pictures and videos."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from mutations import damaged, damaged_bytes, damaged_text, difference
from oracle import Fault, outcome
from PIL import Image

import qwen35
from qwen35.commands.batch_lines import asked_of, parse, read_lines
from qwen35.files.journal import opened
from qwen35.generation.openai_form import CHAT, COMPLETIONS, read_request
from qwen35.prompts.images import read_image
from qwen35.prompts.settings import VideoSettings
from qwen35.prompts.video import read_video

ROOT = Path(__file__).resolve().parents[2]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
MESSAGES = [
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\nHi", "reasoning_content": "so"},
        {"role": "user", "content": "And?"},
    ],
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
    ],
]
CIRCLE = str(ROOT / "demo_vision" / "circle.png")
SEEN = [
    [{"role": "user", "content": [
        {"type": "image", "image": CIRCLE, "max_pixels": 50176},
        {"type": "image_url", "image_url": {"url": CIRCLE}},
        {"type": "text", "text": "What is it?"},
    ]}],
    [{"role": "user", "content": [
        {"type": "video", "video": [CIRCLE] * 4, "sample_fps": 2.0, "nframes": 2},
        {"type": "text", "text": "What is it?"},
    ]}],
]  # fmt: skip
BODIES = [
    {"messages": MESSAGES[2], "tools": [TOOL], "temperature": 0.5, "top_p": 0.9, "max_tokens": 5,
     "stop": ["x"], "seed": 3, "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1.0},
     "presence_penalty": 0.1, "frequency_penalty": 0.1, "tool_choice": "auto",
     "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
     "chat_template_kwargs": {"enable_thinking": False}, "model": "x", "n": 1},
    {"prompt": "Hello", "max_tokens": 5, "logprobs": 1, "stop": "x", "temperature": 0},
    {"prompt": [1, 2, 3], "min_p": 0.1, "top_k": 5, "repetition_penalty": 1.1},
]  # fmt: skip


def show(made):
    return str(made)[:400]


def identity(line):
    if not isinstance(line.get("id"), str):
        raise ValueError("no id")
    return line["id"]


@pytest.fixture(scope="module")
def tokenizer():
    return qwen35.Tokenizer.from_pretrained(ROOT / "demo")


@pytest.fixture(scope="module")
def processor():
    return qwen35.Processor.from_pretrained(ROOT / "demo_vision")


def test_messages(campaign, tokenizer):
    """Rendered as text, or refused."""

    def check(messages):
        text = outcome(lambda: tokenizer.render(messages, tools=[TOOL]), ValueError)
        if not isinstance(text, str | ValueError):
            raise Fault(f"renders a {type(text).__name__}")

    campaign.try_all("messages", lambda draw: damaged(draw, draw.choice(MESSAGES)), check, show)


def test_messages_with_pictures(campaign, processor):
    """Each picture has its places, or the message is refused."""

    def check(messages):
        prompt = outcome(lambda: processor(messages), ValueError, OSError)
        if not isinstance(prompt, Exception) and prompt.tokens.shape[0] != 1:
            raise Fault("prompts of another form")

    campaign.try_all("messages with pictures", lambda draw: damaged(draw, draw.choice(SEEN)),
                     check, show)  # fmt: skip


def test_request_bodies(campaign):
    how = {"max_new_tokens": None, "sampling": qwen35.Sampling(), "template": {}}

    def make(draw):
        seed = draw.choice(BODIES)
        url = draw.choice((CHAT if "messages" in seed else COMPLETIONS, CHAT, "x", None))
        return url, damaged(draw, seed)

    def check(made):
        outcome(lambda: read_request(*made, **how), ValueError)

    campaign.try_all("request bodies", make, check, show)


def test_lines_of_a_batch(campaign, tmp_path):
    """Each line is asked for, or answered with what is wrong; the file is listed whole."""
    how = {"max_new_tokens": None, "sampling": qwen35.Sampling(), "template": {}}
    file = tmp_path / "in.jsonl"

    def make(draw):
        lines = []
        for number in range(draw.randrange(1, 4)):
            body = draw.choice(BODIES)
            url = CHAT if "messages" in body else COMPLETIONS
            line = draw.choice((
                {"custom_id": f"a{number}", "method": "POST", "url": url, "body": body},
                body | {"custom_id": f"b{number}"}, "a prompt",
            ))  # fmt: skip
            line = damaged(draw, line) if draw.randrange(3) else line
            text = json.dumps(line)
            lines.append(damaged_text(draw, text) if not draw.randrange(4) else text.encode(
                "utf-8", "surrogatepass"))  # fmt: skip
        return b"\n".join(lines) + draw.choice((b"", b"\n", b"\r\n", b"\n\n"))

    def check(content):
        file.write_bytes(content)
        listed = outcome(lambda: read_lines(str(file)), ValueError)
        if isinstance(listed, ValueError):
            return
        lines, _ = listed
        if len(lines) != sum(bool(part.strip()) for part in content.split(b"\n")):
            raise Fault(f"{len(lines)} lines")
        for line in lines:
            part = content[line.start : line.start + line.size]
            entry = outcome(lambda part=part: parse(part), ValueError)
            if not isinstance(entry, ValueError):
                outcome(
                    lambda entry=entry, line=line: asked_of(entry, line, True, "brief", **how),
                    ValueError,
                )

    campaign.try_all("files of JSON lines", make, check, show)


def test_answers_that_are_there(campaign, tmp_path):
    """An output that is damaged is gone on with, without a whole line of it lost, or refused as it
    stands."""
    file = tmp_path / "out.jsonl"
    whole = b"".join(
        json.dumps({"id": f"batch_req_{n}", "custom_id": f"a{n}", "error": None}).encode() + b"\n"
        for n in range(3)
    )

    def check(content):
        file.write_bytes(content)

        def go_on():
            with opened(file, identity, b'{"id": "batch_req_') as journal:
                return len(journal.known)

        found = outcome(go_on, ValueError)
        if isinstance(found, ValueError):
            if file.read_bytes() != content:
                raise Fault("refused, and changed")
        elif not content.startswith(file.read_bytes()) or b"\n" in content[file.stat().st_size :]:
            raise Fault("a whole line is lost")

    campaign.try_all("files of answers", lambda draw: damaged_bytes(draw, whole), check, show)


def test_tokenizers(campaign, tmp_path):
    """The files of a tokenizer and of a processor: another one that works, or a refusal."""
    contents = {
        path.name: path.read_bytes()
        for path in (ROOT / "demo_vision").iterdir()
        if path.suffix in (".json", ".jinja")
    }

    def make(draw):
        name = draw.choice(sorted(contents))
        content = contents[name]
        if name.endswith(".json") and draw.randrange(4):
            made = damaged(draw, json.loads(content))
            return name, json.dumps(made).encode("utf-8", "surrogatepass")
        return name, damaged_text(draw, content.decode())

    def check(made):
        name, content = made
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        (tmp_path / "x").mkdir()
        for other, whole in (contents | {name: content}).items():
            (tmp_path / "x" / other).write_bytes(whole)
        found = outcome(lambda: qwen35.Processor.from_pretrained(tmp_path / "x"), ValueError)
        if isinstance(found, ValueError):
            return
        ids = outcome(lambda: found.encode("Hello é 🙂 <|im_end|>"), ValueError)
        if not isinstance(ids, ValueError):
            outcome(lambda: found.decode(ids), ValueError)
        outcome(lambda: found.tokenizer.render(MESSAGES[1]), ValueError)

    def show(made):
        name, content = made
        try:
            return f"{name}: {difference(json.loads(content), json.loads(contents[name]))[:500]}"
        except ValueError:
            return f"{name}: {content[:200]!r}"

    campaign.try_all("tokenizers and processors", make, check, show)


def pictures() -> list[bytes]:
    made = []
    gradient = np.arange(24 * 32 * 3, dtype=np.uint16).reshape(24, 32, 3).astype(np.uint8)
    image = Image.fromarray(gradient)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "DDS"):
        buffer = io.BytesIO()
        image.save(buffer, form)
        made.append(buffer.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return [*made, buffer.getvalue()]


def test_pictures(campaign):
    """An RGB picture of no more pixels than are allowed, or a refusal."""
    known = pictures()

    def check(content):
        image = outcome(lambda: read_image(content, max_source_pixels=10**6), ValueError)
        if isinstance(image, ValueError):
            return
        if image.mode != "RGB" or not 0 < image.width * image.height <= 10**6:
            raise Fault(f"{image.mode} of {image.size}")

    campaign.try_all(
        "pictures",
        lambda draw: damaged_bytes(draw, draw.choice(known)),
        check,
        lambda content: f"{content[:60]!r}… of {len(content)} bytes",
    )


def videos() -> list[bytes]:
    made = []
    for codec, form in (("mpeg4", "mp4"), ("libx264", "matroska"), ("mjpeg", "avi")):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=form) as container:
            stream = container.add_stream(codec, rate=8)
            stream.width, stream.height = 32, 32
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for number in range(8):
                array = np.full((32, 32, 3), 30 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
            container.mux(stream.encode())
        made.append(buffer.getvalue())
    return made


def test_videos(campaign, processor):
    known, settings = videos(), processor.videos or VideoSettings(**vars(processor.images))

    def check(content):
        video = outcome(lambda: read_video(content, settings, max_source_pixels=10**5), ValueError)
        if isinstance(video, ValueError):
            return
        t, rows, columns = video.grid
        if video.patches.shape[0] != t * rows * columns or not video.patches.isfinite().all():
            raise Fault(f"patches {list(video.patches.shape)} for a grid of {video.grid}")

    campaign.try_all(
        "videos",
        lambda draw: damaged_bytes(draw, draw.choice(known)),
        check,
        lambda content: f"{content[:40]!r}… of {len(content)} bytes",
    )
