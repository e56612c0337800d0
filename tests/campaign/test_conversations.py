"""Conversations in an engine, drawn at random: what each says is what it says alone.

Prompts go on from what was said before, in slots that are few and grow, beside copies that wait for
the prefix cache, which holds little.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

from oracle import Fault

import qwen35

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "qwen35" / "generation"))

from engine_faults import CONFIG, Letters, check_whole

MOST = 48  # tokens that a slot may come to hold
FREE = qwen35.Sampling(ignore_eos=True)


class Turn(NamedTuple):
    """A request: the one that it goes on from, if any, its own tokens, how many it gets, and the
    steps that are taken before it comes."""

    before: int | None
    tokens: list[int]
    new_tokens: int
    steps: int


class Talk(NamedTuple):
    """An engine's settings, and what is asked of it."""

    settings: dict[str, Any]
    turns: list[Turn]


def drawn(draw: random.Random) -> Talk:
    """Draws an engine and some requests, all of which fit what slots may come to hold."""
    chunk = draw.choice((8, 16))
    settings = {
        "slots": draw.choice((1, 1, 2, 3)),
        "capacity": draw.choice((chunk, 2 * chunk, 2 * chunk, MOST)),
        "max_capacity": MOST,
        "prefill_chunk": chunk,
        "prefill_sizes": draw.choice((1, 2)),
        "snapshot_every": draw.choice((chunk, 4 * chunk)),
        "cache_bytes": draw.choice((20_000, 2**24)),
    }
    turns: list[Turn] = []
    lengths: list[int] = []
    for number in range(draw.randrange(2, 7)):
        before = draw.choice([None, *range(number)])
        start = 0 if before is None else lengths[before]
        own, new = draw.randrange(1, draw.choice((4, 32))), draw.choice((1, 3, 9))
        if start + own + new > MOST:
            before, start = None, 0
        tokens = [draw.randrange(CONFIG.vocab_size) for _ in range(own)]
        turns.append(Turn(before, tokens, new, draw.choice((0, 0, 0, 2, 9))))
        lengths.append(start + own + new)
    return Talk(settings, turns)


def check(talk: Talk) -> None:
    """Lets an engine answer, in steps between which the next comes, and each alone."""
    engine = qwen35.Engine(PARAMS, Letters(), **talk.settings)
    requests: list[qwen35.Request] = []
    for turn in talk.turns:
        for _ in range(turn.steps):
            engine.step()
            check_whole(engine, requests)
        prompt = turn.tokens
        if turn.before is not None:
            earlier = requests[turn.before]
            while not earlier.done:
                engine.step()
            prompt = [*earlier.tokens, *earlier.new_tokens, *turn.tokens]
        requests.append(engine.submit(prompt, max_new_tokens=turn.new_tokens, sampling=FREE))
    for _ in engine.run():
        check_whole(engine, requests)
    for number, request in enumerate(requests):
        how = {"max_new_tokens": talk.turns[number].new_tokens, "sampling": FREE}
        [alone] = qwen35.generate(PARAMS, Letters(), [list(request.tokens)], **how)
        if tuple(request.new_tokens) != alone.tokens:
            raise Fault(f"request {number} gets {request.new_tokens}, alone {alone.tokens}")


PARAMS = qwen35.init_params(CONFIG)


def test_conversations(campaign):
    campaign.try_all("conversations", drawn, check)
