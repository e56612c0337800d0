"""One process per rank over gloo, held to the single-device model."""

import joining
import models
import pytest
import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35.model.declarations import axis_sizes, declarations, declare
from qwen35.sharding.mesh import Mesh


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


MESHES = [
    ("heads_of_27b", 1, 2),
    slow("heads_of_27b", 1, 4),
    slow("heads_of_27b", 1, 8),
    slow("heads_of_27b", 1, 16),
    slow("heads_of_0.8b_tied", 1, 4),
    slow("heads_of_0.8b_tied", 1, 16),
    slow("even", 1, 8),
    slow("even", 2, 4),
    ("heads_of_0.8b_tied", 2, 1),
]


@pytest.mark.parametrize(("name", "dp", "tp"), MESHES)
def test_ranks_say_what_a_single_device_says(name, dp, tp, checkpoint, alone, run_ranks):
    """Logits to 1e-5 of the largest (they sum in another order), greedy tokens exactly."""
    mesh, expected = Mesh(dp=dp, tp=tp), alone(name)
    ranks = run_ranks("exercise", mesh, path=str(checkpoint(name)))
    for said in ranks:
        assert said.logits.keys() == expected.logits.keys()
        assert torch.equal(said.tokens, expected.tokens)
        for step, logits in expected.logits.items():
            assert models.relative_error(said.logits[step], logits) < 1e-5, step
            assert torch.equal(said.logits[step], ranks[0].logits[step]), "ranks differ"
    config = models.CONFIGS[name]
    rows = [
        joining.join_state(config, [said.state for said in ranks[row * tp : (row + 1) * tp]], mesh)
        for row in range(dp)
    ]
    for leaf, *parts in zip(pytree.tree_leaves(expected.state), *rows, strict=True):
        whole = torch.cat(parts)
        assert whole.shape == leaf.shape and whole.dtype == leaf.dtype
        assert models.relative_error(whole, leaf) < 1e-5


@pytest.mark.parametrize(("name", "tp"), [slow("heads_of_27b", 16), slow("heads_of_0.8b_tied", 4)])
def test_gradients_are_those_of_a_single_device(name, tp, checkpoint, run_ranks):
    """Split tensors have the whole gradient; those of replicated tensors add up over the ranks.

    Gradients amplify rounding: on a single device, another chunk moves them by 1.2e-4.
    """
    mesh, config = Mesh(tp=tp), models.CONFIGS[name]
    path, sizes = checkpoint(name), axis_sizes(models.CONFIGS[name])
    loss, expected = models.gradients(qwen35.load(path), Mesh())
    ranks = run_ranks("gradients", mesh, path=str(path))
    assert all(abs(rank_loss - loss) < 1e-5 * loss for rank_loss, _ in ranks)
    for parameter, whole, *shares in zip(
        declarations(declare(config)), expected, *(grads for _, grads in ranks), strict=True
    ):
        joined = joining.join_gradient(parameter, shares, sizes, mesh)
        assert models.relative_error(joined, whole) < 5e-4, parameter.pieces[0].source.name
