"""Parity with transformers in fp32: logits at every position, and greedy tokens.

Tolerance: 1e-4 absolute on logits whose standard deviation is 0.5. transformers' chunked prefill
and its token-by-token decode differ by up to 1e-5 from each other on these models.
"""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

import qwen35
from qwen35.model.params import DeltaNetLayer

TOLERANCE = 1e-4
LENGTHS = [1, 2, 3, 5, 63, 64, 65, 127, 128, 129, 300]
PROMPT, STEPS = 65, 64


def all_logits(params: qwen35.Params, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] at every position of a prompt."""
    state = qwen35.init_state(params, batch=tokens.shape[0], capacity=tokens.shape[1])
    hidden, _ = qwen35.forward(params, state, tokens)
    return qwen35.logits(params, hidden)


def greedy(
    params: qwen35.Params, prompt: torch.Tensor, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens [B, STEPS] and the logits [B, STEPS, V] that chose them, on the CPU.

    On "xla" decode is compiled and its state donated; the prompt is read eagerly on the CPU in
    both cases (test_compiled_forward_at_every_position has the compiled prefill).
    """
    batch, length = prompt.shape
    state = qwen35.init_state(params, batch=batch, capacity=length + STEPS)
    logits, state = qwen35.prefill(params, state, prompt)
    params, state = qwen35.device_put((params, state), device)
    decode = qwen35.jit(qwen35.decode, donate=("state",)) if device == "xla" else qwen35.decode
    chosen, seen = [], []
    for step in range(STEPS):
        seen.append(logits.cpu())
        chosen.append(seen[-1].argmax(-1))
        if step + 1 < STEPS:
            logits, state = decode(params, state, qwen35.device_put(chosen[-1], device))
    return torch.stack(chosen, 1), torch.stack(seen, 1)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_oracle_is_sound(case):
    """transformers agrees with itself, its logits have the scale that the tolerance is for, and
    no step of its greedy path is a near tie: otherwise the tests below would mean nothing."""
    tokens = case.tokens(2, PROMPT + STEPS)
    logits = case.logits(tokens)
    assert 0.4 < logits.std() < 0.7
    torch.testing.assert_close(case.decode(tokens), logits, rtol=0, atol=2e-5)
    _, _, steps = case.greedy(PROMPT, STEPS)
    best, second = steps.topk(2).values.unbind(-1)
    assert (best - second).min() > 5 * TOLERANCE


@pytest.mark.slow
def test_every_tensor_matters(case):
    """Each tensor of the oracle, drawn anew, moves the logits by a hundred tolerances or more."""
    tokens = case.tokens(1, 65)
    before = case.logits(tokens)
    for name, tensor in case.model.named_parameters():
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor.copy_(kept.flatten().roll(1).reshape(kept.shape))
        change = (case.logits(tokens) - before).abs().max()
        with torch.no_grad():
            tensor.copy_(kept)
        if kept.numel() > 1:
            assert change > 100 * TOLERANCE, name


@pytest.mark.parametrize("length", LENGTHS)
def test_prefill_logits_at_every_position(case, load, length):
    tokens = case.tokens(2, length, seed=length)
    assert_close(all_logits(load(case.name), tokens), case.logits(tokens))


def test_prefill_returns_the_logits_of_the_last_token(case, load):
    tokens = case.tokens(2, 70)
    params = load(case.name)
    state = qwen35.init_state(params, batch=2, capacity=70)
    logits, _ = qwen35.prefill(params, state, tokens)
    assert logits.dtype == torch.float32
    assert_close(logits, case.logits(tokens)[:, -1])


def assert_greedy(case, params, device):
    prompt, expected_tokens, expected_logits = case.greedy(PROMPT, STEPS)
    tokens, logits = greedy(params, prompt, device)
    assert tokens.tolist() == expected_tokens.tolist()
    assert_close(logits, expected_logits)


def test_greedy_tokens(case, load):
    """64 greedy steps: the same tokens, and the same logits at each."""
    assert_greedy(case, load(case.name), "cpu")


QUICK = ("attention_first_explicit_types", "conv2_wide_keys_tied", "published_head_sizes")


@pytest.mark.parametrize("name", QUICK)
def test_compiled_greedy_tokens(reference, load, name):
    assert_greedy(reference(name), load(name), "xla")


@pytest.mark.slow
def test_every_other_case_compiled(case, load):
    if case.name in QUICK:
        pytest.skip("compiled by the test above")
    assert_greedy(case, load(case.name), "xla")


def test_compiled_forward_at_every_position(reference, load):
    """Three chunks, the last one short, in one compiled graph."""
    name = "value_heads_x3_gqa6_odd_hidden"
    case, params = reference(name), load(name, "xla")
    tokens = case.tokens(2, 129)
    state = qwen35.init_state(params, batch=2, capacity=129)
    hidden, _ = qwen35.jit(qwen35.forward)(params, state, qwen35.device_put(tokens, "xla"))
    assert_close(qwen35.jit(qwen35.logits)(params, hidden).cpu(), case.logits(tokens))


def test_int32_and_int64_tokens_are_the_same(reference, load):
    case = reference("equal_heads")
    tokens, params = case.tokens(2, 9), load("equal_heads")
    assert torch.equal(all_logits(params, tokens), all_logits(params, tokens.int()))


def test_a_decay_rate_beyond_float32_is_no_nan(reference, load):
    """e^100 is infinite; with a softplus that rounds to 0 the decay is none, exp(-e^100 e^-150)."""
    case, params = reference("equal_heads"), load("equal_heads")
    layers = tuple(
        layer._replace(
            a_log=torch.full_like(layer.a_log, 100.0),
            dt_bias=torch.full_like(layer.dt_bias, -150.0),
        )
        if isinstance(layer, DeltaNetLayer)
        else layer
        for layer in params.layers
    )
    extreme = dataclasses.replace(params, layers=layers)
    assert all_logits(extreme, case.tokens(1, 9)).isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
def test_published_form(text_config, tmp_path, perturb_model, tied):
    """Multimodal names, an `mtp.` tensor, three shards: the text model in it matches."""
    name = "value_heads_x2_tied"
    text = text_config(name, tie_word_embeddings=tied)
    vision = {
        "model_type": "qwen3_5_vision",
        "depth": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 4,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 16,
    }
    config = Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    config._attn_implementation = "eager"
    model = Qwen3_5ForConditionalGeneration(config).eval()
    perturb_model(model, seed=5)
    model.save_pretrained(tmp_path)
    shard_in_three(tmp_path, extra={"mtp.fc.weight": torch.randn(64, 128)})

    tokens = torch.randint(text["vocab_size"], (2, 130))
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
    assert_close(all_logits(qwen35.load(tmp_path), tokens), expected)


@pytest.mark.parametrize("ragged", [False, True])
def test_prefill_leaves_out_what_no_logit_needs(case, ragged):
    """Beside the head, `prefill` does `forward`'s products less those that follow the last layer's
    mixing of tokens, of all tokens but each row's last (counted from the configuration)."""
    batch, length, capacity = 2, 70, 90
    params, tokens = qwen35.load(case.directory), case.tokens(batch, length)
    state = qwen35.init_state(params, batch, capacity)
    lengths = torch.tensor([length, 31]) if ragged else None

    def products(function) -> int:  # multiplications
        with FlopCounterMode(display=False) as counter:
            function(params, state, tokens, lengths)
        return counter.get_total_flops() // 2

    config = params.config
    hidden, others = config.hidden_size, length - 1
    feed_forward = 3 * hidden * config.intermediate_size
    if config.layer_types[-1] == "full_attention":
        width = config.num_attention_heads * config.head_dim
        spared = others * (feed_forward + width * hidden + 2 * width * capacity)
    else:
        spared = others * (feed_forward + config.value_dim * hidden)
    head = batch * hidden * config.vocab_size
    assert products(qwen35.forward) - products(qwen35.prefill) == batch * spared - head


def shard_in_three(directory, extra: dict[str, torch.Tensor]) -> None:
    """Rewrite a single-file checkpoint as three shards and an index, with `extra` tensors."""
    single = directory / "model.safetensors"
    tensors = load_file(single) | extra
    single.unlink()
    names, weight_map = sorted(tensors), {}
    for i in range(3):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        shard = {name: tensors[name].clone() for name in names[i::3]}
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
