"""XLA:CPU widens the weights of one layer after the other, not of all at once."""

import math
import re

import pytest
import torch

import qwen35
from qwen35.bench.machine import added_memory
from qwen35.files.quantized import Quantizing
from qwen35.files.quantized.kept import leaf
from qwen35.forms import QuantizedWeight, dense, get, packed


@pytest.mark.parametrize("kind", ["int8", "int4", "bfloat16"])
def test_widened_weights_are_in_memory_one_at_a_time(kind):
    size, layers = 1536, 10
    forms = get("xla_cpu")

    def weight(seed):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(-3, 4, (size, size), dtype=torch.int8, generator=generator)
        if kind == "int8":
            return QuantizedWeight(values, torch.ones(1, size), None, size, torch.float32, kind)
        if kind == "int4":
            scales = torch.ones(size // 128, size)
            return QuantizedWeight(packed(values + 8), scales, None, 128, torch.float32, kind)
        return values.bfloat16()

    weights = [weight(seed) for seed in range(layers)]
    placed = [forms.place(one, "xla") for one in weights]
    x = torch.randn(64, size)

    @qwen35.jit
    def chain(x, weights):
        for one in weights:
            x = forms.matmul(x, one) / size
        return x

    there = qwen35.device_put(x, "xla")

    def run():
        return qwen35.device_put(chain(there, placed), "cpu")

    result, expected = run(), x.double()
    for one in weights:
        expected = expected @ dense(one).double() / size
    assert torch.allclose(result.double(), expected, rtol=1e-4, atol=expected.abs().max() * 1e-5)
    assert added_memory(run) < layers / 2 * size * size * 4


def placed_weight(kind, matrix):
    if kind == "bfloat16":
        return get("xla_cpu").place(matrix.bfloat16(), "xla")
    every = [[(0, 0, size)] for size in matrix.shape]
    quantizing = Quantizing(matrix.T, matrix.T.shape, kind)
    return get("xla_cpu").place(leaf(quantizing, *every, matrix.shape, matrix.dtype), "xla")


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8", "bfloat16"])
def test_rows_of_a_widened_weight_are_no_power_of_two_apart(kind):
    """A product of many rows reads a matrix that has a cache line of zeros after each row."""
    inputs, width, spare = 512, 1024, 64
    placed = placed_weight(kind, torch.randn(inputs, width))
    x = qwen35.device_put(torch.randn(128, inputs), "xla")
    text = qwen35.jit(get("xla_cpu").matmul).lower(x, placed)
    widths = {int(n) for n in re.findall(r"f32\[128,(\d+)\]\S* dot\(", text)}
    assert widths == {width + (spare // 2 if kind == "bfloat16" else spare)}


@pytest.mark.parametrize("rows", [1, 8, 13, 64])
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8", "bfloat16"])
def test_no_weight_is_written_down_dense_for_few_rows(kind, rows):
    """The graph has no floating-point tensor of a quarter as many elements as a weight, in no loop.

    For more rows it has one of half as many (4 bits) or all, so such a tensor would be seen.
    """
    inputs, width = 4096, 1024
    forms, placed = get("xla_cpu"), placed_weight(kind, torch.randn(inputs, width))

    def largest(rows):
        x = qwen35.device_put(torch.randn(rows, inputs), "xla")
        text = qwen35.jit(forms.matmul).lower(x, placed)
        shapes = re.findall(r"\b(?:f16|bf16|f32)\[([\d,]+)\]", text)
        return max(math.prod(map(int, shape.split(","))) for shape in shapes)

    assert largest(rows) < inputs * width / 4 < inputs * width / 2 <= largest(65)
