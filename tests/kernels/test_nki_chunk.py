"""gated_delta_chunk on the emulator against the float64 definition.

`EXACT` bounds float32 with correlated keys: the inverse is accurate to some 1e-7, and sums of up
to 128 terms of alternating sign follow it. `FAST` bounds 16-bit operands (2^-11 for what is
bounded by 1, 2^-9 for values, state and the bfloat16 output). Both are of the largest entry.
"""

import itertools

import harness
import numpy as np
import pytest
from harness import CHUNK

from qwen35.kernels import oracle

EXACT = 1e-5
FAST = 1e-2
COSINES = (0.0, 0.5, 0.8, 0.95)


@pytest.mark.parametrize("tokens", [1, 2, 31, 128])
@pytest.mark.parametrize("cosine", COSINES)
def test_matches_the_definition(tokens, cosine):
    for decay, beta in itertools.product(oracle.DECAYS, (0.0, 0.5, 1.0)):
        inputs = oracle.inputs(
            seed=tokens, tokens=tokens, group=2, cosine=cosine, beta=beta, decay=decay
        )
        assert max(harness.errors(CHUNK, inputs)) < EXACT, (decay, beta)
        assert max(harness.errors(CHUNK, inputs, half=True, exact=False)) < FAST, (decay, beta)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_rows_and_groups(batch, group):
    inputs = oracle.inputs(
        batch=batch, tokens=40, key_heads=2, group=group, cosine=0.8, key_size=64, value_size=32
    )
    assert max(harness.errors(CHUNK, inputs)) < EXACT


@pytest.mark.parametrize("value_size", [16, 32, 64, 128])
@pytest.mark.parametrize("key_size", [16, 32, 64, 128])
def test_head_sizes(key_size, value_size):
    inputs = oracle.inputs(tokens=70, group=2, cosine=0.8, key_size=key_size, value_size=value_size)
    assert max(harness.errors(CHUNK, inputs)) < EXACT
    assert max(harness.errors(CHUNK, inputs, half=True, exact=False)) < FAST


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_zero_and_large_states(scale, exact):
    inputs = oracle.inputs(seed=3, group=2, cosine=0.8, state_scale=scale)
    assert max(harness.errors(CHUNK, inputs, half=not exact, exact=exact)) < (
        EXACT if exact else FAST
    )


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_input_and_operand_precisions_are_independent(half, exact):
    inputs = oracle.inputs(seed=4, tokens=64, group=2, cosine=0.5)
    out, state = harness.errors(CHUNK, inputs, half=half, exact=exact)
    assert out < (2.0**-8 if half and exact else EXACT if exact else FAST)
    assert state < (EXACT if exact else FAST)


@pytest.mark.parametrize("version", ["0.3", "0.4", "0.5", "0.6", "0.7"])
def test_every_language_version(version):
    inputs = oracle.inputs(tokens=31, key_heads=2, group=3, cosine=0.8, key_size=32, value_size=32)
    for exact in (True, False):
        assert max(harness.errors(CHUNK, inputs, exact=exact, version=version)) < FAST


@pytest.mark.parametrize(
    ("batch", "key_heads"), [(1, 2), (2, 1), (1, 1)], ids=["heads", "rows", "columns"]
)
def test_two_cores_split_heads_rows_or_columns(batch, key_heads):
    inputs = oracle.inputs(
        batch=batch, tokens=50, key_heads=key_heads, group=3, cosine=0.8, key_size=32, value_size=32
    )
    one, two = harness.run(CHUNK, inputs, lnc=1), harness.run(CHUNK, inputs, lnc=2)
    for a, b in zip(one, two, strict=True):
        assert oracle.relative_error(a, b) < 2e-6


@pytest.mark.parametrize("exact", [True, False])
def test_padding_leaves_the_state_bit_for_bit(exact):
    inputs = oracle.inputs(batch=2, tokens=30, group=2, cosine=0.8, key_size=32, value_size=32)
    inputs.log_decay[0], inputs.beta[0] = 0.0, 0.0
    _, state = harness.run(CHUNK, inputs, exact=exact)
    np.testing.assert_array_equal(state[0], inputs.state[0])
    assert not np.array_equal(state[1], inputs.state[1])


@pytest.mark.parametrize("exact", [True, False])
def test_padding_after_a_prompt_changes_nothing(exact):
    """The same chunk size with and without 28 tokens of padding: bit for bit."""
    inputs = oracle.inputs(tokens=100, group=2, cosine=0.8, key_size=32, value_size=32)
    out, state = harness.run(CHUNK, inputs, exact=exact)
    longer = harness.padded(inputs, 128)
    padded_out, padded_state = harness.run(CHUNK, longer, exact=exact)
    np.testing.assert_array_equal(padded_out[:, :100], out)
    np.testing.assert_array_equal(padded_state, state)


def test_rows_are_independent():
    inputs = oracle.inputs(batch=3, tokens=20, group=2, cosine=0.8, key_size=32, value_size=32)
    together = harness.run(CHUNK, inputs)
    for row in range(3):
        alone = harness.run(CHUNK, oracle.Inputs(*(x[row : row + 1] for x in inputs)))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[row : row + 1], b)


def test_a_129th_token_is_refused():
    with pytest.raises(AssertionError, match="at most 128 tokens"):
        harness.run(CHUNK, oracle.inputs(tokens=129, key_size=16, value_size=16))
