"""DeltaNet's gated RMS norm is transformers' `Qwen3_5RMSNormGated`.

Its weight is plain (no 1 is added), the gate comes after the norm. Tolerance: results of up to 20
are rounded at 24 bits, some six times: 1e-5 is as much.
"""

import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNormGated

from qwen35 import forms as all_forms
from qwen35.model.norms import gated_rms_norm


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])  # the eps matters for small values alone
@pytest.mark.parametrize("width", [8, 51, 128])
def test_is_that_of_transformers(forms, width, scale, eps):
    generator = torch.Generator().manual_seed(width)
    norm = Qwen3_5RMSNormGated(width, eps=eps).requires_grad_(False)
    norm.weight.normal_(1, 0.5, generator=generator)
    x = scale * (0.5 + torch.randn(2, 3, 4, width, generator=generator))
    gate = 3 * torch.randn(2, 3, 4, width, generator=generator)
    ours = gated_rms_norm(all_forms.get(forms), x, gate, norm.weight, eps)
    torch.testing.assert_close(ours, norm(x, gate), rtol=0, atol=1e-5)
