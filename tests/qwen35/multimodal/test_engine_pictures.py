"""Pictures in the engine and its prefix cache, against `generate`, which knows no cache."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import qwen35

STEPS = 10


def image(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST)
    return {"type": "image", "image": picture}


def user(*parts):
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": "user", "content": parts}


@pytest.fixture(scope="module")
def endless(params):
    config = dataclasses.replace(params.config, eos_token_id=None)
    return dataclasses.replace(params, config=config)


@pytest.fixture(scope="module")
def processor(oracle):
    return qwen35.Processor.from_pretrained(oracle.directory)


@pytest.fixture(scope="module")
def ask(endless, processor):
    """ask(engine, messages): a request that is done and right; the tokens saved and the prompt's
    length."""

    def run(engine, messages):
        request = engine.submit(messages, max_new_tokens=STEPS)
        list(engine.stream(request))
        [alone] = qwen35.generate(endless, processor, [messages], max_new_tokens=STEPS)
        assert request.completion().tokens == alone.tokens
        return request.cached_tokens, len(request.tokens)

    return run


def engine_for(params, processor, **options):
    options = {"slots": 2, "capacity": 256, "prefill_chunk": 8, "snapshot_every": 8} | options
    return qwen35.Engine(params, processor, **options)


def test_another_picture_is_another_prompt(endless, processor, ask):
    engine = engine_for(endless, processor)
    first = user("Look: ", image(1), "What colour?")
    saved, size = ask(engine, [first])
    assert saved == 0
    assert ask(engine, [first]) == (size, size)
    prompt = processor([first])
    before = int(prompt.images.index[0])
    saved, other_size = ask(engine, [user("Look: ", image(2), "What colour?")])
    assert other_size == size and saved <= before
    saved, _ = ask(engine, [user("Look: ", image(1), "And what form?")])
    assert saved > before, "the same picture is not read again"


def test_a_second_picture_goes_on_from_the_first(endless, processor, ask):
    engine = engine_for(endless, processor)
    turns = [user(image(3), "Is it red?"), {"role": "assistant", "content": "No."}]
    _, size = ask(engine, turns[:1])
    saved, _ = ask(engine, [*turns, user("And ", image(4), "?")])
    assert saved >= size - 8


def test_pictures_and_words_side_by_side(endless, processor):
    """Rows with and without pictures decode together; without a cache, too."""
    chats = [[user(image(5), "a")], [user("only words")], [user("b", image(6))]]
    expected = qwen35.generate(endless, processor, chats, max_new_tokens=STEPS)
    engine = engine_for(endless, processor, cache_bytes=0)
    requests = [engine.submit(processor(chat), max_new_tokens=STEPS) for chat in chats]
    for _ in engine.run():
        pass
    for request, completion in zip(requests, expected, strict=True):
        assert request.completion().tokens == completion.tokens
