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
    """It gives the same text, later; and what it holds back when a row ends stays in it."""
    assert [name for name in dir(DecodeStream) if not name.startswith("_")] == ["step"]
    for text in TEXTS:
        tokens = demo.encode(text)
        for end in range(len(tokens) + 1):
            stream, given = DecodeStream(skip_special_tokens=True), pieces(demo, tokens[:end])
            theirs = [stream.step(demo.hf.backend_tokenizer, token) for token in tokens[:end]]
            assert "".join(given[:-1]).startswith("".join(piece or "" for piece in theirs))
    assert pieces(demo, demo.encode(TEXTS[-1]))[-1] == "\N{REPLACEMENT CHARACTER}"


class Counting:
    """A tokenizer that notes the longest run it has been asked to decode."""

    def __init__(self, tokenizer):
        self.tokenizer, self.longest = tokenizer, 0

    def decode(self, tokens, skip_special_tokens=False):
        self.longest = max(self.longest, len(tokens))
        return self.tokenizer.decode(tokens, skip_special_tokens)


@pytest.mark.parametrize("kind", ["continuation bytes", "cut characters", "special", "mixed"])
def test_bytes_that_complete_nothing_are_held_back_no_longer_than_a_character(demo, kind):
    """Python's own decoding of the bytes says what the text is."""
    vocabulary = {"a": demo.encode("a")[0], "special": demo.encode("<|im_start|>")[0]}
    first, second, third = demo.encode("水")
    run = {
        "continuation bytes": [third],
        "cut characters": [first, second],
        "special": [vocabulary["special"]],
        "mixed": [third, first, first, vocabulary["special"], second, third, first, second],
    }[kind]
    data = {first: "水".encode()[:1], second: "水".encode()[1:2], third: "水".encode()[2:]}
    counting = Counting(demo)
    stream, given, seen = TextStream(counting), "", b""
    for token in (run * 2000)[:2000]:
        given += stream.push(token)
        seen += data.get(token, b"")
        text = seen.decode("utf-8", "replace")
        assert text.startswith(given) and len(text) - len(given) <= 3
    assert given + stream.finish() == text and counting.longest < 20


def test_what_comes_before_an_open_character_is_given_out(demo):
    class Whole:
        """Tokens of several bytes, the last of which are open."""

        parts = (b"abc \xe6", b"\xb0", b"\xb4 and \xf0\x9f", b"\x98\x80")

        def decode(self, tokens, skip_special_tokens=False):
            return b"".join(self.parts[token] for token in tokens).decode("utf-8", "replace")

    assert pieces(Whole(), range(4)) == ["abc ", "", "水 and ", "😀", ""]
