"""A fast subset of the kernel tests, as one function: scripts/kernels/mutate.py runs it on
mutated kernels, test_nki_checks on the true ones.
"""

import harness
import numpy as np

from qwen35.kernels import oracle

EXACT = 1e-5  # as in test_nki_chunk
FAST = 1e-2
STEP = 1e-6
MEDIUM = {"cosine": 0.8, "key_size": 32, "value_size": 16}
MEDIUM_KEYS = {"cosine": 0.8, "key_size": 64, "value_size": 32}


def check(step, chunk, prefill):
    """Raise unless the kernels pass; the cheapest checks come first."""
    check_step(step)
    check_chunk(chunk)
    check_prefill(prefill)
    check_cost(chunk, prefill)


def check_step(kernel):
    inputs = oracle.inputs(
        batch=2, tokens=1, key_heads=2, group=3, decay="mixed", beta=(0.1, 1.0), **MEDIUM
    )
    assert max(harness.errors(kernel, inputs)) < STEP
    one, two = harness.run(kernel, inputs), harness.run(kernel, inputs, lnc=2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    many = oracle.inputs(batch=3, tokens=1, key_heads=16, group=2, key_size=16, value_size=128)
    assert max(harness.errors(kernel, many)) < STEP
    moved = harness.simulate(kernel, many).report.dma_bytes
    assert moved < 2 * many.state.nbytes * 1.3, "the state passes memory once each way"

    assert max(harness.errors(kernel, inputs, half=True, exact=False)) < FAST
    # As below: 2.3e-3 and 7e-4; 2e-4, where nothing is rounded but the float16 operands; 2.7e-3
    # of the state, where nothing but the correction and its column are.
    fine = oracle.inputs(
        seed=3, batch=3, tokens=1, key_heads=2, group=3, beta=(0.1, 1.0), **MEDIUM_KEYS
    )
    out, state = harness.errors(kernel, fine, exact=False)
    assert out < 2.6e-3 and state < 9e-4
    still = fine._replace(beta=np.zeros_like(fine.beta), state=oracle.bfloat16(fine.state))
    assert max(harness.errors(kernel, still, exact=False)) < 3e-4
    empty = fine._replace(state=np.zeros_like(fine.state))
    assert harness.errors(kernel, empty, exact=False)[1] < 2.9e-3
    for huge in (
        fine._replace(value=fine.value * np.float32(1e8)),
        fine._replace(state=fine.state * np.float32(1e8)),
    ):
        assert max(harness.errors(kernel, huge, exact=False)) < FAST
    refused(kernel, "too many value heads", group=33, tokens=1)
    check_report(kernel, 1, True, 49, 8736, 7.76)
    check_report(kernel, 1, False, 51, 7200, 7.45)


def check_chunk(kernel):
    inputs = oracle.inputs(
        batch=2, tokens=31, key_heads=2, group=3, decay="mixed", beta=(0.1, 1.0), **MEDIUM
    )
    assert max(harness.errors(kernel, inputs)) < EXACT
    assert max(harness.errors(kernel, inputs, half=True, exact=False)) < FAST
    # What float16 in the inverse is for: 2.7e-3 and 1.2e-3 here; bfloat16 in the place of any one
    # float16 tile that carries information gives 3.0e-3 or more.
    fine = oracle.inputs(seed=3, group=2, cosine=0.95, key_size=64, value_size=32)
    out, state = harness.errors(kernel, fine, exact=False)
    assert out < 2.9e-3 and state < 1.3e-3
    short = oracle.inputs(tokens=1, **MEDIUM)
    assert max(harness.errors(kernel, short)) < EXACT
    still = inputs._replace(beta=np.zeros_like(inputs.beta), log_decay=inputs.log_decay * 0)
    np.testing.assert_array_equal(harness.run(kernel, still)[1], inputs.state)
    large = oracle.inputs(tokens=128, group=2, state_scale=1e3, cosine=0.95, beta=1.0)
    assert max(harness.errors(kernel, large)) < EXACT
    for huge in (  # nothing of their size may pass through float16
        large._replace(value=large.value * np.float32(1e8)),
        large._replace(state=large.state * np.float32(1e8)),
    ):
        assert max(harness.errors(kernel, huge, exact=False)) < FAST
    strong = oracle.inputs(tokens=40, decay="strong", key_size=16, value_size=64)
    assert max(harness.errors(kernel, strong)) < EXACT
    refused(kernel, "too many value heads", group=9)


def check_prefill(kernel):
    inputs = oracle.inputs(
        batch=2, tokens=384, key_heads=3, group=2, decay="mixed", beta=(0.1, 1.0), **MEDIUM
    )
    assert max(harness.errors(kernel, inputs)) < EXACT
    assert max(harness.errors(kernel, inputs, half=True, exact=False)) < FAST
    one = oracle.inputs(tokens=384, group=3, **MEDIUM)
    assert max(harness.errors(kernel, one)) < EXACT
    assert max(harness.errors(kernel, one, lnc=2)) < EXACT
    blocks = oracle.inputs(tokens=256, key_heads=6, group=3, **MEDIUM)  # three of them
    assert max(harness.errors(kernel, blocks)) < EXACT
    report = harness.simulate(kernel, blocks).report
    moved = sum(x.nbytes for x in blocks) + blocks.value.nbytes + blocks.state.nbytes
    assert report.dma_bytes == moved, "every tensor passes memory once"
    wide = oracle.inputs(tokens=256, key_heads=4, group=3, key_size=128, value_size=128)
    assert max(harness.errors(kernel, wide, exact=False)) < FAST
    odd = oracle.inputs(batch=1, tokens=256, key_heads=8, group=1, key_size=128, value_size=16)
    assert max(harness.errors(kernel, odd)) < EXACT
    refused(kernel, "at most 1024", batch=41, tokens=25 * 128)  # 1025


def check_cost(chunk, prefill):
    """Of the 27B layer at TP=8, in 16 bits and in float32."""
    check_report(chunk, 128, False, 304, 31060, 19.5)
    check_report(prefill, 512, False, 1090, 54732, 59.2)
    check_report(prefill, 512, True, 1079, 81600, 100.5)


def check_report(kernel, tokens, exact, instructions, memory, microseconds):
    """The figures of kernels/README.md: instructions and SBUF exactly, the time within 5 %."""
    inputs = oracle.inputs(tokens=tokens, key_heads=2, group=3)
    report = harness.simulate(kernel, inputs, exact=exact).report
    assert sum(report.instructions.values()) == instructions
    assert report.sbuf_peak == memory
    assert report.critical_path_ns < 1.05e3 * microseconds


def refused(kernel, message, **options):
    """What the kernel says that it does not take."""
    try:
        harness.run(kernel, oracle.inputs(key_size=16, value_size=16, **options))
    except AssertionError as error:
        assert message in str(error)
    else:
        raise AssertionError(f"{options} passed")
