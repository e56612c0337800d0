"""`generate` and `stream` on messages with images and videos, against transformers end to end.

Pictures go through our processor, tower and model, and through transformers' own; sizes are such
that nothing is resized, so both see the same patches. Greedy tokens must be identical over 32
steps. The prompts were chosen so that no step is a near tie (`test_oracle_is_sound`).
"""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import qwen35

STEPS = 32
TOLERANCE = 1e-4


def picture(seed, width, height):
    """A few rectangles of colour."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = rng.integers(0, 256, 3)
    for _ in range(4):
        x, y = rng.integers(0, width - 8), rng.integers(0, height - 8)
        pixels[y : y + height // 2, x : x + width // 2] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def image(seed, width, height):
    return {"type": "image", "image": picture(seed, width, height)}


def video(seed, frames, width, height):
    """At two frames per second, so that sampling takes all of them."""
    clip = [picture(seed + number, width, height) for number in range(frames)]
    return {"type": "video", "video": clip, "timestamps": [number / 2 for number in range(frames)]}


def words(text):
    return {"type": "text", "text": text}


def user(*parts):
    return {"role": "user", "content": list(parts)}


CHATS = {
    "words": [user(words("Name a city."))],
    "image_before": [user(image(1, 96, 64), words("What colour is the sky?"))],
    "image_after": [user(words("What is it? Look well:"), image(2, 64, 128))],
    "only_an_image": [user(image(3, 64, 64))],
    "back_to_back": [
        user(words("Two of them:"), image(4, 160, 64), image(5, 64, 160), words("Which?"))
    ],
    "video": [user(words("Watch"), video(6, 6, 64, 64), words("What moved?"))],
    "turns": [
        user(image(7, 96, 96), words("Is it red?")),
        {"role": "assistant", "content": "No, blue."},
        user(video(8, 4, 64, 32), image(9, 64, 64), words("And these?")),
    ],
}


@dataclasses.dataclass(frozen=True)
class Expected:
    """transformers' logits [V] after the prompt, greedy tokens, and each step's least margin."""

    logits: torch.Tensor
    tokens: tuple[int, ...]
    margin: float


@pytest.fixture(scope="session")
def params(multimodal_params):
    """The multimodal checkpoint's, here the only ones."""
    return multimodal_params


@pytest.fixture(scope="session")
def expected(multimodal):
    answers = {}
    for name, chat in CHATS.items():
        parts = [p for m in chat if not isinstance(m["content"], str) for p in m["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        clips = [np.stack(part["video"]) for part in parts if part["type"] == "video"]
        text = multimodal.processor.apply_chat_template(chat, add_generation_prompt=True)
        metadata = [
            {"fps": 2, "total_num_frames": len(clip), "frames_indices": list(range(len(clip)))}
            for clip in clips
        ]
        inputs = multimodal.processor(
            text=[text],
            images=images or None,
            videos=clips or None,
            video_metadata=metadata or None,
            do_sample_frames=False,
            return_tensors="pt",
        )
        with torch.no_grad():
            out = multimodal.model.generate(
                **inputs,
                max_new_tokens=STEPS,
                min_new_tokens=STEPS,
                do_sample=False,
                eos_token_id=-1,
                output_logits=True,
                return_dict_in_generate=True,
            )
        logits = torch.cat(out.logits)
        best = logits.topk(2).values
        tokens = tuple(out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
        answers[name] = Expected(logits[0], tokens, (best[:, 0] - best[:, 1]).min().item())
    return answers


@pytest.fixture(scope="session")
def processor(multimodal):
    return qwen35.Processor.from_pretrained(multimodal.directory)


@pytest.fixture(scope="session")
def endless(params):
    """The parameters, without an end token: all rows run 32 steps."""
    config = dataclasses.replace(params.config, eos_token_id=None)
    return dataclasses.replace(params, config=config)


def test_oracle_is_sound(expected):
    for name, answer in expected.items():
        assert answer.margin > 5 * TOLERANCE, name
        assert len(answer.tokens) == STEPS
    assert len({answer.tokens for answer in expected.values()}) == len(CHATS)


@pytest.mark.parametrize("name", CHATS)
def test_prefill_logits(params, processor, expected, name):
    """The functions as a program calls them: processor, tower, prefill."""
    prompt = processor(CHATS[name])
    embeds = None
    if prompt.images.grid:
        vision = qwen35.encode_images(params.vision, prompt.images.patches, prompt.images.grid)
        embeds = prompt.embeds(vision)
    state = qwen35.init_state(params, batch=1, capacity=prompt.tokens.shape[1])
    logits, _ = qwen35.prefill(
        params, state, prompt.tokens, embeds=embeds, positions=prompt.positions
    )
    torch.testing.assert_close(logits[0], expected[name].logits, rtol=0, atol=TOLERANCE)


def test_bfloat16(multimodal, processor, expected):
    """The tower and the model in bfloat16: as near to fp32 as two decimal digits allow."""
    params = qwen35.load(multimodal.directory, dtype="bfloat16")
    prompt = processor(CHATS["turns"])
    vision = qwen35.encode_images(params.vision, prompt.images.patches, prompt.images.grid)
    assert vision.dtype == torch.bfloat16
    state = qwen35.init_state(params, batch=1, capacity=prompt.tokens.shape[1])
    embeds = prompt.embeds(vision)
    for given in (embeds, embeds.float()):  # any floating dtype is taken
        logits, _ = qwen35.prefill(
            params, state, prompt.tokens, embeds=given, positions=prompt.positions
        )
        likeness = torch.cosine_similarity(logits[0], expected["turns"].logits, dim=0)
        assert likeness > 0.999
    [completion] = qwen35.generate(params, processor, prompt, max_new_tokens=2)
    assert completion.tokens[0] == logits.argmax()


def assert_says(completions, expected, names=CHATS):
    for name, completion in zip(names, completions, strict=True):
        assert completion.tokens == expected[name].tokens, name


def greedy(params, processor, prompts=None, **options):
    prompts = list(CHATS.values()) if prompts is None else prompts
    return qwen35.generate(params, processor, prompts, max_new_tokens=STEPS, **options)


@pytest.mark.parametrize("chunk", [1024, 37, 16])
def test_batch(endless, processor, expected, chunk):
    """All chats at once, of different lengths and picture counts, in whole and in pieces that cut
    images."""
    assert_says(greedy(endless, processor, prefill_chunk=chunk), expected)


@pytest.mark.parametrize("name", CHATS)
def test_alone(endless, processor, expected, name):
    """Messages, and what the processor made of them; not in a list."""
    for prompt in (CHATS[name], processor(CHATS[name])):
        assert_says(greedy(endless, processor, prompt), expected, [name])


def test_compiled(endless, processor, expected):
    """One prefill graph for all pieces, of words and of pictures; then words alone: nothing is
    left of the images before."""
    on_xla = qwen35.device_put(endless, "xla")
    graphs = []
    for names in (list(CHATS), ["words"] * len(CHATS), list(CHATS)):
        chats = [CHATS[name] for name in names]
        said = greedy(on_xla, processor, chats, prefill_chunk=32, capacity=384)
        assert_says(said, expected, names)
        graphs.append(said[0].timings.compile)
    assert graphs[0] > 0 and graphs[1] > 0 and graphs[2] == 0


def test_stream(endless, processor, expected):
    names = ["video", "words"]
    chats = [CHATS[name] for name in names]
    pieces = list(qwen35.stream(endless, processor, chats, max_new_tokens=3))
    for row, name in enumerate(names):
        tokens = tuple(piece.token for piece in pieces if piece.row == row)
        assert tokens == expected[name].tokens[:3]


def test_words_without_a_picture_are_as_before(endless, processor):
    """A text, its tokens, and the same through a plain tokenizer."""
    text = "The capital of France is"
    ids = processor.encode(text)
    ways = [(processor, text), (processor, ids), (processor.tokenizer, text)]
    said = [greedy(endless, tokenizer, prompt)[0] for tokenizer, prompt in ways]
    assert said[0].tokens == said[1].tokens == said[2].tokens
    assert said[0].text == said[2].text


def test_a_text_beside_an_image(endless, processor, expected):
    """The plain text is longer than a piece; it says what it says alone."""
    text = "Name the days of the week, the months of the year and the four seasons, in order: "
    [alone] = greedy(endless, processor, text)
    assert len(processor.encode(text)) > 16
    chats = [text, CHATS["image_after"], processor.encode(text)]
    said = greedy(endless, processor, chats, prefill_chunk=16)
    assert said[0].tokens == said[2].tokens == alone.tokens
    assert said[1].tokens == expected["image_after"].tokens


def test_refusals(multimodal, params, processor):
    chat = CHATS["back_to_back"]

    def refused(message, model, tokenizer, prompts, **options):
        with pytest.raises(ValueError, match=message):
            qwen35.stream(model, tokenizer, prompts, **options)  # at the call, not the first piece

    refused(
        "message 0, part 1: only text can be shown to this model, not .*: pictures need a "
        "checkpoint with vision and its qwen35.Processor",
        params,
        processor.tokenizer,
        chat,
    )
    text_only = qwen35.load(multimodal.directory, vision=False)
    refused("prompt 1 has 2 images .* no vision tower", text_only, processor, ["hello", chat])
    greedy(text_only, processor, CHATS["words"])
    config = dataclasses.replace(params.config, image_token_id=1)
    other = dataclasses.replace(params, config=config)
    refused("prompt 0 was made for another model", other, processor, processor(chat))
    refused(r"prompt 0 has 1 places .* but none of those", params, processor, "a<|image_pad|>")
    places = processor(chat).tokens[0].tolist()
    refused(r"prompt 1 has 20 places", params, processor.tokenizer, ["hello", places])
    refused(r"prompt 0 has 20 places", text_only, processor.tokenizer, [places])
    refused("prompts is empty", params, processor, [])
    refused("prompt 1 is empty", params, processor, ["hello", []])
    refused("over the capacity of 40", params, processor, chat, capacity=40)
