"""JSON that somebody else wrote: read within bounds, or refused with the file's name."""

import json
import shutil
from pathlib import Path

import pytest

import qwen35
from qwen35.checks import json_file
from qwen35.checks.json_file import parse_object, read_object, to_text

DEMO = Path(__file__).parents[3] / "demo_vision"
DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
SHALLOW = b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}"  # Python's reader takes it


def test_an_object_is_read(tmp_path):
    content = {"a": [1, 2.5, None, {"b": "Grüße"}], "c": {}}
    (tmp_path / "x.json").write_bytes(to_text(content))
    assert read_object(tmp_path / "x.json", "a thing") == content
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == content


def test_of_equal_keys_the_last_one_counts():
    assert parse_object('{"a": 1, "a": 2}', "here", "a thing") == {"a": 2}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b'{"a": 1} x', "not readable as JSON"),
        (b'{"a": "\xff"}', "not readable as JSON .*utf-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not readable as JSON .*4300 digits"),
        (b"[]", "a thing is a JSON object, not of type list"),
        (b"3", "a thing is a JSON object, not of type int"),
        (b"null", "a thing is a JSON object, not of type NoneType"),
        (DEEP, "over 127 levels deep"),
        (DEEP[:100_000], "not readable as JSON|over 127 levels deep"),
        (SHALLOW, "over 127 levels deep"),
        (None, "not readable .No such file or directory.; a thing is needed"),
    ],
    ids=lambda value: None if value is None else str(value[:20]),
)
def test_anything_else_is_refused_with_the_files_name(content, says, tmp_path):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(qwen35.CheckpointError, match=rf"x\.json: .*({says})") as error:
        read_object(file, "a thing")
    assert "a thing" in str(error.value) and len(str(error.value)) < 300


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(qwen35.CheckpointError, match=r"not readable .Is a directory"):
        read_object(tmp_path, "a thing")


def test_the_deepest_that_is_read():
    for levels, good in ((127, True), (128, False)):
        text = '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)
        if good:
            parse_object(text, "here", "a thing")
        else:
            with pytest.raises(qwen35.CheckpointError, match="over 127 levels deep"):
                parse_object(text, "here", "a thing")


def test_a_huge_file_is_refused_without_reading_it_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "_LARGEST", 1000)
    file = tmp_path / "x.json"
    file.write_bytes(b'{"a": "' + b"x" * 980 + b'"}')
    read_object(file, "a thing")
    with open(file, "ab") as content:
        content.truncate(2**40)  # a hole: reading all of it would take a terabyte
    with pytest.raises(qwen35.CheckpointError, match="over 1,000 bytes, too large for a thing"):
        read_object(file, "a thing")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", DEEP, SHALLOW], ids=lambda c: str(c[:6]))
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", qwen35.Config.from_pretrained),
        ("config.json", qwen35.load),
        ("generation_config.json", qwen35.sampling_defaults),
        ("generation_config.json", qwen35.Tokenizer.from_pretrained),
        ("preprocessor_config.json", qwen35.Processor.from_pretrained),
        ("video_preprocessor_config.json", qwen35.Processor.from_pretrained),
        ("processor_config.json", qwen35.Processor.from_pretrained),
        ("model.safetensors.index.json", qwen35.load),
    ],
)
def test_every_reader_of_a_checkpoint_names_the_damaged_file(name, read, content, tmp_path):
    directory = shutil.copytree(DEMO, tmp_path / "checkpoint")
    (directory / name).write_bytes(content)
    if "index" in name:
        (directory / "model.safetensors").unlink()
    with pytest.raises(qwen35.CheckpointError, match=name.replace(".", r"\.")) as error:
        read(directory)
    assert len(str(error.value)) < 400
