"""The public `choose`: a loop with it writes what `generate` writes, which other tests hold to
transformers and to known distributions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qwen35

DEMO = Path(__file__).resolve().parents[3] / "demo"
PROMPTS = ["The opposite of hot is", "Once upon a time, there was a"]
NEW_TOKENS = 10
SETTINGS = {
    "the likeliest": qwen35.Sampling(),
    "a bias and a ban": qwen35.Sampling(logit_bias={17: 30.0}, banned=[18]),
    "drawn from few": qwen35.Sampling(temperature=2.0, top_k=20, seed=5),
    "drawn from all, one for each row": [
        qwen35.Sampling(temperature=1.5, top_p=0.98, seed=6),
        qwen35.Sampling(temperature=3.0, min_p=0.01, seed=7, banned=[3]),
    ],
}
SMALL = qwen35.Config(
    vocab_size=qwen35.Config.from_pretrained(DEMO).vocab_size,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    linear_num_key_heads=1,
    linear_num_value_heads=2,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
)


def following(params, state, token, sampling):
    logits, state = qwen35.decode(params, state, token)
    return qwen35.choose(logits, sampling, state.position), state


def written(params, rows, sampling, *, traced):
    """A loop of one's own, the choice outside or inside the traced function."""
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    tokens, lengths = qwen35.device_put((tokens, lengths), params.device.type)
    state = qwen35.init_state(params, len(rows), 64)
    logits, state = qwen35.prefill(params, state, tokens, lengths)
    step = qwen35.jit(following) if traced else following
    if params.device.type == "xla" and not traced:
        decode = qwen35.jit(qwen35.decode)

        def step(params, state, token, sampling):
            logits, state = decode(params, state, token)
            return qwen35.choose(logits, sampling, state.position), state

    chosen = [qwen35.choose(logits, sampling, state.position)]
    while len(chosen) < NEW_TOKENS:
        token, state = step(params, state, chosen[-1], sampling)
        chosen.append(token)
    return torch.stack(qwen35.device_put(chosen, "cpu"), dim=1).tolist()


@pytest.mark.parametrize(
    ("name", "device", "traced"),
    [
        *((name, "cpu", False) for name in SETTINGS),
        *(("drawn from all, one for each row", "xla", traced) for traced in (False, True)),
    ],
)
def test_a_loop_writes_what_generate_writes(name, device, traced):
    if device == "xla":  # two layers are compiled sooner
        params = qwen35.init_params(SMALL, device=device)
    else:
        params = qwen35.load(DEMO)
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    rows = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert len({len(row) for row in rows}) == len(rows)
    sampling = SETTINGS[name]
    expected = qwen35.generate(
        params, tokenizer, rows, max_new_tokens=NEW_TOKENS, sampling=sampling, capacity=64
    )
    given = tuple(sampling) if isinstance(sampling, list) else sampling
    for own, completion in zip(written(params, rows, given, traced=traced), expected, strict=True):
        assert tuple(own[: len(completion.tokens)]) == completion.tokens
    plain = qwen35.generate(params, tokenizer, rows, max_new_tokens=NEW_TOKENS, capacity=64)
    other = [row.tokens for row in expected] != [row.tokens for row in plain]
    assert other == (name != "the likeliest"), "the settings change nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(7)}, r"logits must be \[batch, vocabulary\], not \[7\]"),
        ({"sampling": [qwen35.Sampling()]}, "sampling has 1 entries for 2 rows"),
        ({"sampling": qwen35.Sampling(temperature=1)}, "a draw goes by the position"),
        (
            {"sampling": qwen35.Sampling(temperature=1), "position": torch.zeros(3)},
            r"position must be \[2\], one a row, not \[3\]",
        ),
        ({"sampling": qwen35.Sampling(banned=[7])}, "banned has token id 7"),
        ({"sampling": qwen35.Sampling(presence_penalty=1)}, "generate and Engine do them"),
        ({"sampling": qwen35.Sampling(json_schema={})}, "generate and Engine do them"),
        ({"sampling": qwen35.Sampling(logprobs=1)}, "generate and Engine do them"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        qwen35.choose(**{"logits": torch.zeros(2, 7), **arguments})
