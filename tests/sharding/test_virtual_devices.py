"""All ranks on the virtual devices of one process, held to the single-device model."""

import json
import subprocess
import sys
from pathlib import Path

import joining
import models
import pytest
import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35.sharding.mesh import Mesh

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "dp", "tp", "steps"),
    [
        ("two_layers", 1, 2, 2),
        pytest.param("heads_of_27b", 1, 2, 64, marks=slow),
        pytest.param("heads_of_27b", 1, 4, 64, marks=slow),
        pytest.param("heads_of_27b", 1, 8, 64, marks=slow),
        pytest.param("heads_of_27b", 1, 16, 64, marks=slow),
        pytest.param("heads_of_0.8b_tied", 1, 16, 64, marks=slow),
        pytest.param("even", 2, 4, 64, marks=slow),
    ],
)
def test_virtual_devices_say_what_one_device_says(
    name, dp, tp, steps, checkpoint, alone, run_ranks
):
    """Logits to 1e-5 of the largest (they sum in another order), greedy tokens exactly."""
    mesh, expected = Mesh(dp=dp, tp=tp), alone(name, steps)
    path = str(checkpoint(name))
    [result] = run_ranks("virtual_devices", mesh, path=path, steps=steps, processes=1, timeout=900)
    said = result["said"]
    assert said.logits.keys() == expected.logits.keys()
    for step, logits in expected.logits.items():
        assert models.relative_error(said.logits[step], logits) < 1e-5, step
    assert torch.equal(said.tokens, expected.tokens)
    assert result["compilations"] == (4, 2), "one compilation per signature"
    rows = [
        joining.join_state(models.CONFIGS[name], result["states"][row * tp : (row + 1) * tp], mesh)
        for row in range(dp)
    ]
    for leaf, *parts in zip(pytree.tree_leaves(expected.state), *rows, strict=True):
        assert models.relative_error(torch.cat(parts), leaf) < 1e-5


@pytest.mark.parametrize(
    ("name", "tp", "weights"),
    [
        ("two_layers", 2, "int8"),
        ("two_layers", 2, "int4"),
        ("even", 4, "fp8"),
        pytest.param("heads_of_27b", 4, "int4", marks=slow),
        ("heads_of_27b", 16, "int8"),  # a rank of padded heads alone
        pytest.param("heads_of_0.8b_tied", 2, "fp8", marks=slow),
    ],
)
def test_quantised_ranks_say_what_one_device_says(name, tp, weights, checkpoint, run_ranks):
    """Their scales are those of the whole matrices: logits differ by the order of sums alone."""
    path = checkpoint(name)
    expected = models.exercise(qwen35.load(path, weights=weights, head=weights), steps=2)
    asked = {"path": str(path), "steps": 2, "weights": weights}
    [result] = run_ranks("virtual_devices", Mesh(tp=tp), **asked, processes=1, timeout=900)
    for step, logits in expected.logits.items():
        assert models.relative_error(result["said"].logits[step], logits) < 1e-5, step
    assert torch.equal(result["said"].tokens, expected.tokens)


def test_a_state_of_all_ranks_grows(checkpoint, run_ranks):
    """As one device's does: the logits of tokens beyond the first capacity are the same."""
    path = checkpoint("two_layers")
    params, tokens = qwen35.load(path), torch.tensor(models.GROWN)
    _, state = qwen35.prefill(params, qwen35.init_state(params, 2, 6), tokens[:, :4])
    mesh = Mesh(tp=2)
    [result] = run_ranks("grown_on_virtual_devices", mesh, path=str(path), processes=1)
    assert result["same"], "the layers are kept as before"
    assert result["compilations"] == 1, "a grown state is split as a decoded one is"
    for place, logits in zip((4, 5), result["logits"], strict=True):
        expected, state = qwen35.decode(params, state, tokens[:, place])
        assert models.relative_error(logits, expected) < 1e-5


@slow
def test_the_cost_of_ranks_is_reported(tmp_path):
    """`scripts/benchmark_ranks.py`. A time is no test's verdict: only its figures' presence is."""
    script = Path(__file__).parents[2] / "scripts" / "benchmark_ranks.py"
    options = ["--tp", "4", "--blocks", "5", "--json", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["ratio"] == result["host_tp"] / result["host_1"] > 0
    assert min(result["step_1"], result["step_tp"]) > 0 and 0 < result["collectives"] < 1
    assert f"{result['ratio']:.2f} times" in done.stdout
