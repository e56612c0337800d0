"""The kernels over every pair of values of the grid; scripts/kernels/errors.py runs it all."""

import grid
import harness
import pytest

from qwen35.kernels import oracle
from qwen35.neuron.nki_kernels import EXP_ERROR, bound

CASES = list(grid.pairs())


@pytest.mark.parametrize("dtype", grid.DTYPES)
@pytest.mark.parametrize("case", CASES, ids=grid.label)
def test_matches_the_definition(case, dtype):
    inputs = grid.inputs(case, key_size=64, value_size=32)
    options = grid.DTYPES[dtype]
    expected = oracle.delta_rule(*(harness.round_inputs(inputs) if options["half"] else inputs))
    for name in grid.kernels(case["tokens"]):
        for mine, truth in zip(grid.run(name, inputs, **options), expected, strict=True):
            assert oracle.relative_error(mine, truth) < grid.bound(name, dtype), name


@pytest.mark.parametrize("case", CASES, ids=grid.label)
def test_with_scalar_es_exp_as_a_third_party_measured_it_errors_are_half_a_devices_bounds(case):
    inputs = grid.inputs(case, key_size=64, value_size=32)
    expected = oracle.delta_rule(*inputs)
    for name in grid.kernels(case["tokens"]):
        outputs = grid.run(name, inputs, half=False, exact=True, exp_error=EXP_ERROR)
        for mine, truth in zip(outputs, expected, strict=True):
            limit = bound(case["tokens"] if name != "chunk" else max(case["tokens"], 2))
            assert oracle.relative_error(mine, truth) < limit / 2, name


def test_those_errors_are_the_exps():
    """The bounds of exact arithmetic do not hold then: an emulator without them proves too much."""
    inputs = oracle.inputs(tokens=128, group=2, cosine=0.8, decay="mixed")
    found = [max(harness.errors(harness.CHUNK, inputs, exp_error=e)) for e in (0.0, EXP_ERROR)]
    assert found[0] < grid.bound("chunk", "float32") < found[1]
