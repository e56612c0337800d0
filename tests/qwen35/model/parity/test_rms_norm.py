"""The zero-centred RMS norm is transformers' `Qwen3_5RMSNorm`.

Tolerance: results of up to 12 are rounded at 24 bits, some four times: 4e-6 is as much.
"""

import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNorm

from qwen35 import forms as all_forms
from qwen35.model.norms import rms_norm


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])  # the eps matters for small values alone
@pytest.mark.parametrize("width", [1, 7, 51, 128, 1000])
def test_is_that_of_transformers(forms, width, scale, eps):
    generator = torch.Generator().manual_seed(width)
    norm = Qwen3_5RMSNorm(width, eps=eps).requires_grad_(False)
    norm.weight.normal_(0, 0.5, generator=generator)
    x = 0.5 + torch.randn(2, 3, 4, width, generator=generator)
    ours = rms_norm(all_forms.get(forms), scale * x, norm.weight, eps)
    torch.testing.assert_close(ours, norm(scale * x), rtol=0, atol=4e-6)


def test_is_rounded_once_in_bfloat16(forms):
    """A weight of 2^-9 is kept beside the 1, and so are the values before the product."""
    generator = torch.Generator().manual_seed(0)
    norm = Qwen3_5RMSNorm(64).requires_grad_(False).bfloat16()
    norm.weight.normal_(0, 2**-9, generator=generator)
    x = torch.randn(5, 64, generator=generator).bfloat16()
    ours, theirs = rms_norm(all_forms.get(forms), x, norm.weight, 1e-6), norm(x)
    assert ours.dtype == torch.bfloat16
    # Sums in another order turn few roundings over; a weight or a value rounded earlier, a third.
    assert (ours != theirs).float().mean() < 0.01
