"""The end tokens that a checkpoint's generation_config.json names."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import qwen35
from qwen35.generation.generate import end_tokens

DEMO = Path(__file__).resolve().parents[3] / "demo"


@pytest.fixture
def directory(tmp_path):
    """The demo's tokenizer, without a generation_config.json."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (None, ()),
        ({}, ()),
        ({"eos_token_id": None}, ()),
        ({"eos_token_id": 5}, (5,)),
        ({"eos_token_id": [7, 5]}, (7, 5)),
    ],
)
def test_end_tokens_are_those_of_the_file(directory, content, ids):
    if content is not None:
        (directory / "generation_config.json").write_text(json.dumps(content))
    assert qwen35.Tokenizer.from_pretrained(directory).end_token_ids == ids


@pytest.mark.parametrize("ids", ["5", [5, "6"], [1.5], -1, True])
def test_what_is_no_id_is_refused(directory, ids):
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(qwen35.CheckpointError, match=r"generation_config\.json: eos_token_id"):
        qwen35.Tokenizer.from_pretrained(directory)


def test_they_end_a_row_beside_those_of_the_configuration(load):
    params = load("equal_heads")
    params = dataclasses.replace(params, config=dataclasses.replace(params.config, eos_token_id=3))
    tokenizer = qwen35.Tokenizer(None, end_token_ids=(5, 3))
    [free] = qwen35.generate(params, Bare(), [[1, 2]], max_new_tokens=9)
    assert end_tokens(params, tokenizer) == {3, 5} and end_tokens(params, Bare()) == {3}
    second = free.tokens[1]
    [cut] = qwen35.generate(params, Bare(second), [[1, 2]], max_new_tokens=9)
    assert (
        cut.finish_reason == "stop" and cut.tokens == free.tokens[: 1 + free.tokens.index(second)]
    )


class Bare:
    """A tokenizer of ids that are no text, with end tokens or none of its own."""

    def __init__(self, *ends):
        if ends:
            self.end_token_ids = ends

    def decode(self, tokens, skip_special_tokens=False):
        return ""
