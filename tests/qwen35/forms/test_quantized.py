"""Quantised weights as leaves: what they stand for, written out element by element."""

from pathlib import Path

import pytest
import torch
from torch.utils import _pytree

import qwen35
from qwen35 import forms
from qwen35.checks.choices import KINDS
from qwen35.files.quantized import Quantizing
from qwen35.files.quantized.kept import leaf
from qwen35.forms import JoinedWeight, QuantizedWeight, SpacedWeight, packed, unpacked
from qwen35.forms.quantizing import encode

FP8 = torch.float8_e4m3fn


def quantized(inputs, width, group, kind, zeros=False, dtype=torch.float32, spare=0):
    """Random values and scales of a kind."""
    draw = torch.Generator().manual_seed(inputs + width + group)
    shape = (inputs, width + spare)
    if kind == "fp8":
        values = torch.randn(shape, generator=draw).to(FP8)
    elif kind == "int8":
        values = torch.randint(-127, 128, shape, generator=draw).to(torch.int8)
    else:
        values = packed(torch.randint(0, 16, shape, generator=draw))
    groups = (-(-inputs // group), width)
    scales = torch.rand(groups, generator=draw) + 0.5
    offsets = torch.randint(0, 16, groups, generator=draw).to(torch.int8) if zeros else None
    return QuantizedWeight(values, scales, offsets, group, dtype, kind)


def made(matrix, kind):
    """A matrix [K, N] quantised as loading does it."""
    every = [[(0, 0, size)] for size in matrix.shape]
    return leaf(Quantizing(matrix.T, matrix.T.shape, kind), *every, matrix.shape, matrix.dtype)


CASES = [
    (6, 5, 6, "int8", False),
    (10, 5, 4, "int8", False),
    (8, 6, 4, "int4", False),
    (8, 6, 4, "int4", True),
    (8, 3, 8, "fp8", False),
    (10, 6, 4, "fp8", False),
]


def test_packed_rows_are_those_of_the_documentation():
    values = torch.tensor([[1, 2], [3, 4], [15, 0], [9, 8]])
    assert packed(values).tolist() == [[1 + 16 * 3, 2 + 16 * 4], [15 + 16 * 9, 0 + 16 * 8]]
    assert torch.equal(unpacked(packed(values)), values.to(torch.uint8))


@pytest.mark.parametrize(("inputs", "width", "group", "kind", "zeros"), CASES)
@pytest.mark.parametrize("spare", [0, 3])
def test_every_element_is_as_documented(inputs, width, group, kind, zeros, spare):
    weight = quantized(inputs, width, group, kind, zeros, spare=spare)
    assert weight.shape == (inputs, width) and len(weight) == inputs
    assert weight.bits == (4 if kind == "int4" else 8)
    matrix = forms.dense(weight)
    assert matrix.shape == weight.shape and matrix.dtype == weight.dtype
    for k in range(inputs):
        for n in range(width):
            if kind == "int4":
                stored = (int(weight.values[k // 2, n]) >> 4 * (k % 2)) & 15
            else:
                stored = float(weight.values[k, n])
            zero = float(weight.zeros[k // group, n]) if zeros else 8 * (kind == "int4")
            assert float(matrix[k, n]) == pytest.approx(
                (stored - zero) * float(weight.scales[k // group, n]), rel=1e-6
            )
    index = torch.tensor([width - 1, 0, 1])
    assert torch.equal(forms.columns(weight, index), matrix[:, index])
    plain = forms.compact(weight)
    assert plain.values.shape[1] == width and plain.values.is_contiguous()
    assert torch.equal(forms.dense(plain), matrix)


def test_joined_columns_stand_side_by_side():
    parts = (
        quantized(8, 4, 8, "int8"),
        torch.arange(16.0).view(8, 2),
        SpacedWeight.of(torch.ones(8, 3), 2),
    )
    joined = JoinedWeight(parts)
    assert joined.shape == (8, 9) and joined.dtype == torch.float32 and len(joined) == 8
    matrix = forms.dense(joined)
    assert torch.equal(matrix, torch.cat([forms.dense(part) for part in parts], dim=1))
    index = torch.tensor([8, 4, 0])
    assert torch.equal(forms.columns(joined, index), matrix[:, index])
    assert torch.equal(forms.dense(forms.compact(joined)), matrix)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_tree_of_them_keeps_what_is_static(zeros):
    weight = quantized(8, 6, 4, "int4", zeros, torch.bfloat16)
    tree = {"in_proj": JoinedWeight((weight, torch.ones(8, 2, dtype=torch.bfloat16)))}
    leaves, structure = _pytree.tree_flatten(tree)
    assert len(leaves) == 3 + zeros and all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    again = _pytree.tree_unflatten(leaves, structure)["in_proj"]
    assert torch.equal(forms.dense(again), forms.dense(tree["in_proj"]))
    assert again.dtype == torch.bfloat16 and again.parts[0].group == 4
    paths = [_pytree.keystr(path) for path, _ in _pytree.tree_flatten_with_path(tree)[0]]
    names = ["values", "scales"] + ["zeros"] * zeros
    expected = [f"['in_proj'].parts[0].{name}" for name in names] + ["['in_proj'].parts[1]"]
    assert paths == expected
    kinds = _pytree.tree_leaves(tree, is_leaf=forms.is_special)
    assert len(kinds) == 1 and kinds[0] is tree["in_proj"]


def test_int8_is_symmetric_and_rounds_to_the_nearest():
    matrix = torch.tensor([[1.0, 0.0, -3.0], [-0.25, 0.0, 1.5], [0.5, 0.0, 0.0]])
    weight = made(matrix, "int8")
    assert weight.values.tolist() == [[127, 0, -127], [-32, 0, 64], [64, 0, 0]]  # ties to even
    assert weight.scales.tolist() == [pytest.approx([1 / 127, 1.0, 3 / 127])]
    assert weight.per_column and weight.dtype == torch.float32 and weight.kind == "int8"


def test_int4_has_a_scale_for_128_inputs_and_codes_from_minus_8_to_7():
    matrix = torch.zeros(130, 2)
    matrix[:3, 0] = torch.tensor([15.0, -15.0, 1.1])
    matrix[127:, 1] = torch.tensor([3.0, 30.0, -7.0])
    weight = made(matrix, "int4")
    codes = unpacked(weight.values).int() - 8
    assert weight.group == 128 and weight.zeros is None and weight.shape == (130, 2)
    assert codes[:3, 0].tolist() == [7, -8, 1] and codes[3:, 0].eq(0).all()
    assert codes[127:, 1].tolist() == [7, 7, -2]
    assert weight.scales.tolist() == [[2.0, pytest.approx(0.4)], [1.0, 4.0]]


def test_fp8_takes_the_largest_to_448():
    matrix = torch.tensor([[8.96, 0.0], [1.3, -1.0]])
    weight = made(matrix, "fp8")
    assert weight.values.float().tolist() == [[448.0, 0.0], [64.0, -448.0]]  # 65 is 64 there
    assert weight.scales.tolist() == [pytest.approx([0.02, 1 / 448])] and weight.per_column


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_at_most_half_a_step(kind):
    drawn = torch.randn(3000, 700, generator=torch.Generator().manual_seed(0))  # several blocks
    values, scales, group = encode(drawn, drawn.shape, kind)
    numbers = values.float() - 8 * (kind == "int4")
    scale = scales.repeat_interleave(group, 1)[:, :700]
    step = numbers.abs().clamp(min=2.0**-6).log2().floor().exp2() / 8 if kind == "fp8" else 1
    assert ((numbers * scale - drawn).abs() <= scale * step / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("device", ["cpu", "xla"])
@pytest.mark.parametrize("rows", [1, 3, 17, 70])
@pytest.mark.parametrize("form", ["plain", "xla_cpu"])
def test_products_are_those_of_the_dequantised_matrix(form, rows, device):
    """Against float64: an error of a scale or of a part would be a thousand times as large."""
    draw = torch.Generator().manual_seed(rows)
    form = forms.get(form)
    x = torch.randn(rows, 192, generator=draw)
    matrix = torch.randn(192, 48, generator=draw)
    weights = [made(matrix, kind) for kind in KINDS]
    weights += [
        JoinedWeight((weights[1], weights[0], matrix[:, :8].contiguous())),
        quantized(192, 48, 16, "int4"),
        quantized(192, 48, 64, "int4", True),
        quantized(192, 40, 128, "int4", True),
        quantized(192, 48, 48, "int8", True),
        quantized(192, 20, 64, "fp8", spare=3),
        quantized(192, 48, 80, "fp8"),
        quantized(192, 48, 80, "int4", True),
    ]
    for weight in weights:
        placed = form.place(weight, device)
        assert placed.shape == weight.shape and placed.dtype == weight.dtype
        held = forms.compact(qwen35.device_put(placed, "cpu"))
        expected = x.double() @ forms.dense(held).double()
        off = (forms.dense(held) - forms.dense(weight)).abs().max()
        assert off <= (2**-9 * 1.5 if (form.name, device) == ("plain", "xla") else 0)
        product = qwen35.device_put(form.matmul(qwen35.device_put(x, device), placed), "cpu")
        assert (product - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_halved_fp8_is_exact_but_for_odd_multiples_of_the_smallest_number():
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    finite = every[every % 128 != 127].view(FP8).view(-1, 1)
    weight = QuantizedWeight(finite, torch.tensor([[3.0]]), None, 254, torch.float32, "fp8")
    half = forms.halved(weight)
    assert half.kind == "e4m3" and half.values.dtype == torch.uint8
    assert half.scales.tolist() == [[6.0]]
    assert forms.compact(half).values.float().abs().max() == 224
    exact, ours = forms.dense(weight).flatten() / 3, forms.dense(half).flatten() / 3
    odd = (exact / 2**-9 % 2 == 1) & (exact.abs() < 2**-5)
    assert odd.sum() == 16 and torch.equal(ours[~odd], exact[~odd])
    assert torch.equal((ours - exact)[odd].abs(), torch.full((16,), 2.0**-9))
    joined = forms.halved(JoinedWeight((weight, torch.ones(254, 2))))
    assert joined.parts[0].kind == "e4m3" and torch.equal(joined.parts[1], torch.ones(254, 2))


# Mean KL that rounding alone gives on the demo, twice.
LIMITS = {"int8": 1e-3, "fp8": 1.5e-2, "int4": 0.3}


@pytest.mark.parametrize(
    ("kind", "device"), [("int8", "cpu"), ("fp8", "cpu"), ("int4", "cpu"), ("int8", "xla")]
)
def test_a_quantised_model_says_what_the_dense_one_says(kind, device):
    """On text that the demo knows; the same of a copy on another device."""
    demo = Path(__file__).parents[3] / "demo"
    dense = qwen35.load(demo, device=device)
    params = qwen35.load(demo, device=device, weights=kind, head=kind)
    assert isinstance(params.head, QuantizedWeight) and params.dtype == dense.dtype
    layer = params.layers[0]
    assert isinstance(layer.in_proj.parts[0], QuantizedWeight)
    assert layer.in_proj.parts[0].kind == kind
    assert layer.in_proj.parts[1].shape[1] == 2 * len(layer.a_log)
    assert layer.in_proj.shape == dense.layers[0].in_proj.shape
    assert isinstance(layer.input_norm, torch.Tensor)
    tokenizer = qwen35.Tokenizer.from_pretrained(demo)
    ids = torch.tensor([tokenizer.encode("The capital of France is Paris.")])
    tokens, results = qwen35.device_put(ids, device), []
    for tree in (dense, params):
        hidden, _ = qwen35.forward(tree, qwen35.init_state(tree, 1, 64), tokens)
        results.append(qwen35.device_put(qwen35.logits(tree, hidden), "cpu").log_softmax(-1))
    exact, ours = results
    assert (exact.exp() * (exact - ours)).sum(-1).mean() <= LIMITS[kind]
    moved = qwen35.device_put(params, "cpu" if device == "xla" else "xla")
    assert torch.equal(
        forms.dense(qwen35.device_put(moved.head, "cpu")),
        forms.dense(qwen35.device_put(params.head, "cpu")),
    )


def test_quantisations_that_are_not_there_are_refused():
    demo = Path(__file__).parents[3] / "demo"
    known = "'dense', 'int8', 'int4', 'fp8', not 'int3'"
    with pytest.raises(ValueError, match=f"weights must be None or one of {known}"):
        qwen35.load(demo, weights="int3")
    with pytest.raises(ValueError, match="head must be None or one of"):
        qwen35.load(demo, head="dense")
