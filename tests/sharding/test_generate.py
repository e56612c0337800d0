"""`generate` on several ranks, held to one device: drawn tokens, penalties and bans as well."""

import models
import pytest

import qwen35
from qwen35.sharding.mesh import Mesh

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("scenario", "name", "dp", "tp", "processes"),
    [
        ("generate", "two_layers", 1, 2, None),
        pytest.param("generate_on_virtual_devices", "two_layers", 1, 2, 1, marks=slow),
        pytest.param("generate_on_virtual_devices", "even", 2, 2, 1, marks=slow),
    ],
)
def test_generate_says_what_one_device_says(
    scenario, name, dp, tp, processes, checkpoint, run_ranks
):
    expected = models.generated(qwen35.load(checkpoint(name)))
    assert len({len(set(row)) for row in expected}) > 1, "rows differ"
    more = {} if processes is None else {"processes": processes}
    for said in run_ranks(scenario, Mesh(dp=dp, tp=tp), path=str(checkpoint(name)), **more):
        assert said == expected
