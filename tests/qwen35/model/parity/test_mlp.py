"""The feed-forward is transformers' `Qwen3_5MLP`.

Tolerance: sums of some 100 products near 0.1, rounded at 24 bits, in another order: 2e-6.
"""

import pytest
import torch

from qwen35.model.mlp import mlp


# XLA:CPU's forms take one row in parts, up to twelve in a loop and more in one product.
@pytest.mark.parametrize("tokens", [1, 2, 9, 40])
@pytest.mark.parametrize("case", ["equal_heads", "value_heads_x3_gqa6_odd_hidden"])
def test_is_that_of_transformers(pair, case, tokens):
    both = pair(case, "linear_attention")
    x = both.inputs(1, tokens)
    ours = mlp(both.forms, both.ours, x)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, both.theirs.mlp(x), rtol=0, atol=2e-6)
