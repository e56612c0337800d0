"""The L2 norm of DeltaNet's queries and keys is transformers' `l2norm`: its eps is in the root.

Tolerance: results of up to 1 are rounded at 24 bits, some four times: 4e-7.
"""

import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import l2norm

from qwen35 import forms as all_forms
from qwen35.model.norms import l2_norm


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])  # the eps matters for small values alone
@pytest.mark.parametrize("width", [16, 51, 128])
def test_is_that_of_transformers(forms, width, scale):
    generator = torch.Generator().manual_seed(width)
    x = scale * torch.randn(2, 3, 4, width, generator=generator)
    ours = l2_norm(all_forms.get(forms), x)
    torch.testing.assert_close(ours, l2norm(x), rtol=0, atol=4e-7)
