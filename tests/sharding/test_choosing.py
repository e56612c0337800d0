"""Choosing from logits that stay split over the ranks, held to one device."""

import choosing
import pytest

import qwen35
from qwen35.sharding.mesh import Mesh
from qwen35.sharding.split import Split

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("scenario", "tp", "processes"),
    [
        ("choose", 2, None),
        ("choose_on_virtual_devices", 4, 1),
        pytest.param("choose", 4, None, marks=slow),
        pytest.param("choose_on_virtual_devices", 2, 1, marks=slow),
        pytest.param("choose_on_virtual_devices", 8, 1, marks=slow),
        pytest.param("choose_on_virtual_devices", 16, 1, marks=slow),
    ],
)
def test_ranks_choose_what_one_device_chooses(scenario, tp, processes, checkpoint, run_ranks):
    """Greedy, drawn, with penalties and bans, log probabilities; the same on every rank."""
    path = checkpoint("heads_of_27b" if tp > 2 else "two_layers")
    expected = choosing.chosen(qwen35.load(path))
    more = {} if processes is None else {"processes": processes}
    for found in run_ranks(scenario, Mesh(tp=tp), path=str(path), **more):
        choosing.check(found, expected)


def test_what_ranks_can_not_split():
    with pytest.raises(ValueError, match="10 can't be split evenly over tp = 4"):
        Split(10, Mesh(tp=4))
    with pytest.raises(ValueError, match="dimension of 16777218 is over 16777216"):
        Split(2**24 + 2)
