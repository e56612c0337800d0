"""Text that grows token by token, against the decoding of all tokens at once."""

import random
from pathlib import Path

import pytest
from tokenizers.decoders import DecodeStream
from transformers import ByT5Tokenizer

import qwen35
from qwen35.prompts.tokenizer import TextStream

DEMO = Path(__file__).parents[3] / "demo"
TEXTS = [
    "plain words, and  spaces ",
    "héllo 😀 水の沸点は摂氏\n\n\t",
    "<|im_start|>user\nhi 👩‍👩‍👧<|im_end|>\n<|im_start|>",
    "a \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} b",
    "ends with one \N{REPLACEMENT CHARACTER}",
]


@pytest.fixture(scope="module")
def demo():
    """A byte-level BPE of few merges: most characters beyond ASCII take several tokens."""
    return qwen35.Tokenizer.from_pretrained(DEMO)


def pieces(tokenizer, tokens):
    stream = TextStream(tokenizer)
    return [*map(stream.push, tokens), stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text(demo, text):
    """Whole, and cut after any token: what is held back comes at the end, replaced."""
    tokens = demo.encode(text)
    for end in range(len(tokens) + 1):
        given = pieces(demo, tokens[:end])
        assert "".join(given) == demo.decode(tokens[:end], skip_special_tokens=True)
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in given[:-1]) or (
            "\N{REPLACEMENT CHARACTER}" in text
        )


def test_a_character_comes_with_its_last_byte(demo):
    tokens = demo.encode("水")
    assert len(tokens) == 3 and pieces(demo, tokens) == ["", "", "水", ""]


def test_any_tokens(demo):
    """Bytes that are no text, special tokens among them."""
    source, size = random.Random(0), len(demo.hf)
    single = [n for n in range(size) if len(demo.hf.convert_ids_to_tokens(n)) == 1]
    for number in range(300):
        tokens = source.choices(range(size) if number % 2 else single, k=30)
        assert "".join(pieces(demo, tokens)) == demo.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS[:2])
def test_a_tokenizer_in_python_that_ignores_incomplete_bytes(text):
    """One of transformers' slow ones, whose tokens are bytes."""
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text.encode()) + 1
    given = pieces(tokenizer, tokens)
    assert "".join(given) == text and max(map(len, given)) == 1


def test_why_tokenizers_own_stream_does_not_do(demo):
    """It gives the same pieces, but what it holds back when a row ends stays in it."""
    assert [name for name in dir(DecodeStream) if not name.startswith("_")] == ["step"]
    for text in TEXTS:
        tokens = demo.encode(text)
        for end in range(len(tokens) + 1):
            stream, given = DecodeStream(skip_special_tokens=True), pieces(demo, tokens[:end])
            theirs = [stream.step(demo.hf.backend_tokenizer, token) for token in tokens[:end]]
            assert [piece or "" for piece in theirs] == given[:-1]
    assert pieces(demo, demo.encode(TEXTS[-1]))[-1] == "\N{REPLACEMENT CHARACTER}"
