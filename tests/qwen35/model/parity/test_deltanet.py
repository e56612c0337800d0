"""The gated DeltaNet mixer is transformers' `Qwen3_5GatedDeltaNet`, from a state that is not empty.

Tolerance: outputs near 0.5 and states near 1 to 10, from sums of up to 130 tokens' contributions in
another order. transformers' own chunked and token-by-token forms differ by up to 1e-5 from each
other on these inputs.
"""

import functools

import pytest
import torch

from qwen35.model.deltanet import deltanet
from qwen35.model.state import DeltaNetState

assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=2e-5)

CASES = ["value_heads_x3_gqa6_odd_hidden", "conv2_wide_keys_tied", "published_head_sizes"]


def random_state(both, batch):
    """A state as many tokens may have left it."""
    generator = torch.Generator().manual_seed(9)
    config = both.config
    conv = (batch, config.linear_conv_kernel_dim - 1, config.conv_channels)
    heads = (config.linear_num_value_heads, config.linear_key_head_dim)
    return DeltaNetState(
        torch.randn(conv, generator=generator),
        torch.randn(batch, *heads, config.linear_value_head_dim, generator=generator),
    )


def correlated(both, batch, tokens):
    """Tokens that have most in common, so that keys nearly repeat each other."""
    return both.inputs(batch, 1, seed=4) + 0.1 * both.inputs(batch, tokens, seed=5)


def expected(both, state, x):
    """transformers' output and state after x [B, T, H]."""
    mixer, cache = both.theirs.linear_attn, both.cache()
    oldest = torch.zeros_like(state.conv[:, :1])  # of as many inputs as there are taps
    history = torch.cat([oldest, state.conv], 1).mT
    cache.update_conv_state(history, 0, conv_kernel_size=mixer.conv_kernel_size)
    cache.update_recurrent_state(state.recurrent, 0)
    out = mixer(x, cache_params=cache)
    return out, DeltaNetState(cache.get_conv_state(0)[:, :, 1:].mT, cache.get_recurrent_state(0))


def run(both, state, x, lengths=None, last_only=False):
    """Ours, with the projections before and after."""
    forms, layer = both.params.forms, both.ours
    projected = forms.matmul(x, layer.in_proj)
    out, state = deltanet(both.params, layer, state, projected, lengths, last_only)
    return forms.matmul(out, layer.out_proj), state


def assert_same(ours, theirs):
    (out, state), (wanted, after) = ours, theirs
    assert wanted.std() > 0.1
    assert_close(out, wanted)
    assert_close(state.conv, after.conv)
    assert_close(state.recurrent, after.recurrent)


@pytest.mark.parametrize("tokens", [1, 2, 5, 64, 65, 130])
@pytest.mark.parametrize("case", CASES)
def test_is_that_of_transformers(pair, case, tokens):
    both = pair(case, "linear_attention")
    state, x = random_state(both, 2), both.inputs(2, tokens)
    assert_same(run(both, state, x), expected(both, state, x))


@pytest.mark.parametrize("case", CASES)
def test_correlated_keys(pair, case):
    """The inverse of a chunk has large entries, of both signs, that cancel."""
    both = pair(case, "linear_attention")
    state, x = random_state(both, 2), correlated(both, 2, 130)
    assert_same(run(both, state, x), expected(both, state, x))


@pytest.mark.parametrize("case", CASES)
def test_ragged_rows(pair, case):
    """Each row as it is alone; what stands beyond its length has no effect."""
    both = pair(case, "linear_attention")
    lengths = [70, 0, 1, 65, 3]
    state, x = random_state(both, len(lengths)), correlated(both, len(lengths), max(lengths))
    out, after = run(both, state, x, torch.tensor(lengths))
    last, _ = run(both, state, x, torch.tensor(lengths), last_only=True)
    for row, length in enumerate(lengths):
        alone = DeltaNetState(*(tensor[row : row + 1] for tensor in state))
        ours = DeltaNetState(*(tensor[row : row + 1] for tensor in after))
        if not length:
            assert all(map(torch.equal, ours, alone))
            continue
        theirs = expected(both, alone, x[row : row + 1, :length])
        assert_same((out[row : row + 1, :length], ours), theirs)
        assert_close(last[row], theirs[0][0, -1:])


@pytest.mark.parametrize("lengths", [(64, 66), (1, 129), (63, 1, 1, 65), (3, 127)])
def test_splits(pair, lengths):
    """Inside a chunk, at its end, and where the convolution's window is cut."""
    both = pair(CASES[0], "linear_attention")
    state, x = random_state(both, 2), correlated(both, 2, sum(lengths))
    theirs = expected(both, state, x)
    pieces = []
    for piece in x.split(lengths, dim=1):
        out, state = run(both, state, piece)
        pieces.append(out)
    assert_same((torch.cat(pieces, 1), state), theirs)
