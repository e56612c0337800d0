"""States in files: written on one mesh, read on another."""

import pytest
import torch
from safetensors.torch import load_file

import qwen35
from qwen35.sharding.mesh import Mesh

slow = pytest.mark.slow


@pytest.fixture
def saved(checkpoint, tmp_path):
    """saved(name): a file with the state of two prompts, written by one device, and its params."""

    def write(name):
        params = qwen35.load(checkpoint(name))
        tokens = torch.arange(22).view(2, 11) + 20
        state = qwen35.init_state(params, 2, 40)
        logits, state = qwen35.prefill(params, state, tokens, torch.tensor([11, 6]))
        qwen35.save_state(tmp_path / "state", params, state, logits=logits)
        return params, tmp_path / "state"

    return write


def go_on(params, file):
    """The tokens that follow a saved state, and what `save_state` writes after them."""
    found = qwen35.load_state(file, params, capacity=40)
    token, state, tokens = found.logits.argmax(-1), found.state, []
    for _ in range(6):
        tokens.append(token.tolist())
        logits, state = qwen35.decode(params, state, token)
        token = logits.argmax(-1)
    return tokens, state


@pytest.mark.parametrize(
    ("scenario", "name", "tp"),
    [
        ("states_in_processes", "heads_of_27b", 2),
        pytest.param("states_in_processes", "heads_of_27b", 8, marks=slow),
        pytest.param("states_on_virtual_devices", "two_layers", 2, marks=slow),
        pytest.param("states_on_virtual_devices", "even", 4, marks=slow),
    ],
)
def test_a_state_goes_on_at_another_tp(scenario, name, tp, saved, run_ranks, tmp_path):
    """There and back again: ranks go on from one device's file, and one device from theirs."""
    params, file = saved(name)
    out = tmp_path / "out"
    processes = tp if scenario == "states_in_processes" else 1
    arguments = {
        "path": str(tmp_path / "model"), "file": str(file), "out": str(out), "processes": processes
    }  # fmt: skip
    qwen35.save(params, tmp_path / "model")
    expected, state = go_on(params, file)
    for tokens in run_ranks(scenario, Mesh(tp=tp), **arguments):
        assert tokens == expected
    qwen35.save_state(tmp_path / "alone", params, state)
    ours, theirs = load_file(out), load_file(tmp_path / "alone")
    assert ours.keys() - {"logits"} == theirs.keys()
    for tensor, value in theirs.items():
        assert torch.allclose(ours[tensor].float(), value.float(), atol=1e-4), tensor
    further, state = go_on(params, out)
    assert len({*map(tuple, further)}) > 1 and state.position.tolist() == [23, 18]
