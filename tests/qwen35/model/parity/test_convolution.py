"""The causal convolution with history is that of transformers' `Qwen3_5GatedDeltaNet`.

transformers' module for it is a `Conv1d` over a cache of its own; the two functions that it calls,
for a prefill and for a single token, give what is expected here. Tolerance: sums of at most four
products of up to 10, and a SiLU: 2e-6.
"""

import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5 as transformers

from qwen35.model.deltanet import causal_conv

CASES = ["equal_heads", "conv2_wide_keys_tied"]  # 4 and 2 taps


def inputs(both, batch, tokens):
    """Random channels: the history [B, K-1, C] and the tokens [B, T, C]."""
    generator = torch.Generator().manual_seed(tokens)
    taps = both.config.linear_conv_kernel_dim
    values = torch.randn(batch, taps - 1 + tokens, both.config.conv_channels, generator=generator)
    return values.split([taps - 1, tokens], dim=1)


def expected(both, history, x):
    """transformers' outputs [B, T, C] and the history after them."""
    weight, layer = both.theirs.linear_attn.conv1d.weight.squeeze(1), both.theirs.linear_attn
    taps = weight.shape[1]
    # It keeps as many inputs as there are taps; the oldest is never read again.
    oldest = torch.full_like(history[:, :1], 99.0)
    cache = both.cache()
    cache.update_conv_state(torch.cat([oldest, history], 1).mT, 0, conv_kernel_size=taps)
    if x.shape[1] == 1:
        state = cache.get_conv_state(0)
        out = transformers.causal_conv1d_update(x.mT, state, weight, None, layer.activation)
    else:
        seen = cache.update_conv_state(x.mT, 0, conv_kernel_size=taps)
        out = transformers.causal_conv1d_fn(seen, weight, None, activation=layer.activation)
        out = out[:, :, -x.shape[1] :]
    return out.mT, cache.get_conv_state(0)[:, :, 1:].mT


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("case", CASES)
def test_is_that_of_transformers(pair, case, tokens):
    both = pair(case, "linear_attention")
    history, x = inputs(both, 2, tokens)
    out, after = causal_conv(both.forms, x, both.ours.conv, history, None)
    theirs, wanted = expected(both, history, x)
    torch.testing.assert_close(out, theirs, rtol=0, atol=2e-6)
    assert torch.equal(after, wanted)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths", [[0, 1, 2, 5], [1, 0, 1, 1]])
def test_ragged_rows_are_those_of_transformers(pair, case, lengths):
    """Each row as it is alone; one of length 0 keeps its history."""
    both = pair(case, "linear_attention")
    history, x = inputs(both, len(lengths), max(lengths))
    out, after = causal_conv(both.forms, x, both.ours.conv, history, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = slice(row, row + 1)
        if not length:
            assert torch.equal(after[row], history[row])
            continue
        theirs, wanted = expected(both, history[alone], x[alone, :length])
        torch.testing.assert_close(out[alone, :length], theirs, rtol=0, atol=2e-6)
        assert torch.equal(after[alone], wanted)
