"""Step: each NKI kernel, alone in a graph, against the float64 loop."""

from __future__ import annotations

import torch

from ..kernels import Plan, binding, grid, neuron
from ..xla.devices import device_name
from . import delta_rule
from .outcomes import Tests
from .steps import AbsentError, Settings

# Of float32, for a device, apart from what holds where exp is exact (1e-6 and 1e-5): twice what the
# kernels reach on the emulator where ScalarE's exp is off by as much as a third party measured. The
# step computes no exp; its decays are a graph's, which may take the same table below exp(-1/2).
EXP_ERROR = 1.5e-5  # relative
STEP, CHUNK, PREFILL = 3e-5, 1.2e-4, 1.7e-4
ALL_BFLOAT16 = 6e-2  # of 16-bit inputs: twice the bound on the emulator


def bound(tokens: int) -> float:
    """Returns the bound of the kernel that takes so many tokens."""
    if tokens == 1:
        return STEP
    return CHUNK if tokens <= binding.CHUNK_TOKENS else PREFILL


def measure(settings: Settings) -> dict:
    """Runs the step."""
    missing = neuron.missing(torch.device(device_name()))
    if missing is not None:
        raise AbsentError(f"the kernels need {missing}")
    tests = Tests()
    delta_rule.compare(tests, delta_rule.call("nki"), bound)
    # Where a device refuses what the default does, one of these may run: on a shape of each kernel.
    first = {bound(tokens): tokens for tokens in reversed(grid.AXES["tokens"])}
    delta_rule.compare(
        tests,
        delta_rule.call("nki", Plan(gpsimd=False)),
        bound,
        lengths=list(first.values()),
        how=", without GpSimd",
    )
    delta_rule.compare(
        tests,
        delta_rule.call("nki", Plan(float16=False)),
        bound,
        half=ALL_BFLOAT16,
        lengths=[first[CHUNK], first[PREFILL]],  # the step multiplies in float32
        dtypes=(torch.bfloat16,),
        how=", without float16",
    )
    return tests.outcome()
