"""Quantised weights as leaves: what they stand for, written out element by element."""

import pytest
import torch
from torch.utils import _pytree

from qwen35 import forms
from qwen35.forms import JoinedWeight, QuantizedWeight, SpacedWeight, packed, unpacked

FP8 = torch.float8_e4m3fn


def quantized(inputs, width, group, kind, zeros=False, dtype=torch.float32, spare=0):
    """Random values and scales; kind is "int4", "int8" or "fp8"."""
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
    return QuantizedWeight(values, scales, offsets, group, dtype)


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
