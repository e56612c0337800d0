"""What ends a row, and that nothing of its text is lost there."""

from __future__ import annotations

from pathlib import Path

import pytest

import qwen35
from qwen35.generation.continuation import Continuation
from qwen35.generation.results import Timings
from qwen35.generation.sampling_settings import Sampling
from qwen35.prompts.tokenizer import TextStream

END = 256
TIMINGS = Timings(0.0, 0.0, 0.0, None)


class Bytes:
    """A tokenizer of bytes, and of an end token without text."""

    def decode(self, tokens, skip_special_tokens=False):
        return bytes(token for token in tokens if token != END).decode("utf-8", "replace")


@pytest.fixture
def run():
    """run(content, **settings): a row of these bytes, as far as it goes, and its pieces."""

    def push_all(content, most=99, stop=(), then=(), **more):
        sampling = Sampling(stop=stop, **more)
        row = Continuation(
            id=7,
            max_new_tokens=most,
            sampling=sampling,
            ends=sampling.ends([END]),
            stream=TextStream(Bytes()),
        )
        pieces = []
        for token in [*content, *then]:
            if not row.done:
                pieces.append(row.push(token, None))
        return row, pieces

    return push_all


@pytest.mark.parametrize(
    ("settings", "reason", "count"),
    [
        ({}, None, 6),
        ({"most": 6}, "length", 6),
        ({"most": 5}, "length", 5),
        ({"most": 1}, "length", 1),
        ({"then": [END, 97]}, "stop", 7),
        ({"stop": b"e"}, "stop", 3),
        ({"then": [END, 97], "ignore_eos": True}, None, 8),
        ({"stop": b"e", "ignore_eos": True}, "stop", 3),
        ({"stop": b"e", "most": 3}, "stop", 3),  # both at once: it came to its end
    ],
)
def test_a_row_ends_at_its_end_token_its_stop_token_or_its_length(run, settings, reason, count):
    row, pieces = run(b"abefgh", **settings)
    assert row.finish_reason == reason and row.done == (reason is not None)
    assert len(row.new_tokens) == len(pieces) == count
    assert {piece.row for piece in pieces} == {7}
    assert [piece.token for piece in pieces] == row.new_tokens
    shows = count - (reason == "stop")  # the token that ends it has no text
    said = "abefgha" if "ignore_eos" in settings else "abefgh"
    assert "".join(piece.text for piece in pieces) == row.text == said[:shows]
    if row.done:
        assert row.completed(TIMINGS).tokens == tuple(row.new_tokens)


@pytest.mark.parametrize("last", [{"most": 3}, {"then": [END]}])
def test_a_character_that_is_cut_off_is_not_lost(run, last):
    """Two of its three bytes have come: they end the text, replaced."""
    row, pieces = run(b"a" + "水".encode()[:2], **last)
    assert row.done and row.text == "".join(piece.text for piece in pieces)
    assert row.text == "a\N{REPLACEMENT CHARACTER}"


def shown(pieces):
    return [piece.text for piece in pieces]


@pytest.mark.parametrize(
    ("content", "stop", "pieces"),
    [
        (b"ab\n\ncd", "\n\n", ["a", "b", "", ""]),
        (b"ab\nc", ["\n\n"], ["a", "b", "", "\nc"]),  # it was not the start of one
        (b"aab", ["ab"], ["", "a", ""]),
        (b"xabcabd", ["abd"], ["x", "", "", "abc", "", "", ""]),
        (b"one two", ["wo", "tw"], ["o", "n", "e", " ", "", ""]),
        (b"abc", ["bcd", "c"], ["a", "", "b"]),  # the earliest that is whole
        ("a水b".encode(), ["水"], ["a", "", "", ""]),
    ],
)
def test_a_stop_text_ends_a_row_and_shows_nowhere(run, content, stop, pieces):
    """It is held back while it may still become whole, as is whatever begins like one."""
    row, found = run(content, stop=stop)
    assert shown(found) == pieces and row.text == "".join(pieces)
    text = content.decode()
    places = [text.find(one) for one in ([stop] if isinstance(stop, str) else stop)]
    whole = [place for place in places if place >= 0]
    assert row.finish_reason == ("stop" if whole else None)
    assert row.stopped_by_text == bool(whole)
    assert row.text == text[: min(whole, default=None)]
    assert bytes(row.new_tokens) == content[: len(found)]  # tokens keep what the text leaves out


@pytest.mark.parametrize(
    ("settings", "reason", "text"),
    [
        ({"most": 3}, "length", "ab\n"),  # held back, and never completed
        ({"then": [END]}, "stop", "ab\n"),
        ({"stop": ["\n\n", ord("b")]}, "stop", "a"),  # a stop token does not show either
    ],
)
def test_what_is_held_back_comes_when_a_row_ends_otherwise(run, settings, reason, text):
    row, pieces = run(b"ab\n", **({"stop": ["\n\n"]} | settings))
    assert (row.finish_reason, row.text, row.stopped_by_text) == (reason, text, False)
    assert "".join(shown(pieces)) == text


def test_a_cancelled_row_gives_out_what_it_held(run):
    row, _ = run(b"ab\n", stop=["\n\n"])
    assert row.text == "ab" and row.finish() == "\n" and row.text == "ab\n"


@pytest.mark.parametrize("stop", ["", ["a", ""], [1.5], [True], [-1], [None], 2.5, None])
def test_a_stop_is_a_token_or_a_text(stop):
    with pytest.raises(ValueError, match="stop must be token ids and texts"):
        Sampling(stop=stop)


@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_a_special_token_written_as_a_stop_text_ends_a_row(device):
    """Such a token has no text, in which its own could be found: it ends the row by its id. What
    comes before it is what the model says without it."""
    demo = Path(__file__).resolve().parents[3] / "demo"
    params, tokenizer = qwen35.load(demo, device=device), qwen35.Tokenizer.from_pretrained(demo)
    asked = "<|im_start|>user\nWhat is the emoji for a horse?<|im_end|>\n<|im_start|>assistant\n"
    prompt, end = asked + "<think>\n\n</think>\n\n", "<|im_end|>"
    on = Sampling(ignore_eos=True)
    [free] = qwen35.generate(params, tokenizer, prompt, max_new_tokens=24, sampling=on)
    [token] = tokenizer.hf.encode(end)
    place = free.tokens.index(token)
    assert place < 23
    stopping = Sampling(ignore_eos=True, stop=[end, "🐎"])
    [cut] = qwen35.generate(params, tokenizer, prompt, max_new_tokens=24, sampling=stopping)
    engine = qwen35.Engine(params, tokenizer, slots=2, capacity=128)
    request = engine.submit(prompt, max_new_tokens=24, sampling=stopping)
    other = engine.submit(prompt, max_new_tokens=24, sampling=on)
    list(engine.run())
    assert list(other.new_tokens) == list(free.tokens)
    for found in (cut, request.completion()):
        assert found.tokens == free.tokens[: place + 1] and found.finish_reason == "stop"
        assert found.text == "The emoji for a horse is 🐴."
