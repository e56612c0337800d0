"""Weights whose rows XLA:CPU has further apart: where, and that nobody sees it in a result."""

import dataclasses
import functools

import pytest
import torch
from torch.utils import _pytree

import qwen35
from qwen35 import pytree
from qwen35.config import VisionConfig
from qwen35.declarations import declarations, declare
from qwen35.linear import linear, place_weight

# Sums of up to 2,048 terms in another order, at logits and activations near 1.
assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=2e-5)

# Every linear map of this model gives a multiple of 1,024 columns: 4 KiB in float32.
CONFIG = dataclasses.replace(
    qwen35.presets["0.8b"],
    vocab_size=64,
    hidden_size=1024,
    intermediate_size=2048,
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
    num_attention_heads=12,
    num_key_value_heads=4,
    head_dim=32,
    linear_num_key_heads=16,
    linear_key_head_dim=16,
    linear_num_value_heads=16,
    linear_value_head_dim=15,
    partial_rotary_factor=0.5,
    mrope_section=(4, 2, 2),
    image_token_id=60,
    video_token_id=61,
    vision=VisionConfig(
        depth=1,
        hidden_size=1024,
        num_heads=16,
        intermediate_size=1024,
        patch_size=4,
        out_hidden_size=1024,
        num_position_embeddings=16,
    ),
)


@pytest.fixture(scope="module")
def params() -> dict[str, qwen35.Params]:
    """The same parameters as both devices have them."""
    return {device: qwen35.init_params(CONFIG, device=device) for device in ("cpu", "xla")}


def poisoned(tree, declared):
    """The tree on XLA with NaN in every column that is not declared."""

    def poison(parameter, tensor):
        tensor = qwen35.device_put(tensor, "cpu").clone()
        tensor[..., parameter.shape[-1] :] = float("nan")
        return qwen35.device_put(tensor, "xla")

    return _pytree.tree_map(poison, declared, tree)


@pytest.mark.parametrize(
    ("width", "dtype", "stored"),
    [
        (1024, torch.float32, 1040),
        (7168, torch.float32, 7184),
        (1000, torch.float32, 1000),
        (1536, torch.float32, 1536),
        (1024, torch.bfloat16, 1024),
        (2048, torch.bfloat16, 2080),
    ],
)
def test_rows_are_set_apart_where_they_are_a_multiple_of_4_kib(width, dtype, stored):
    weight = torch.arange(3.0 * width).view(3, width).to(dtype)
    placed = qwen35.device_put(place_weight(weight, "xla"), "cpu")
    assert placed.shape == (3, stored)
    assert torch.equal(placed[:, :width], weight) and not placed[:, width:].any()
    assert place_weight(weight, "cpu") is weight


def test_linear_cuts_off_what_is_beyond_its_width():
    x, weight = torch.randn(2, 5), torch.randn(5, 7)
    assert torch.equal(linear(x, weight, 7), x @ weight)
    assert torch.equal(linear(x, weight, 4), (x @ weight)[:, :4])


def test_every_linear_weight_is_set_apart_and_nothing_else(params):
    declared = list(declarations(declare(CONFIG)))
    here, there = (pytree.tensors(params[device]) for device in ("cpu", "xla"))
    assert [tuple(tensor.shape) for tensor in here] == [entry.shape for entry in declared]
    wider = [theirs.shape[-1] - ours.shape[-1] for ours, theirs in zip(here, there, strict=True)]
    assert wider == [16 if entry.linear else 0 for entry in declared]
    # Per text layer its mixer's two and the feed-forward's two; four in a block, two in the merger.
    assert sum(entry.linear for entry in declared) == 4 * 2 + 4 + 2


@pytest.mark.parametrize("inputs", [8, 1024, 2047, 2048])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (1, 3)])
def test_linear_of_a_placed_weight(inputs, shape):
    """Also of one row, where a tall weight's rows are taken in parts."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, inputs, generator=generator)
    weight = torch.randn(inputs, 1024, generator=generator) / inputs**0.5
    placed = place_weight(weight, "xla")
    product = qwen35.jit(lambda x, weight: linear(x, weight, 1024))
    ours = product(qwen35.device_put(x, "xla"), placed)
    assert_close(qwen35.device_put(ours, "cpu"), (x.double() @ weight.double()).float())


@pytest.mark.parametrize("batch", [1, 2])
def test_extra_columns_have_no_effect_on_logits_and_state(params, batch):
    spaced = poisoned(params["xla"], declare(CONFIG))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 60, (2, 70), generator=generator)[:batch]
    lengths = torch.tensor([70, 33])[:batch]
    results = []
    for tree, wrap in ((params["cpu"], lambda step: step), (spaced, qwen35.jit)):
        device = tree.device.type
        state = qwen35.init_state(tree, batch, 80)
        put = functools.partial(qwen35.device_put, device=device)
        first, state = wrap(qwen35.prefill)(tree, state, put(tokens), put(lengths))
        hidden, _ = wrap(qwen35.forward)(tree, state, put(tokens[:, :3].contiguous()))
        second, state = wrap(qwen35.decode)(tree, state, put(tokens[:, 0].contiguous()))
        results.append(qwen35.device_put((first, second, hidden, state), "cpu"))
    for ours, theirs in zip(*map(_pytree.tree_leaves, results), strict=True):
        assert_close(ours, theirs)


def test_extra_columns_as_wide_as_a_head_are_none():
    config = dataclasses.replace(
        CONFIG.text_only(),
        head_dim=8,
        num_attention_heads=48,
        num_key_value_heads=16,
        mrope_section=(1, 1, 0),
    )
    results = []
    for device in ("cpu", "xla"):
        tree = qwen35.init_params(config, device=device)
        token = qwen35.device_put(torch.tensor([7]), device)
        logits, _ = qwen35.decode(tree, qwen35.init_state(tree, 1, 8), token)
        results.append(qwen35.device_put(logits, "cpu"))
    assert_close(*results)


def test_extra_columns_have_no_effect_on_image_tokens(params):
    spaced = poisoned(params["xla"].vision, declare(CONFIG).vision)
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2 * 24, CONFIG.vision.patch_dim, generator=generator)
    grid = [(1, 4, 6), (1, 6, 4)]
    expected = qwen35.encode_images(params["cpu"].vision, patches, grid)
    assert expected.abs().mean() > 1e-3
    assert_close(qwen35.encode_images(spaced, patches, grid), expected)


def test_a_saved_and_loaded_model_does_not_show_it(params, tmp_path):
    for device, tree in params.items():
        qwen35.save(tree, tmp_path / device)
    files = [(tmp_path / device / "model.safetensors").read_bytes() for device in params]
    assert files[0] == files[1]
    loaded = qwen35.load(tmp_path / "xla", device="xla")
    for ours, theirs in zip(*map(pytree.tensors, (loaded, params["xla"])), strict=True):
        assert torch.equal(qwen35.device_put(ours, "cpu"), qwen35.device_put(theirs, "cpu"))
