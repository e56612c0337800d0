"""Image embeddings and mRoPE positions on several ranks, held to the single-device model.

Embeddings are whole on every rank, where those of words are put together from all; positions
have the batch's rows along their second dimension.
"""

import models
import pytest
from qwen35.sharding.mesh import Mesh

import qwen35


def assert_same(said, checkpoint, name):
    expected = models.look(qwen35.load(checkpoint(name)))
    assert len(said) == len(expected) == 6
    for actual, wanted in zip(said, expected, strict=True):
        assert wanted.isfinite().all()
        assert models.relative_error(actual, wanted) < 1e-5


def test_processes(checkpoint, run_ranks):
    for said in run_ranks("look", Mesh(tp=2), path=str(checkpoint("two_layers"))):
        assert_same(said, checkpoint, "two_layers")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dp", "tp"), [("heads_of_27b", 1, 4), ("even", 2, 2)])
def test_virtual_devices(name, dp, tp, checkpoint, run_ranks):
    mesh, path = Mesh(dp=dp, tp=tp), str(checkpoint(name))
    [said] = run_ranks("look_on_virtual_devices", mesh, path=path, processes=1, timeout=600)
    assert_same(said, checkpoint, name)
