"""XLA:CPU widens the weights of one layer after the other, not of all at once."""

import pytest
import torch

import qwen35
from qwen35.bench.machine import added_memory
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
