"""Reductions in steps against those of torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen35.forms.xla_cpu.reductions import max_last, mean_last, sum_last


@given(st.integers(1, 2100), st.integers(0, 100), st.sampled_from([1.0, 1e-12, 1e12]))
def test_every_width(size, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(2, 3, size, generator=generator)
    exact = x.double()
    # A step of 16 rounds 15 times; three steps make 2,048; a prime is one step of its length.
    bound = 64 * 2.0**-24 * exact.abs()
    total, mean = sum_last(x), mean_last(x)
    assert total.shape == mean.shape == (2, 3, 1)
    assert ((total - exact.sum(-1, keepdim=True)).abs() <= bound.sum(-1, keepdim=True)).all()
    assert ((mean - exact.mean(-1, keepdim=True)).abs() <= bound.mean(-1, keepdim=True)).all()
    assert torch.equal(max_last(x), x.amax(-1, keepdim=True))


def test_maximum_beside_and_of_nothing():
    """Masked scores are -inf; a row of nothing else gives weights of 0, not NaN."""
    x = torch.full((2, 128), -torch.inf)
    x[0, 77] = -3.0
    largest = max_last(x)
    assert largest[0] == -3.0 and largest[1].isfinite()
    assert (x - largest).exp().sum(-1).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("reduce", [sum_last, mean_last, max_last])
def test_gradient(reduce):
    x = torch.randn(3, 48, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(reduce, x)
