"""What a checkpoint's files say: how text is cut, and which tokens end a row."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Bare
from tokenizers import normalizers
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig

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
def test_end_tokens_are_those_of_the_file_and_the_tokenizers(directory, content, ids):
    if content is not None:
        (directory / "generation_config.json").write_text(json.dumps(content))
    own = Bare.from_file(str(directory / "tokenizer.json")).token_to_id("<|im_end|>")
    assert qwen35.Tokenizer.from_pretrained(directory).end_token_ids == (*ids, own)


@pytest.mark.parametrize("ids", ["5", [5, "6"], [1.5], -1, True])
def test_what_is_no_id_is_refused(directory, ids):
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(qwen35.CheckpointError, match=r"generation_config\.json: eos_token_id"):
        qwen35.Tokenizer.from_pretrained(directory)


def test_they_end_a_row_beside_those_of_the_configuration(load):
    params = load("equal_heads")
    params = dataclasses.replace(params, config=dataclasses.replace(params.config, eos_token_id=3))
    tokenizer = qwen35.Tokenizer(None, end_token_ids=(5, 3))
    [free] = qwen35.generate(params, Ids(), [[1, 2]], max_new_tokens=9)
    assert end_tokens(params, tokenizer) == {3, 5} and end_tokens(params, Ids()) == {3}
    second = free.tokens[1]
    [cut] = qwen35.generate(params, Ids(second), [[1, 2]], max_new_tokens=9)
    assert (
        cut.finish_reason == "stop" and cut.tokens == free.tokens[: 1 + free.tokens.index(second)]
    )


class Ids:
    """A tokenizer of ids that are no text, with end tokens or none of its own."""

    def __init__(self, *ends):
        if ends:
            self.end_token_ids = ends

    def decode(self, tokens, skip_special_tokens=False):
        return ""


def test_a_tokenizer_of_transformers_ends_rows_with_its_own(load):
    params = load("equal_heads")
    theirs = AutoTokenizer.from_pretrained(DEMO)
    assert end_tokens(params, theirs) == {3, theirs.eos_token_id}


TEXTS = (
    "हिन्दी में उत्तर दीजिए। ตอบเป็นภาษาไทย",
    "don't say 12345, e\u0301 or A\u030a\n\n  x",
    "<|im_start|>user\n\ufb01ne<|im_end|>",
)


@pytest.mark.parametrize("changed", ["", "normalizer", "pre_tokenizer"])
@pytest.mark.parametrize("model_type", ["qwen3_5", "qwen3_5_text"])
@pytest.mark.parametrize("named", ["Qwen2Tokenizer", "GPT2Tokenizer", "TokenizersBackend", "None"])
def test_the_file_decides_whatever_class_is_named(tmp_path, named, model_type, changed):
    """The right ids are those of `tokenizers`, which reads tokenizer.json alone."""
    for file in DEMO.glob("*.json"):
        shutil.copy(file, tmp_path)
    bare = Bare.from_file(str(tmp_path / "tokenizer.json"))
    content = json.loads(bare.to_str())
    if changed == "normalizer":
        bare.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])
    elif changed == "pre_tokenizer":
        [split, _] = content["pre_tokenizer"]["pretokenizers"]
        split["pattern"] = {"Regex": r"\s+|\p{L}"}
        bare = Bare.from_str(json.dumps(content))
    bare.save(str(tmp_path / "tokenizer.json"))
    for name, key, value in (
        ("tokenizer_config.json", "tokenizer_class", named),
        ("config.json", "model_type", model_type),
    ):
        content = json.loads((tmp_path / name).read_text()) | {key: value}
        (tmp_path / name).write_text(json.dumps(content))
    ours = qwen35.Tokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = bare.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == bare.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("value", ["1024", "a" * 5000, [5], True, float("nan")])
def test_a_length_that_is_no_number_is_refused(directory, value):
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": value}))
    with pytest.raises(qwen35.CheckpointError, match="model_max_length must be a number, not "):
        qwen35.Tokenizer.from_pretrained(directory)


@pytest.mark.parametrize("text", ["caf\udce9", "\ud83d", "\ude00 a"])
def test_half_a_character_is_refused(text):
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    with pytest.raises(ValueError, match=r"has '\\ud...' at character \d, which is no character"):
        tokenizer.encode(text)


@pytest.mark.parametrize("text", [b"a", 5, None, ["a"]])
def test_what_is_no_text_is_refused_by_its_type(text):
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    with pytest.raises(ValueError, match=f"must be a str, not of type {type(text).__name__}"):
        tokenizer.encode(text)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pointer_of_git_lfs_is_named(name, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO / file, tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(qwen35.CheckpointError, match=f"{name}: a git-lfs pointer"):
        qwen35.Tokenizer.from_pretrained(tmp_path)


def test_what_is_saved_ends_where_the_original_does(tmp_path):
    """Also with a config.json that names another end than the chat's, as published ones do."""
    params = qwen35.load(DEMO)
    config = dataclasses.replace(params.config, eos_token_id=952)  # <|endoftext|>
    qwen35.save(dataclasses.replace(params, config=config), tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert saved.eos_token_id == [952] and saved.pad_token_id == params.config.pad_token_id
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    tokenizer = qwen35.Tokenizer.from_pretrained(tmp_path)
    assert end_tokens(qwen35.load(tmp_path), tokenizer) == {951, 952}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    qwen35.save(params, tmp_path)  # what somebody else wrote stays
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == 7


ASKED = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


@pytest.fixture
def older(multimodal, tmp_path):
    """A vision-language checkpoint whose template stands where transformers 4 wrote it."""
    directory = shutil.copytree(multimodal.directory, tmp_path / "older")
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return directory


def test_an_older_file_of_the_template_is_read(older):
    """With the words of transformers' own processor, which reads it too."""
    theirs = AutoProcessor.from_pretrained(older)
    wanted = theirs.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert "<|im_start|>user" in wanted
    assert qwen35.Tokenizer.from_pretrained(older).render(ASKED) == wanted
    assert qwen35.Processor.from_pretrained(older)(ASKED).text == wanted


def test_a_newer_file_of_the_template_wins(older):
    (older / "chat_template.jinja").write_text("new: {{ messages[0].content }}")
    assert qwen35.Tokenizer.from_pretrained(older).render(ASKED) == "new: a"


@pytest.mark.parametrize("content", ['{"chat_template": 5}', '{"template": "a"}', "{", "[]"])
def test_an_older_file_that_holds_no_template_is_refused(older, content):
    (older / "chat_template.json").write_text(content)
    with pytest.raises(qwen35.CheckpointError, match=r"chat_template\.json"):
        qwen35.Tokenizer.from_pretrained(older)


def test_an_error_that_quotes_the_file_is_cut(directory):
    """The library repeats what it finds in the place of a token's id, however long."""
    content = json.loads((directory / "tokenizer.json").read_text())
    content["model"]["vocab"]["x"] = "a" * 5000
    (directory / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(qwen35.CheckpointError, match="files are damaged") as raised:
        qwen35.Tokenizer.from_pretrained(directory)
    assert str(raised.value).endswith("…)") and len(str(raised.value)) < 500 + len(str(directory))


def with_merges(directory: Path, prefix: str, second: str, form=lambda halves: halves) -> str:
    """Writes a vocabulary of "a", a token that continues a word, and both; returns its text."""
    joined = "a" + second.removeprefix(prefix)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["model"] = {
        "type": "BPE",
        "continuing_subword_prefix": prefix,
        "vocab": {"a": 0, second: 1, joined: 2},
        "merges": [form(["a", second])],
    }
    text = json.dumps(content)
    (directory / "tokenizer.json").write_text(text)
    return text


@pytest.mark.parametrize("form", [list, " ".join])
@pytest.mark.parametrize(
    ("prefix", "second"), [("##", "日"), ("o", "é"), ("é", "日é"), ("##", "b")]
)
def test_a_merge_that_would_end_the_process_is_refused(directory, prefix, second, form):
    """The library cuts the prefix's bytes off "日" and aborts; in a key's other form too."""
    text = with_merges(directory, prefix, second, form)
    for key in ('"continuing_subword_prefix"', r'"\u0063ontinuing_subword_prefix"'):
        changed = text.replace('"continuing_subword_prefix"', key)
        (directory / "tokenizer.json").write_text(changed)
        with pytest.raises(qwen35.CheckpointError, match=r"tokenizer\.json: merge 0, .* joins "):
            qwen35.Tokenizer.from_pretrained(directory)
    twice = text.replace('"merges"', '"continuing_subword_prefix": null, "merges"')
    (directory / "tokenizer.json").write_text(twice)
    with pytest.raises(qwen35.CheckpointError, match="'continuing_subword_prefix' stands twice"):
        qwen35.Tokenizer.from_pretrained(directory)


@pytest.mark.parametrize(
    ("prefix", "second"), [("##", "##b"), ("é", "éé"), ("日", "日日"), ("", "b")]
)
def test_a_merge_that_has_the_prefix_is_read(directory, prefix, second):
    with_merges(directory, prefix, second)
    tokenizer = qwen35.Tokenizer.from_pretrained(directory)
    assert tokenizer.hf.backend_tokenizer.model.token_to_id("a" + second.removeprefix(prefix)) == 2
