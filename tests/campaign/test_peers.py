"""What peers' tests and reports try, as inputs of ours: facts about files, none of their code.

safetensors: the tests of safetensors/src/tensor.rs, the abuses that attacks/README.md lists, and
reports of readers that others wrote (headers of very many tensors; stable-diffusion.cpp 1876,
ollama 17148, mlx 3363, go-huggingface 57, ComfyUI 15602). tokenizers: damage that its tests and
issues name (566, 909, 1269, 1506), and parts of a tokenizer.json at which its Rust panics.
transformers: tests of configurations and of rotations, and issues (odd heads, layer types that do
not fit, rotations by kind of layer, settings of one rotation with another).
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
    for shape, place in (
        ([2**32, 2**32], [0, 0]),  # whose product is 0 in 64 bits
        ([-1, -4], [0, 16]),
        ([2, 2], []),
        ([2, 2], [0]),
        ([2, 2], [0, 8, 16]),
        ([2, 2], [16, 0]),
        ([2, 2], [-16, 0]),
        ([2, 2], [2**40, 2**40 + 16]),
        ([1000, 1000], [0, 16]),
        ([2, 2], "0:16"),
        ("2x2", [0, 16]),
        ([2.0, 2.0], [0, 16]),
    ):
        stated = json.dumps({"x": {"dtype": "I32", "shape": shape, "data_offsets": place}})
        yield f"I32 {shape} at {place}", framed(stated.encode(), bytes(16)), False
    gap = of_tensors(("a", "I32", [1], [0, 4]), ("b", "I32", [2], [8, 16]))
    yield "a gap between two tensors", framed(json.dumps(gap).encode(), bytes(16)), False
    lapping = of_tensors(("a", "I32", [2], [0, 8]), ("b", "I32", [2], [4, 12]))
    yield "two tensors that share bytes", framed(json.dumps(lapping).encode(), bytes(12)), False
    older = {"x": {"dtype": "float16", "shape": [1, 8], "offsets": [0, 16]}}
    yield "the keys of the first draft", framed(json.dumps(older).encode(), bytes(16)), False
    for length in (2**63, 2**64 - 1, 100_000_001):
        yield f"a header of {length} bytes", framed(one, bytes(16), length), False
    yield "a list", framed(b"[]", b""), False
    yield (
        "half a byte",
        framed(json.dumps(of_tensors(("x", "F4", [3], [0, 2]))).encode(), bytes(2)),
        False,
    )
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
    "the answer of a server": 404,
    "a list": [TOKENIZER],
    "a merge of texts with blanks": TOKENIZER | {"model": MODEL | {"merges": ["a b  c"]}},
    "steps back over what is cut off": TOKENIZER
    | {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst",
                      "stride": 5}},
    "merges left out at a chance of 2": TOKENIZER | {"model": MODEL | {"dropout": 2.0}},
    "a token that stands for the unknown and is none": TOKENIZER
    | {"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}},
    # Panics.
    "a table of characters that is none": TOKENIZER
    | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a prefix longer than its tokens": TOKENIZER
    | {"model": MODEL | {"continuing_subword_prefix": "####"}},
}  # fmt: skip
# Those that are known to be wrong by a text alone.
LATER = {
    "a text put between all characters": {
        "normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "xx"}
    },
    "nothing put before a text": {"normalizer": {"type": "Prepend", "prepend": ""}},
    "a token around a text that is not there": {
        "post_processor": {"type": "TemplateProcessing", "pair": [], "special_tokens": {},
                           "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]}
    },
    "no token for the unknown": {
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {"a": 0}}
    },
}  # fmt: skip
# Settings of padding and of cutting off, which encoding a text for a model ignores.
IGNORED = {
    "parts of 0 tokens": {
        "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 0,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    },
    "a billion tokens": {
        "padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0,
                    "pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "x"}
    },
    "no token at all": {
        "truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst",
                       "stride": 0}
    },
}  # fmt: skip


def read_tokenizer(content: object, directory: Path) -> qwen35.Tokenizer | Exception:
    for file in DEMO.glob("*.json*"):
        shutil.copy(file, directory)
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return outcome(lambda: qwen35.Tokenizer.from_pretrained(directory), qwen35.CheckpointError)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(name, tmp_path):
    """Refused in a sentence: the library raises an Exception of no type, or panics."""
    found = read_tokenizer(TOKENIZERS[name], tmp_path)
    assert isinstance(found, qwen35.CheckpointError), name


@pytest.mark.parametrize("name", LATER)
def test_tokenizers_that_fail_over_a_text(name, tmp_path):
    tokenizer = read_tokenizer(TOKENIZER | LATER[name], tmp_path)
    found = outcome(lambda: tokenizer.encode("Hello é"), ValueError)
    assert isinstance(found, ValueError) and "tokenizer.json" in str(found), name


@pytest.mark.parametrize("name", IGNORED)
def test_tokens_of_a_text_are_all_of_it_and_nothing_else(name, tmp_path):
    whole = qwen35.Tokenizer.from_pretrained(DEMO).encode("Hello é")
    assert read_tokenizer(TOKENIZER | IGNORED[name], tmp_path).encode("Hello é") == whole


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
    "a rotation that is a number": {"rope_parameters": 1},
    "a rotation that is a list": {"rope_parameters": [ROPE]},
    "a kind of rotation that is none": {"rope_parameters": ROPE | {"rope_type": None}},
    "YaRN by a factor that is a truth value": {
        "rope_parameters": ROPE
        | {"rope_type": "yarn", "factor": True, "original_max_position_embeddings": 64}
    },
    "YaRN by less than 1": {
        "rope_parameters": ROPE
        | {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 64}
    },
    "YaRN whose fast rotations are slower than the slow ones": {
        "rope_parameters": ROPE
        | {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
        | {"beta_fast": 1, "beta_slow": 32}
    },
    "YaRN with a factor of attention below 0": {
        "rope_parameters": ROPE
        | {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
        | {"attention_factor": -1.0}
    },
    **{
        f"a rotation of type {kind}": {"rope_parameters": ROPE | {"rope_type": kind, "factor": 2.0}}
        for kind in ("linear", "dynamic", "llama3", "proportional")
    },
    "a theta of 0": {"rope_parameters": ROPE | {"rope_theta": 0}},
    "more than all of a head rotated": {"rope_parameters": ROPE | {"partial_rotary_factor": 1.5}},
    "kinds of layers as a text": {"layer_types": "full_attention"},
    "layers that are none": {"layer_types": [None] * CONFIG["num_hidden_layers"]},
    "no vocabulary": {"vocab_size": 0},
    "a text for an end token": {"eos_token_id": "<|im_end|>"},
}
# Taken: what transformers' tests and published models have.
GOOD_CONFIGS = {
    "labels of a classifier": {"num_labels": 3, "id2label": {"0": "a", "1": "b", "2": "c"}},
    "no end token": {"eos_token_id": None},
    "several end tokens": {"eos_token_id": [1, 2]},
    "an end token that never comes": {"eos_token_id": CONFIG["vocab_size"]},
    "attention first": {"layer_types": ["full_attention", "linear_attention"] * 9},
    "settings of a call": {"output_attentions": True, "use_cache": False, "return_dict": True},
    "a dtype under its older name": {"torch_dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(name):
    content = {key: value for key, value in CONFIG.items() if key != "full_attention_interval"}
    found = outcome(lambda: qwen35.Config.from_dict(content | CONFIGS[name]), ValueError)
    assert isinstance(found, ValueError), name


@pytest.mark.parametrize("name", GOOD_CONFIGS)
def test_configurations_that_are_good(name):
    changes = GOOD_CONFIGS[name]
    if "layer_types" in changes:
        changes = {"layer_types": changes["layer_types"][: CONFIG["num_hidden_layers"]]}
    content = {key: value for key, value in CONFIG.items() if key != "full_attention_interval"}
    found = outcome(lambda: qwen35.Config.from_dict(content | changes), ValueError)
    assert isinstance(found, qwen35.Config), found


INDEX = {"metadata": {"total_size": 16}, "weight_map": {"x": "a.safetensors"}}
INDEXES = {
    "no map": {"metadata": {}},
    "a list for a map": INDEX | {"weight_map": ["x"]},
    "a file that is not there": INDEX | {"weight_map": {"x": "b.safetensors"}},
    "a file without the tensor": INDEX | {"weight_map": {"y": "a.safetensors"}},
    "a file elsewhere": INDEX | {"weight_map": {"x": "../a.safetensors"}},
    "a number for a file": INDEX | {"weight_map": {"x": 1}},
    "a list": [INDEX],
    "nothing": None,
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes(name, tmp_path):
    shutil.copy(DEMO / "config.json", tmp_path)
    one = json.dumps(of_tensors(("x", "F32", [2, 2], [0, 16]))).encode()
    (tmp_path / "a.safetensors").write_bytes(framed(one, bytes(16)))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(INDEXES[name]))
    found = outcome(lambda: qwen35.load(tmp_path), qwen35.CheckpointError)
    assert isinstance(found, qwen35.CheckpointError), name
