"""`prefill`, `forward` and `decode` on prompts with images, against transformers' whole model.

The vision embeddings are transformers' own here: these tests need no tower of ours. Tolerance on
logits: 1e-4 absolute at a standard deviation of 0.5, as in test_parity.
"""

import copy
import dataclasses

import pytest
import torch
from transformers import Qwen3_5ForConditionalGeneration

import qwen35
from qwen35.model.beside import prefill_and_decode_share

TOLERANCE = 1e-4
CAPACITY = 192


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt [1, T], what our functions take with it, and what transformers says to it.

    logits [T + 8, V]: at every prompt token and eight greedy tokens, `following`, after it.
    """

    tokens: torch.Tensor
    embeds: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor
    following: torch.Tensor


# Each item is a count of words, or an image's grid in patches (merged 2 x 2 to tokens). A video
# is a list of equal grids, its frames, with a word or two before each.
PROMPTS = {
    "text_image_text": [5, (1, 6, 10), 9],
    "wide_then_tall_back_to_back": [2, (1, 2, 12), 1, (1, 14, 4), 3],
    "only_an_image": [(1, 8, 8)],
    "image_last": [70, (1, 4, 6)],
    "long_image_first": [1, (1, 18, 16), 2],
    "video": [4, [(1, 4, 6)] * 3, 5, (1, 4, 4), 2],
}


def build(multimodal, items) -> Example:
    generator = torch.Generator().manual_seed(len(items))
    ids, tokens = multimodal.ids, []
    grids = {"image": [], "video": []}
    kinds = []

    def words(count):
        tokens.extend(torch.randint(900, (count,), generator=generator).tolist())

    def picture(grid, kind):
        tokens.extend([ids[kind]] * (grid[1] * grid[2] // 4))
        kinds.append(kind)

    for item in items:
        if isinstance(item, int):
            words(item)
        elif isinstance(item, tuple):
            picture(item, "image")
            grids["image"].append(item)
        else:
            for frame in item:
                words(2)
                picture(frame, "video")
            grids["video"].append((len(item), *item[0][1:]))
    inputs = {"input_ids": torch.tensor([tokens])}
    features = {}
    model = multimodal.model
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            grid = torch.tensor(grids[kind])
            pixels = torch.randn(int(grid.prod(1).sum()), 1536, generator=generator)
            inputs |= {name: pixels, f"{kind}_grid_thw": grid}
            with torch.no_grad():
                get = getattr(model, f"get_{kind}_features")
                features[kind] = torch.cat(get(pixels, grid).pooler_output)
    ids_row = inputs["input_ids"]
    types = (ids_row == ids["image"]).int() + 2 * (ids_row == ids["video"]).int()
    positions, _ = model.model.get_rope_index(
        ids_row, types, inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
    )
    embeds = torch.full((1, len(tokens), model.config.text_config.hidden_size), float("nan"))
    for kind, feature in features.items():
        embeds[:, (ids_row == ids[kind])[0]] = feature
    following, rows = [], []
    with torch.no_grad():
        model.model.rope_deltas = None
        out = model(**inputs, mm_token_type_ids=types, use_cache=True)
        rows.append(out.logits[0])
        for _ in range(8):
            following.append(rows[-1][-1].argmax())
            past = out.past_key_values
            out = model(following[-1].view(1, 1), past_key_values=past, use_cache=True)
            rows.append(out.logits[0])
    return Example(ids_row, embeds, positions, torch.cat(rows), torch.stack(following))


@pytest.fixture(scope="session")
def params(multimodal_params):
    """The multimodal checkpoint's, here the only ones."""
    return multimodal_params


@pytest.fixture(scope="session")
def examples(multimodal):
    return {name: build(multimodal, items) for name, items in PROMPTS.items()}


@pytest.fixture(params=PROMPTS)
def example(request, examples):
    return examples[request.param]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


def feed(params, state, example, start, stop, function=qwen35.prefill):
    """The tokens from `start` to `stop` of a prompt."""
    piece = slice(start, stop)
    return function(
        params,
        state,
        example.tokens[:, piece],
        embeds=example.embeds[:, piece],
        positions=example.positions[:, :, piece],
    )


def assert_continues(params, state, example):
    """Eight greedy tokens, decoded with nothing but the state."""
    length = example.tokens.shape[1]
    for step, token in enumerate(example.following):
        logits, state = qwen35.decode(params, state, token[None])
        assert_close(logits[0], example.logits[length + step])


def test_logits_at_every_position_and_decode_after(params, example):
    """The NaN that stands at every word of `embeds` is not looked at."""
    state = qwen35.init_state(params, batch=1, capacity=CAPACITY)
    hidden, after = feed(params, state, example, 0, None, qwen35.forward)
    length = example.tokens.shape[1]
    assert_close(qwen35.logits(params, hidden)[0], example.logits[:length])
    assert after.position.tolist() == [length]
    assert after.rope_offset.item() == example.positions.max() + 1 - length
    assert_continues(params, after, example)


def test_every_split_equals_one_shot(params, example):
    """Two pieces at every offset, inside images too; decode follows from each."""
    length = example.tokens.shape[1]
    empty = qwen35.init_state(params, batch=1, capacity=CAPACITY)
    for cut in range(1, length):
        _, state = feed(params, empty, example, 0, cut)
        assert state.rope_offset.item() == example.positions[..., :cut].max() + 1 - cut
        logits, state = feed(params, state, example, cut, None)
        assert_close(logits[0], example.logits[length - 1])
        assert state.rope_offset.item() == example.positions.max() + 1 - length
        logits, _ = qwen35.decode(params, state, example.following[:1])
        assert_close(logits[0], example.logits[length])


def test_one_token_at_a_time(params, examples):
    example = examples["wide_then_tall_back_to_back"]
    state = qwen35.init_state(params, batch=1, capacity=CAPACITY)
    for at in range(example.tokens.shape[1]):
        logits, state = feed(params, state, example, at, at + 1)
        assert_close(logits[0], example.logits[at])
    assert_continues(params, state, example)


def test_a_prompt_read_beside_rows_that_are_decoded(params, example):
    """Embeds and positions are those of the prompt alone."""
    others = torch.tensor([[11, 12, 13], [14, 15, 16]])
    rows = qwen35.init_state(params, batch=2, capacity=CAPACITY)
    _, rows = qwen35.prefill(params, rows, others[:, :2])
    expected, after = qwen35.decode(params, rows, others[:, 2])
    length = torch.tensor([example.tokens.shape[1]])
    row = qwen35.init_state(params, batch=1, capacity=CAPACITY)
    prompt = (example.tokens, length, example.embeds, example.positions)
    decoded = (rows, others[:, 2], torch.tensor([True, True]))
    read, row, logits, rows = prefill_and_decode_share(params, row, *prompt, *decoded)
    assert_close(read[0], example.logits[length.item() - 1])
    assert_continues(params, row, example)
    assert_close(logits, expected)
    assert rows.position.tolist() == after.position.tolist() == [3, 3]
    assert rows.rope_offset.tolist() == [0, 0]


def test_text_alone_after_an_image(params, examples):
    """The words after the last image need neither embeds nor positions: the state knows."""
    example = examples["text_image_text"]
    state = qwen35.init_state(params, batch=1, capacity=CAPACITY)
    _, state = feed(params, state, example, 0, 20)
    logits, state = qwen35.prefill(params, state, example.tokens[:, 20:])
    assert_close(logits[0], example.logits[example.tokens.shape[1] - 1])
    assert_continues(params, state, example)


def test_positions_alone_and_embeds_alone(params, examples):
    """Each has its own effect: text positions are what positions=None means, and words' own
    embeddings what embeds=None means."""
    example = examples["text_image_text"]
    state = qwen35.init_state(params, batch=1, capacity=CAPACITY)
    text = torch.arange(29).expand(3, 1, 29)
    words, after = qwen35.prefill(params, state, example.tokens, positions=text)
    plain, expected = qwen35.prefill(params, state, example.tokens)
    torch.testing.assert_close(words, plain, rtol=0, atol=1e-6)
    assert after.rope_offset.tolist() == expected.rope_offset.tolist() == [0]
    seen, after = qwen35.prefill(params, state, example.tokens, embeds=example.embeds)
    assert (seen - plain).abs().max() > 100 * TOLERANCE
    assert after.rope_offset.tolist() == [0]


def ragged(examples, names, poison):
    """The prompts in one batch, padded with `poison` in tokens, embeds and positions."""
    rows = [examples[name] for name in names]
    lengths = torch.tensor([row.tokens.shape[1] for row in rows])
    width = int(lengths.max()) + 3
    tokens = torch.full((len(rows), width), poison)
    embeds = torch.full((len(rows), width, rows[0].embeds.shape[2]), float("nan"))
    positions = torch.full((3, len(rows), width), poison)
    for b, row in enumerate(rows):
        n = int(lengths[b])
        tokens[b, :n], embeds[b, :n] = row.tokens[0], row.embeds[0]
        positions[:, b, :n] = row.positions[:, 0]
    return rows, tokens, lengths, embeds, positions


@pytest.mark.parametrize("poison", ["image_token", -(2**31), 2**31 - 1])
def test_rows_of_a_batch_are_independent(params, multimodal, examples, poison):
    """Different lengths and image counts; what stands beyond a row's end has no effect."""
    poison = multimodal.ids["image"] if poison == "image_token" else poison
    rows, *batch = ragged(examples, PROMPTS, poison)
    state = qwen35.init_state(params, batch=len(rows), capacity=CAPACITY)
    logits, state = qwen35.prefill(params, state, *batch)
    for b, row in enumerate(rows):
        length = row.tokens.shape[1]
        assert_close(logits[b], row.logits[length - 1])
        assert state.rope_offset[b] == row.positions.max() + 1 - length
    for step in range(8):
        token = torch.stack([row.following[step] for row in rows])
        logits, state = qwen35.decode(params, state, token)
        for b, row in enumerate(rows):
            assert_close(logits[b], row.logits[row.tokens.shape[1] + step])


def test_a_row_of_length_zero_keeps_its_state(params, examples):
    """Also its offset, when it has one."""
    rows, tokens, lengths, embeds, positions = ragged(examples, ["image_last", "video"], 7)
    state = qwen35.init_state(params, batch=2, capacity=CAPACITY)
    _, state = qwen35.prefill(params, state, tokens, lengths, embeds, positions)
    none = torch.tensor([0, 2])
    logits, after = qwen35.prefill(params, state, tokens, none, embeds, positions + 200)
    assert torch.count_nonzero(logits[0]) == 0
    assert after.position[0] == state.position[0]
    assert after.rope_offset[0] == state.rope_offset[0] == rows[0].positions.max() + 1 - lengths[0]
    assert after.rope_offset[1] != state.rope_offset[1]
    for new, old in zip(after.layers, state.layers, strict=True):
        assert all(torch.equal(a[0], b[0]) for a, b in zip(new, old, strict=True))


def test_compiled(params, examples):
    """One graph for every piece of a prompt, and one for what follows."""
    example = examples["long_image_first"]
    prefill, decode = qwen35.jit(qwen35.prefill, donate=("state",)), qwen35.jit(qwen35.decode)
    params = qwen35.device_put(params, "xla")
    state = qwen35.init_state(params, batch=1, capacity=CAPACITY)
    length, chunk = example.tokens.shape[1], 32
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        tokens, positions = torch.full((1, chunk), 2**30), torch.full((3, 1, chunk), 2**30)
        embeds = torch.full((1, chunk, example.embeds.shape[2]), float("nan"))
        tokens[:, : stop - start] = example.tokens[:, start:stop]
        embeds[:, : stop - start] = example.embeds[:, start:stop]
        positions[..., : stop - start] = example.positions[..., start:stop]
        lengths = torch.tensor([stop - start])
        piece = qwen35.device_put((tokens, lengths, embeds, positions), "xla")
        logits, state = prefill(params, state, *piece)
        assert_close(logits.cpu()[0], example.logits[stop - 1])
    for step, token in enumerate(example.following):
        logits, state = decode(params, state, qwen35.device_put(token[None], "xla"))
        assert_close(logits.cpu()[0], example.logits[length + step])
    assert prefill.compile_count == decode.compile_count == 1


def test_wrong_shapes(params, examples):
    example = examples["text_image_text"]
    state = qwen35.init_state(params, batch=1, capacity=CAPACITY)
    tokens, embeds, positions = example.tokens, example.embeds, example.positions

    def refused(message, **arguments):
        with pytest.raises(ValueError, match=message):
            qwen35.prefill(params, state, tokens, **arguments)

    refused(r"embeds must be \[1, 29, 64\] floating, not \[1, 29, 63\]", embeds=embeds[..., 1:])
    refused(r"embeds must be .* not \[1, 29, 64\] torch.int64", embeds=embeds.nan_to_num().long())
    refused(r"positions must be \[3, 1, 29\] int32 or int64", positions=positions[0])
    refused(r"positions must be .*float32", positions=positions.float())
    refused("must not be negative: -1 is", positions=positions - 1)
    refused("embeds is on meta", embeds=embeds.to("meta"))


def test_rows_of_pictures_under_yarn(multimodal, tmp_path):
    """Rotary rows of pictures are stretched as those of text; decode goes on behind them."""
    config = copy.deepcopy(multimodal.model.config)
    rope = config.text_config.rope_parameters
    config.text_config.rope_parameters = rope | {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    model = Qwen3_5ForConditionalGeneration(config).eval()
    model.load_state_dict(multimodal.model.state_dict())
    model.save_pretrained(tmp_path)
    oracle = dataclasses.replace(multimodal, model=model)
    params = qwen35.load(tmp_path)
    assert params.config.yarn is not None
    for items in ([5, (1, 6, 10), 9], [2, (1, 2, 12), 1, (1, 14, 4), 3]):
        example = build(oracle, items)
        state = qwen35.init_state(params, batch=1, capacity=192)
        length = example.tokens.shape[1]
        _, state = feed(params, state, example, 0, 9)
        logits, state = feed(params, state, example, 9, length)
        assert_close(logits[0], example.logits[length - 1])
        assert_continues(params, state, example)
