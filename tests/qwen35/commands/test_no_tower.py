"""Every command on a checkpoint that describes a vision tower and holds none, as merges of adapters
leave it: it is a text model, of which the whole checkpoint's text part says what is right."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import qwen35
from qwen35.commands import cli

SEEING = Path(__file__).resolve().parents[3] / "demo_vision"
ASKED = "What colour is it?"
SHORT = ["--device", "cpu", "--max-new-tokens", "6", "--greedy"]
NOTE = "describes a vision tower, of which the files hold nothing: it is loaded as a text model"


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    directory = shutil.copytree(SEEING, tmp_path_factory.mktemp("merged") / "model")
    file = directory / "model.safetensors"
    tensors = load_file(file)
    text = {name: tensor.clone() for name, tensor in tensors.items() if "visual" not in name}
    assert len(text) < len(tensors)
    save_file(text, file, metadata={"format": "pt"})
    return str(directory)


@pytest.fixture(scope="module")
def said():
    """The text part's answer: without what shows a terminal that it is a thought."""
    params = qwen35.load(SEEING, vision=False)
    tokenizer = qwen35.Tokenizer.from_pretrained(SEEING)
    prompt = tokenizer.render([{"role": "user", "content": ASKED}], enable_thinking=False)
    [completion] = qwen35.generate(params, tokenizer, prompt, max_new_tokens=6)
    return completion.text.strip()


def run(*arguments):
    shown, notes = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(notes):
        code = cli.main([str(argument) for argument in arguments])
    assert code == 0, notes.getvalue()
    return shown.getvalue(), notes.getvalue()


def test_chat(merged, said, monkeypatch):
    lines = f"{ASKED}\n/image a.png\n/exit\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    shown, notes = run("chat", "--model", merged, "--no-thinking", *SHORT)
    assert shown.strip() == said
    assert NOTE in notes and "no vision: it can't be shown an image" in notes


def test_batch(merged, said, tmp_path):
    picture = [{"type": "image", "image": str(SEEING / "circle.png")}]
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in (ASKED, picture)]
    (tmp_path / "in").write_text("\n".join(map(json.dumps, bodies)))
    options = ["--no-thinking", "--slots", "1", "--capacity", "128", *SHORT]
    _, notes = run("batch", "--model", merged, *options, tmp_path / "in", tmp_path / "out")
    answered, refused = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert answered["message"]["content"] == said and NOTE in notes
    assert "only text can be shown to this model" in refused["error"]["message"]


def test_generate(merged, said):
    options = ["--chat", "--no-thinking", "--prompt", ASKED, *SHORT]
    assert run("generate", "--model", merged, *options)[0].strip() == said
    with pytest.raises(AssertionError, match="it is a text model, which can't be shown a picture"):
        run("generate", "--model", merged, "--image", SEEING / "circle.png", *options)


def test_sizes_are_the_text_models(merged, tmp_path):
    shown, notes = run("info", merged, "--json")
    assert json.loads(shown) == json.loads(run("info", text_only(tmp_path), "--json")[0])
    assert NOTE in notes
    with pytest.raises(AssertionError, match="the model has no vision tower to trace"):
        run("export", "--model", merged, "--phase", "vision", tmp_path / "graphs")
    with pytest.raises(AssertionError, match="images: the checkpoint has no vision tower"):
        run("bench", "images", "--model", merged)


def text_only(directory):
    qwen35.save(qwen35.load(SEEING, vision=False), directory / "text")
    return directory / "text"


@pytest.mark.parametrize("way", [["--weights", "int8"], ["--tp", "1", "--dtype", "float32"]])
def test_convert(merged, said, tmp_path, way):
    _, notes = run("convert", *way, merged, tmp_path / "out")
    assert NOTE in notes
    options = ["--chat", "--no-thinking", "--prompt", ASKED, *SHORT]
    assert run("generate", "--model", tmp_path / "out", *options)[0].strip() == said


def test_evaluation(merged, tmp_path):
    (tmp_path / "text").write_text("What colour is it? It is red. " * 4)
    values = []
    for model in (merged, SEEING):
        options = ["--device", "cpu", "--text", tmp_path / "text", "--json"]
        shown, _ = run("eval", "perplexity", "--model", model, *options)
        values.append(json.loads(shown)["total"]["perplexity"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_configuration_alone_is_as_it_says(tmp_path):
    """Sizes need no weights, and damaged ones are no reason to refuse them."""
    shutil.copy(SEEING / "config.json", tmp_path)
    whole = json.loads(run("info", SEEING, "--json")[0])
    assert json.loads(run("info", tmp_path, "--json")[0]) == whole
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    assert json.loads(run("info", tmp_path, "--json")[0]) == whole
