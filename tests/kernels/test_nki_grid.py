"""The kernels over every pair of values of the grid; scripts/kernels/errors.py runs it all."""

import grid
import harness
import oracle
import pytest

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
