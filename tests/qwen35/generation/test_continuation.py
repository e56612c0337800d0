"""What ends a row, and that nothing of its text is lost there."""

from __future__ import annotations

import pytest

from qwen35.generation.continuation import Continuation
from qwen35.generation.results import Timings
from qwen35.generation.sampling import Sampling
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

    def push_all(content, most=99, stop=(), then=()):
        row = Continuation(
            id=7,
            max_new_tokens=most,
            sampling=Sampling(stop=stop),
            ends=frozenset([END]),
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
        ({"stop": b"e", "most": 3}, "stop", 3),  # both at once: it came to its end
    ],
)
def test_a_row_ends_at_its_end_token_its_stop_token_or_its_length(run, settings, reason, count):
    row, pieces = run(b"abefgh", **settings)
    assert row.finish_reason == reason and row.done == (reason is not None)
    assert len(row.new_tokens) == len(pieces) == count
    assert {piece.row for piece in pieces} == {7}
    assert [piece.token for piece in pieces] == row.new_tokens
    assert "".join(piece.text for piece in pieces) == row.text == "abefgh"[:count]
    if row.done:
        assert row.completed(TIMINGS).tokens == tuple(row.new_tokens)


@pytest.mark.parametrize("last", [{"most": 3}, {"then": [END]}])
def test_a_character_that_is_cut_off_is_not_lost(run, last):
    """Two of its three bytes have come: they end the text, replaced."""
    row, pieces = run(b"a" + "水".encode()[:2], **last)
    assert row.done and row.text == "".join(piece.text for piece in pieces)
    assert row.text == "a\N{REPLACEMENT CHARACTER}"
