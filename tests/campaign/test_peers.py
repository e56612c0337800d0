"""What peers' tests and reports try, as inputs of ours: facts about files, none of their code.

safetensors: the tests of safetensors/src/tensor.rs, and reports of headers of very many tensors.
tokenizers and transformers: kinds of damage that their tests and issues name (merges of tokens that
are not there, odd heads, layer types that do not fit, rotations by kind of layer).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors
from oracle import outcome
from test_tensors import framed, of_tensors

import qwen35
from qwen35.files.tensor_file import TensorFile

DEMO = Path(__file__).resolve().parents[2] / "demo"


def headers() -> Iterator[tuple[str, bytes, bool]]:
    """Names, files, and whether they are good."""
    one = json.dumps(of_tensors(("test", "I32", [2, 2], [0, 16]))).encode()
    ten = of_tensors(*((f"weight_{n}", "F32", [2, 2], [0, 16]) for n in range(10)))
    yield "ten tensors in one place", framed(json.dumps(ten).encode(), bytes(16)), False
    yield "data of another file behind", framed(one, bytes(16) + b"extra_data_of_another"), False
    yield "two bytes too few", framed(one, bytes(14)), False
    yield "a header of 2**64 - 2**40 bytes", framed(one, bytes(16), 2**64 - 2**40 + 60), False
    yield "nothing", b"", False
    yield "a length alone", (60).to_bytes(8, "little"), False
    yield "no UTF-8", framed(b"\xff", b""), False
    yield "no JSON", framed(b"{", b""), False
    yield "blanks behind", framed(b"{}\r \t\n", b""), True
    yield (
        "no values",
        framed(json.dumps(of_tensors(("x", "I32", [2, 0], [0, 0]))).encode(), b""),
        True,
    )
    yield (
        "no dimensions",
        framed(json.dumps(of_tensors(("x", "I32", [], [0, 4]))).encode(), bytes(4)),
        True,
    )
    yield (
        "too few bytes stated",
        framed(json.dumps(of_tensors(("x", "I32", [2, 2], [0, 4]))).encode(), bytes(4)),
        False,
    )
    for size in (2**64 - 2, 2**63 - 1, 10**400):
        stated = json.dumps(of_tensors(("x", "I32", [2, size], [0, 16]))).encode()
        yield f"a size of {len(str(size))} digits", framed(stated, bytes(16)), False
    many = of_tensors(*((f"{n}", "U8", [0], [0, 0]) for n in range(20_000)))
    yield "very many tensors of nothing", framed(json.dumps(many).encode(), b""), True
    for metadata in ("pt", ["pt"], {"format": 3}, {"format": None}, {"a": {"b": "c"}}):
        stated = json.dumps({"__metadata__": metadata}).encode()
        yield f"metadata {metadata}", framed(stated, b""), False


HEADERS = list(headers())


@pytest.mark.parametrize(
    ("content", "good"), [case[1:] for case in HEADERS], ids=[case[0] for case in HEADERS]
)
def test_headers_of_safetensors(content, good, tmp_path):
    """Refused, or taken, as the library does it."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    found = outcome(lambda: TensorFile(file), qwen35.CheckpointError)
    assert isinstance(found, TensorFile) == good
    if good:
        safetensors.safe_open(file, framework="numpy")
    else:
        with pytest.raises((safetensors.SafetensorError, OverflowError)):
            safetensors.safe_open(file, framework="numpy")


TOKENIZER = json.loads((DEMO / "tokenizer.json").read_bytes())
MODEL = TOKENIZER["model"]
TOKENIZERS = {
    "no model": {"version": "1.0"},
    "another version": TOKENIZER | {"version": "2.0"},
    "a merge of tokens that are not there": TOKENIZER
    | {"model": MODEL | {"merges": [["not there", "nor this"]]}},
    "a merge of three": TOKENIZER | {"model": MODEL | {"merges": [["a", "b", "c"]]}},
    "a merge as a text of three": TOKENIZER | {"model": MODEL | {"merges": ["a b c"]}},
    "an id that is negative": TOKENIZER | {"model": MODEL | {"vocab": {"a": -1}, "merges": []}},
    "an id beyond 32 bits": TOKENIZER | {"model": MODEL | {"vocab": {"a": 2**32}, "merges": []}},
    "a model of another type": TOKENIZER | {"model": MODEL | {"type": "x"}},
    "an added token without a text": TOKENIZER | {"added_tokens": [{"id": 5}]},
    "a decoder that is not known": TOKENIZER | {"decoder": {"type": "x"}},
    "a pattern that is none": TOKENIZER
    | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated",
                         "invert": False}},
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name, tmp_path):
    """Refused in a sentence: the library raises an Exception of no type, or panics."""
    for file in DEMO.glob("*.json*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZERS[name]))
    found = outcome(lambda: qwen35.Tokenizer.from_pretrained(tmp_path), qwen35.CheckpointError)
    assert isinstance(found, qwen35.CheckpointError), name


CONFIG = json.loads((DEMO / "config.json").read_bytes())
ROPE = CONFIG["rope_parameters"]
CONFIGS = {
    "an odd head": {"head_dim": 25, "rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
    "an odd rotation": {"head_dim": 20, "rope_parameters": ROPE | {"partial_rotary_factor": 0.25}},
    "rotations by kind of layer": {
        "rope_parameters": {"full_attention": ROPE, "linear_attention": ROPE}
    },
    "one layer's rotation missing": {"rope_parameters": {"full_attention": ROPE}},
    "fewer kinds than layers": {"layer_types": ["full_attention"]},
    "a kind of another model": {"layer_types": ["sliding_attention"] * CONFIG["num_hidden_layers"]},
    "YaRN without a factor": {"rope_parameters": ROPE | {"rope_type": "yarn"}},
    "a rotation that is not known": {"rope_parameters": ROPE | {"rope_type": "longrope"}},
    "heads that share unevenly": {"num_attention_heads": 4, "num_key_value_heads": 3},
    "no heads": {"num_attention_heads": 0},
    "sizes as texts": {"hidden_size": "96"},
    "an activation of another model": {"hidden_act": "gelu"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name):
    content = {key: value for key, value in CONFIG.items() if key != "full_attention_interval"}
    found = outcome(lambda: qwen35.Config.from_dict(content | CONFIGS[name]), ValueError)
    assert isinstance(found, ValueError), name
