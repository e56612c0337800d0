"""Steps cut into graphs of some layers, on ranks both ways, held to the single-device model."""

import joining
import models
import pytest
import serving
import torch
from torch.utils import _pytree as pytree

from qwen35.sharding.mesh import Mesh

slow = pytest.mark.slow


def assert_same(said, expected):
    assert said.logits.keys() == expected.logits.keys()
    assert torch.equal(said.tokens, expected.tokens)
    for step, logits in expected.logits.items():
        assert models.relative_error(said.logits[step], logits) < 1e-5, step


def test_processes(checkpoint, alone, run_ranks):
    """Over gloo, where nothing is compiled and a chain is a loop."""
    name = "two_blocks"
    for said in run_ranks("exercise", Mesh(tp=2), path=str(checkpoint(name)), segments="auto"):
        assert_same(said, alone(name))


@pytest.mark.parametrize(
    ("name", "dp", "tp", "segments", "steps"),
    [
        ("two_blocks", 1, 2, "auto", 2),
        pytest.param("two_blocks", 1, 2, 2, 16, marks=slow),
        pytest.param("two_blocks", 2, 2, "auto", 16, marks=slow),
    ],
)
def test_virtual_devices(name, dp, tp, segments, steps, checkpoint, alone, run_ranks):
    """All ranks in one process: logits, tokens, and the states of all ranks."""
    mesh, expected = Mesh(dp=dp, tp=tp), alone(name, steps)
    asked = {"path": str(checkpoint(name)), "steps": steps, "segments": segments}
    [result] = run_ranks("virtual_devices", mesh, **asked, processes=1, timeout=900)
    assert_same(result["said"], expected)
    assert result["compilations"] == (4, 2), "one compilation per signature"
    assert not any("one graph" in line for line in result["signatures"])
    rows = [
        joining.join_state(models.CONFIGS[name], result["states"][row * tp : (row + 1) * tp], mesh)
        for row in range(dp)
    ]
    for leaf, *parts in zip(pytree.tree_leaves(expected.state), *rows, strict=True):
        assert models.relative_error(torch.cat(parts), leaf) < 1e-5


@slow
def test_layers_that_were_stacked_say_so(checkpoint, alone, run_ranks):
    """Who loads with one graph and cuts later gets one graph, with the reason."""
    name = "two_blocks"
    asked = {"path": str(checkpoint(name)), "steps": 2, "later": "auto"}
    [result] = run_ranks("virtual_devices", Mesh(tp=2), **asked, processes=1, timeout=900)
    assert_same(result["said"], alone(name, 2))
    assert all("stacked when they were placed" in line for line in result["signatures"])


@slow
def test_an_engine_on_virtual_devices(checkpoint, run_ranks):
    """Each request's tokens are the likeliest of a single device."""
    path = checkpoint("two_blocks")
    asked = {"path": str(path), "count": 6, "cache_bytes": 100_000, "segments": "auto"}
    [said] = run_ranks("serve_on_virtual_devices", Mesh(tp=2), **asked, processes=1, timeout=900)
    serving.check_likeliest(path, 6, said)
