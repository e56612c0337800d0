"""The kernels on AWS's own simulator, wherever its package is installed (it is on no public index).

The same files, the same inputs and the same bounds as on our emulator.
"""

import importlib
import os

import harness
import oracle
import pytest
from qwen35.kernels import emulator

MISSING = emulator.nki_unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def simulate(module, name, arrays, lnc=1, **static):
    os.environ["NEURON_PLATFORM_TARGET_OVERRIDE"] = "trn2"
    import nki

    kernel = getattr(importlib.import_module(f"qwen35.kernels.{module}"), name)
    return nki.simulate(kernel[lnc] if lnc > 1 else kernel)(*arrays, **static)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("lnc", [1, 2])
def test_step(lnc, exact):
    inputs = oracle.inputs(batch=2, tokens=1, key_heads=2, group=3, decay="mixed")
    arrays = [x[:, 0] for x in inputs[:5]] + [inputs.state]
    out, state = simulate("nki_recurrent", "gated_delta_step", arrays, lnc, exact=exact)
    expected, expected_state = oracle.delta_rule(*inputs)
    bound = 1e-6 if exact else 1e-2
    assert oracle.relative_error(out[:, None], expected) < bound
    assert oracle.relative_error(state, expected_state) < bound


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("module", "name", "tokens"),
    [
        ("nki_chunk", "gated_delta_chunk", 31),
        ("nki_chunk", "gated_delta_chunk", 128),
        ("nki_fused", "gated_delta_prefill", 384),
    ],
)
def test_chunks(module, name, tokens, exact):
    inputs = harness.round_inputs(
        oracle.inputs(tokens=tokens, key_heads=2, group=3, cosine=0.8, decay="mixed")
    )
    out, state = simulate(module, name, list(inputs), exact=exact)
    expected, expected_state = oracle.delta_rule(*inputs)
    bound = 1e-5 if exact else 1e-2
    assert oracle.relative_error(out, expected) < bound
    assert oracle.relative_error(state, expected_state) < bound
