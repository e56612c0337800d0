"""The fast checks that mutated kernels have to fail (scripts/kernels/mutate.py)."""

import checks
import harness


def test_the_true_kernels_pass():
    checks.check(harness.STEP, harness.CHUNK, harness.PREFILL)
