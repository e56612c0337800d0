"""Weights as XLA:CPU stores them and products with them: nobody sees either in a result."""

import dataclasses
import functools

import pytest
import torch
from torch.utils import _pytree

import qwen35
from qwen35 import forms
from qwen35.forms import SpacedWeight, dense
from qwen35.forms.xla_cpu.thin import is_thin, thin_matmul
from qwen35.model.config import VisionConfig
from qwen35.model.declarations import declarations, declare
from qwen35.xla import devices, trees

# Sums of up to 2,048 terms in another order, at logits and activations near 1.
assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=2e-5)

# Every linear map of this model gives a multiple of 1,024 columns: 4 KiB in float32.
PLAIN, XLA_CPU = forms.get("plain"), forms.get("xla_cpu")
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


def poisoned(tree):
    """The tree on XLA with NaN in every column that is not declared."""

    def poison(leaf):
        if not isinstance(leaf, SpacedWeight):
            return leaf
        storage = leaf.storage.cpu()
        storage[:, leaf.width :] = float("nan")
        return SpacedWeight(qwen35.device_put(storage, "xla"), leaf.width)

    return _pytree.tree_map(poison, tree, is_leaf=forms.is_special)


@pytest.mark.parametrize(
    ("width", "dtype", "stored"),
    [
        (1024, torch.float32, 1040),
        (7168, torch.float32, 7184),
        (7, torch.float32, 23),
        (1024, torch.bfloat16, 1056),
    ],
)
def test_a_cache_line_of_zeros_follows_each_row(width, dtype, stored):
    weight = torch.arange(3.0 * width).view(3, width).to(dtype)
    placed = XLA_CPU.place(weight, "xla")
    assert placed.shape == weight.shape and placed.dtype == dtype and len(placed) == 3
    storage = placed.storage.cpu()
    if dtype == torch.bfloat16:  # its bits
        assert storage.dtype == torch.int16
        storage = storage.view(dtype)
    assert storage.shape == (3, stored)
    assert torch.equal(storage[:, :width], weight) and not storage[:, width:].any()
    assert torch.equal(dense(placed).cpu(), weight)
    assert XLA_CPU.place(weight, "cpu") is weight and PLAIN.place(weight, "cpu") is weight


def test_every_linear_weight_is_spaced_and_nothing_else(params):
    declared = list(declarations(declare(CONFIG)))
    for device, tree in params.items():
        leaves = _pytree.tree_leaves(tree, is_leaf=forms.is_special)
        assert [tuple(leaf.shape) for leaf in leaves] == [entry.shape for entry in declared]
        spaced = [isinstance(leaf, SpacedWeight) for leaf in leaves]
        assert spaced == [entry.linear and device == "xla" for entry in declared]
    # Per text layer its mixer's two and the feed-forward's two; four in a block, two in the merger;
    # the head.
    assert sum(entry.linear for entry in declared) == 4 * 2 + 4 + 2 + 1


def test_moved_parameters_are_those_that_were_loaded(params):
    """To either device: leaves, forms and what is compiled of them; explicit forms stay."""
    for source, target in (("cpu", "xla"), ("xla", "cpu")):
        moved, there = qwen35.device_put(params[source], target), params[target]
        assert moved.runtime == there.runtime and moved.vision.runtime == there.runtime
        pairs = zip(*(_pytree.tree_flatten(tree)[0] for tree in (moved, there)), strict=True)
        assert all(torch.equal(ours.cpu(), theirs.cpu()) for ours, theirs in pairs)
        assert all(leaf.is_contiguous() for leaf in _pytree.tree_leaves(moved))
        described = [trees.describe(tree) for tree in (moved, there)]
        assert described[0] == described[1]
        assert qwen35.device_put(moved, target) is moved
    assert params["cpu"].runtime.forms == "plain" and params["xla"].runtime.forms == "xla_cpu"
    plain = params["cpu"].with_runtime(forms="plain")
    moved = qwen35.device_put(plain, "xla")
    assert moved.runtime.forms == "plain" and isinstance(moved.head, torch.Tensor)
    assert moved.with_runtime(forms="auto").runtime == params["xla"].runtime
    nested = {"params": params["cpu"], "more": [torch.ones(2), "text"]}
    moved = qwen35.device_put(nested, "xla")
    assert moved["params"].runtime.forms == "xla_cpu" and moved["more"][0].is_xla
    assert moved["more"][1] == "text"


def test_forms_are_for_their_device(monkeypatch):
    with pytest.raises(ValueError, match=r"forms must be one of .*'auto', 'plain', 'xla_cpu'"):
        qwen35.Runtime(forms="fast")
    monkeypatch.setattr(devices.xla().runtime, "device_type", lambda: "NEURON")
    assert qwen35.Runtime().on("xla").forms == "plain"
    with pytest.raises(ValueError, match=r"'xla_cpu' is for XLA on the CPU.*NEURON.*'plain'"):
        qwen35.init_params(CONFIG, device="xla", runtime=qwen35.Runtime(forms="xla_cpu"))


def random(*shape):
    """The same for a shape, and independent of what other shapes get."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(hash(shape)))


@pytest.mark.parametrize("inputs", [8, 2047, 2048])
@pytest.mark.parametrize("width", [24, 1024, 1025])
@pytest.mark.parametrize("shape", [(1,), (2, 1), (4, 3), (13, 1)])
def test_linear_of_a_placed_weight(inputs, width, shape):
    """Also of one row, for which the weight's rows are taken in parts, and of a few: in a loop."""
    x, weight = random(*shape, inputs), random(inputs, width) / inputs**0.5
    expected = (x.double() @ weight.double()).float()
    for form, stored in ((XLA_CPU, XLA_CPU), (XLA_CPU, PLAIN), (PLAIN, XLA_CPU)):
        placed = stored.place(weight, "xla")
        ours = qwen35.jit(form.matmul)(qwen35.device_put(x, "xla"), placed)
        assert_close(ours.cpu(), expected)
    assert torch.equal(PLAIN.matmul(x, weight), x @ weight)


def test_a_row_does_not_see_what_is_wrong_in_another():
    x, weight = random(3, 64), random(64, 32) / 8
    x[1, 0], x[2, 5] = float("nan"), float("inf")
    ours = XLA_CPU.matmul(qwen35.device_put(x, "xla"), XLA_CPU.place(weight, "xla")).cpu()
    assert_close(ours[0], x[0] @ weight)
    assert ours[1].isnan().all() and not ours[2].isfinite().any()


def test_gradients_of_few_rows(monkeypatch):
    """Through the loop they would be rounds in Python, so XLA's own product is taken."""
    monkeypatch.setattr("qwen35.forms.xla_cpu.thin_matmul", lambda *_: pytest.fail("took the loop"))
    x, weight = random(3, 64), random(64, 32) / 8
    here, there = x.clone().requires_grad_(), qwen35.device_put(x, "xla").requires_grad_()
    PLAIN.matmul(here, weight).square().sum().backward()
    XLA_CPU.matmul(there, XLA_CPU.place(weight, "xla")).square().sum().backward()
    assert_close(there.grad.cpu(), here.grad)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize(("inputs", "width"), [(8, 8), (256, 4096), (4096, 256), (1024, 40)])
def test_thin_product(groups, inputs, width):
    assert is_thin(2, inputs, width) and is_thin(12, inputs, width)
    for rows in (2, 7, 12):
        x, matrix = random(groups, rows, inputs), random(groups, inputs, width + 3) / inputs**0.5
        expected = (x.double() @ matrix.double())[..., :width].float()
        assert_close(thin_matmul(x, matrix, width), expected)
        on_xla = (qwen35.device_put(t, "xla") for t in (x, matrix))
        assert_close(thin_matmul(*on_xla, width).cpu(), expected)


def test_what_is_not_a_thin_product():
    assert not is_thin(1, 64, 64) and not is_thin(13, 64, 64)  # XLA's own is as fast
    assert not is_thin(4, 63, 64) and not is_thin(4, 64, 63)  # the loop takes them eight by eight


@pytest.mark.parametrize(
    ("batch", "capacity"),
    [
        (2, 80),
        (1, 4096),  # thin products in attention too
        pytest.param(1, 80, marks=pytest.mark.slow),
        pytest.param(2, 4096, marks=pytest.mark.slow),
    ],
)
def test_extra_columns_have_no_effect_on_logits_and_state(params, batch, capacity):
    spaced = poisoned(params["xla"])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 60, (2, 70), generator=generator)[:batch]
    lengths = torch.tensor([70, 33])[:batch]
    results = []
    for tree, wrap in ((params["cpu"], lambda step: step), (spaced, qwen35.jit)):
        device = tree.device.type
        state = qwen35.init_state(tree, batch, capacity)
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
    spaced = poisoned(params["xla"].vision)
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
    for ours, theirs in zip(*map(trees.tensors, (loaded, params["xla"])), strict=True):
        assert torch.equal(qwen35.device_put(ours, "cpu"), qwen35.device_put(theirs, "cpu"))
