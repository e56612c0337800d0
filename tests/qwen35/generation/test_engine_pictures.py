"""Pictures in the engine and its prefix cache, against `generate`, which knows no cache."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import qwen35
from qwen35.generation.request import cache_keys
from qwen35.prompts import inputs
from qwen35.prompts import processor as processing

STEPS = 10


def image(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST)
    return {"type": "image", "image": picture}


def user(*parts):
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": "user", "content": parts}


@pytest.fixture(scope="module")
def endless(multimodal_params):
    config = dataclasses.replace(multimodal_params.config, eos_token_id=None)
    return dataclasses.replace(multimodal_params, config=config)


@pytest.fixture(scope="module")
def processor(multimodal):
    return qwen35.Processor.from_pretrained(multimodal.directory)


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


def test_another_shape_is_another_prompt(endless, processor, ask):
    """Of one colour, a wide and a tall picture have the same patches and as many tokens."""
    wide, tall = (Image.new("RGB", size, "teal") for size in ((128, 64), (64, 128)))
    engine = engine_for(endless, processor)
    asked = [user("What form? ", {"type": "image", "image": one}) for one in (wide, tall)]
    first, second = (processor([message]) for message in asked)
    assert first.tokens.equal(second.tokens) and first.images.patches.equal(second.images.patches)
    _, size = ask(engine, asked[:1])
    saved, _ = ask(engine, asked[1:])
    assert saved <= int(first.images.index[0]) < size


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


@pytest.fixture
def encoded(monkeypatch):
    """How many patches the vision tower is given, call by call."""
    calls, encode = [], inputs.encode_images

    def counting(vision, patches, grid):
        calls.append(len(patches))
        return encode(vision, patches, grid)

    monkeypatch.setattr(inputs, "encode_images", counting)
    return calls


@pytest.fixture
def patches_for(endless, processor, encoded):
    """patches_for(engine, messages): the request, which is right, and what was encoded for it."""

    def run(engine, messages):
        before = len(encoded)
        request = engine.submit(messages, max_new_tokens=3)
        list(engine.stream(request))
        calls = encoded[before:]
        [alone] = qwen35.generate(endless, processor, [messages], max_new_tokens=3)
        assert request.completion().tokens == alone.tokens
        return request, calls

    return run


def test_pictures_that_the_cache_knows_are_not_encoded(endless, processor, patches_for):
    """Three turns, with a picture in the first and another in the last."""
    engine = engine_for(endless, processor)
    patches = len(processor([user(image(7))]).images.patches)
    turns = [user("Look: ", image(7)), {"role": "assistant", "content": "Yes."}, user("Well?")]
    turns += [{"role": "assistant", "content": "No."}, user("And ", image(8), "?")]
    for end, expected in ((1, [patches]), (3, []), (5, [patches])):
        assert patches_for(engine, turns[:end])[1] == expected


def test_a_picture_that_the_cache_knows_in_part_is_encoded(endless, processor, patches_for):
    """The state that it has lies inside the second of two pictures."""
    engine = engine_for(endless, processor, snapshot_every=1000)
    prompt = processor([user(image(9), image(6), "a")])
    tokens, (_, patches) = prompt.tokens[0].tolist(), (t * h * w for t, h, w in prompt.images.grid)
    inside = int(prompt.images.index[-1]) - 1
    vision = qwen35.encode_images(endless.vision, prompt.images.patches, prompt.images.grid)
    logits, state = qwen35.prefill(
        endless,
        qwen35.init_state(endless, batch=1, capacity=256),
        prompt.tokens[:, :inside],
        embeds=prompt.embeds(vision)[:, :inside],
        positions=prompt.positions[..., :inside],
    )
    engine.adopt(cache_keys(tokens, prompt)[:inside], state, logits)
    request, calls = patches_for(engine, prompt)
    assert request.cached_tokens == inside and calls == [patches]


def test_a_conversation_reads_and_encodes_each_picture_once(
    endless, processor, encoded, monkeypatch
):
    """Over three turns, another answer and an edit; what a later turn adds is read then."""
    decoded, read_image = [], processing.read_image

    def counting(source, **options):
        decoded.append(source)
        return read_image(source, **options)

    monkeypatch.setattr(processing, "read_image", counting)
    engine = engine_for(endless, processor, slots=1)
    chat = qwen35.Chat(engine, processor, thinking=False, max_new_tokens=4)

    def say(request):
        list(engine.stream(request))
        return chat.finish(request)

    first, second = image(10)["image"], image(11)["image"]
    say(chat.ask("What is it?", [first]))
    for text in ("And now?", "Well?"):
        say(chat.ask(text))
    assert decoded == [first] and len(encoded) == 1
    shown = chat.read_image(second)
    assert decoded == [first, second]
    say(chat.ask("This one?", [shown]))
    say(chat.retry())
    say(chat.edit("That one?"))
    assert decoded == [first, second] and len(encoded) == 2
    with pytest.raises(ValueError, match="nowhere"):
        chat.ask("And this?", ["nowhere.png"])
    assert chat.edit("Or that?").tokens and decoded == [first, second, "nowhere.png"]
