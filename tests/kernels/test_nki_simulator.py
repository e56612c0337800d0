"""The kernels on AWS's own simulator, wherever its package is installed (it is on no public index).

The same files, the same inputs and the same bounds as on our emulator.
"""

import importlib
import os

import grid
import harness
import numpy as np
import pytest

from qwen35.kernels import binding, emulator, oracle

MISSING = emulator.nki_unavailable()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
KERNELS = {"step": binding.STEP, "chunk": binding.CHUNK, "fused": binding.PREFILL}


def errors(name, inputs, dtype, lnc=1):
    """Relative errors of output and state."""
    os.environ["NEURON_PLATFORM_TARGET_OVERRIDE"] = "trn2"
    import nki

    kernel = KERNELS[name]
    function = getattr(importlib.import_module(f"qwen35.kernels.{kernel.module}"), kernel.function)
    options = grid.DTYPES[dtype]
    tokens = inputs.key.shape[1]
    arrays = list(harness.padded(inputs, 128) if name == "fused" else inputs)
    if name == "step":
        arrays[:5] = harness.step_arrays(inputs)
    if options["half"]:
        import ml_dtypes  # nki depends on it

        arrays[:3] = [x.astype(ml_dtypes.bfloat16) for x in arrays[:3]]
        inputs = harness.round_inputs(inputs)
    simulated = nki.simulate(function[lnc] if lnc > 1 else function)
    static = {name: value for name, value in options.items() if name != "half"}
    out, state = simulated(*arrays, **static)
    out = np.asarray(out, np.float32)
    out = out[:, None] if name == "step" else out[:, :tokens]
    return [
        oracle.relative_error(mine, truth)
        for mine, truth in zip((out, state), oracle.delta_rule(*inputs), strict=True)
    ]


@pytest.mark.parametrize("dtype", grid.DTYPES)
@pytest.mark.parametrize("case", list(grid.pairs()), ids=grid.label)
def test_matches_the_definition(case, dtype):
    inputs = grid.inputs(case, key_size=64, value_size=32)
    for name in grid.kernels(case["tokens"]):
        assert max(errors(name, inputs, dtype)) < grid.bound(name, dtype), name


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("dtype", grid.DTYPES)
@pytest.mark.parametrize(("name", "tokens"), [("step", 1), ("chunk", 31), ("fused", 384)])
def test_a_rank_of_the_27b_layer(name, tokens, dtype, lnc):
    inputs = oracle.inputs(batch=2, tokens=tokens, key_heads=2, group=3, cosine=0.8, decay="mixed")
    assert max(errors(name, inputs, dtype, lnc)) < grid.bound(name, dtype)
