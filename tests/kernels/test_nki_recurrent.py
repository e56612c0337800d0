"""gated_delta_step on the emulator against the float64 definition.

Bounds: float32 sums of 128 products, twice in a row, stay under 1e-6 of the largest entry;
bfloat16 outputs add their own rounding, 2^-9. `FAST` bounds 16-bit operands as in test_nki_chunk.
"""

import harness
import numpy as np
import pytest
from harness import STEP

from qwen35.kernels import oracle

FLOAT32 = 1e-6
BFLOAT16 = 2.0**-8
FAST = 1e-2


def run(inputs, **options):
    return harness.run(STEP, inputs, **options)


def errors(inputs, **options):
    return harness.errors(STEP, inputs, **options)


@pytest.mark.parametrize("decay", ["none", "mixed", "strong"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (3, 3)])
def test_matches_the_definition(batch, group, beta, decay):
    inputs = oracle.inputs(
        seed=group, batch=batch, tokens=1, key_heads=2, group=group, beta=beta, decay=decay
    )
    assert max(errors(inputs)) < FLOAT32
    assert max(errors(inputs, half=True, exact=False)) < FAST


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_zero_and_large_states(scale):
    inputs = oracle.inputs(seed=1, tokens=1, group=3, state_scale=scale)
    assert max(errors(inputs)) < FLOAT32
    assert max(errors(inputs, half=True, exact=False)) < FAST


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("cosine", [0.5, 0.8, 0.95])
def test_queries_near_the_key(cosine, scale):
    """With beta = 1 the output cancels most of what the state held: a larger share is error."""
    inputs = oracle.inputs(seed=2, tokens=1, group=2, cosine=cosine, beta=1.0, state_scale=scale)
    assert max(errors(inputs)) < 5e-6
    assert max(errors(inputs, half=True, exact=False)) < FAST


@pytest.mark.parametrize(("key_size", "value_size"), [(16, 128), (32, 64), (64, 32), (128, 16)])
def test_head_sizes(key_size, value_size):
    inputs = oracle.inputs(
        tokens=1, batch=2, key_heads=2, group=2, key_size=key_size, value_size=value_size
    )
    assert max(errors(inputs)) < FLOAT32
    assert max(errors(inputs, exact=False)) < FAST


def test_bfloat16_inputs_only_round_the_output():
    out, state = errors(oracle.inputs(tokens=1, batch=2, key_heads=2, group=3), half=True)
    assert out < BFLOAT16
    assert state < FLOAT32


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_input_and_operand_precisions_are_independent(half, exact):
    inputs = oracle.inputs(seed=4, tokens=1, batch=2, key_heads=2, group=3, cosine=0.5)
    out, state = errors(inputs, half=half, exact=exact)
    assert out < (FAST if not exact else BFLOAT16 if half else FLOAT32)
    assert state < (FLOAT32 if exact else FAST)
    if not exact:
        assert state > 1e-5, "there is a choice"


@pytest.mark.parametrize("decay", ["none", "mixed"])
@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.8, 0.95])
def test_16_bit_operands_do_not_add_up_over_steps(cosine, decay):
    """Each step corrects along its key what the ones before it rounded."""
    inputs = oracle.inputs(
        tokens=96, group=2, cosine=cosine, beta=(0.1, 1.0), decay=decay, key_size=32, value_size=16
    )
    expected, expected_state = oracle.delta_rule(*inputs)
    pieces, state = [], inputs.state
    for t in range(96):
        piece, state = run(harness.tokens(inputs, t, t + 1, state), exact=False)
        pieces.append(piece)
    assert oracle.relative_error(np.concatenate(pieces, 1), expected) < FAST
    assert oracle.relative_error(state, expected_state) < FAST


@pytest.mark.parametrize("version", ["0.3", "0.4", "0.5", "0.6", "0.7"])
def test_every_language_version(version):
    inputs = oracle.inputs(tokens=1, key_heads=2, group=3)
    for exact, bound in ((True, FLOAT32), (False, FAST)):
        assert max(errors(inputs, version=version, exact=exact)) < bound


@pytest.mark.parametrize(
    ("batch", "key_heads"), [(1, 2), (2, 1), (1, 1)], ids=["heads", "rows", "columns"]
)
def test_two_cores_split_heads_rows_or_columns(batch, key_heads):
    inputs = oracle.inputs(tokens=1, batch=batch, key_heads=key_heads, group=3)
    for exact in (True, False):
        one, two = run(inputs, lnc=1, exact=exact), run(inputs, lnc=2, exact=exact)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("exact", [True, False])
def test_padding_leaves_the_state_bit_for_bit(exact):
    inputs = oracle.inputs(tokens=1, batch=2, group=2)
    inputs.log_decay[0], inputs.beta[0] = 0.0, 0.0
    _, state = run(inputs, exact=exact)
    np.testing.assert_array_equal(state[0], inputs.state[0])
    assert not np.array_equal(state[1], inputs.state[1])


def test_rows_are_independent():
    inputs = oracle.inputs(tokens=1, batch=3, group=2)
    together = run(inputs)
    for row in range(3):
        alone = run(oracle.Inputs(*(x[row : row + 1] for x in inputs)))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[row : row + 1], b)


def test_blocks_of_a_whole_layer():
    """48 value heads in two rows do not fit one block of lanes."""
    inputs = oracle.inputs(tokens=1, batch=2, key_heads=16, group=3)
    assert max(errors(inputs)) < FLOAT32
    assert max(errors(inputs, exact=False)) < FAST


def test_the_state_passes_memory_once_each_way():
    inputs = oracle.inputs(tokens=1, key_heads=2, group=3)
    moved = harness.simulate(STEP, inputs).report.dma_bytes
    assert moved < 2 * inputs.state.nbytes * 1.02


def test_computes_no_exp_so_that_its_errors_do_not_add_up():
    inputs = oracle.inputs(tokens=1, batch=2, group=3, decay="mixed")
    for a, b in zip(run(inputs), run(inputs, exp_error=0.1), strict=True):
        np.testing.assert_array_equal(a, b)
