"""States that go from one mesh to another, by files and without."""

import random

import models
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
    ("scenario", "name", "dp", "tp"),
    [
        ("states_in_processes", "heads_of_27b", 1, 2),
        pytest.param("states_in_processes", "heads_of_27b", 1, 8, marks=slow),
        pytest.param("states_on_virtual_devices", "two_layers", 1, 2, marks=slow),
        pytest.param("states_on_virtual_devices", "even", 1, 4, marks=slow),
        pytest.param("states_on_virtual_devices", "two_layers", 2, 1, marks=slow),
    ],
)
def test_a_state_goes_on_at_another_tp(scenario, name, dp, tp, saved, run_ranks, tmp_path):
    """There and back again: ranks go on from one device's file, and one device from theirs."""
    params, file = saved(name)
    out = tmp_path / "out"
    processes = tp if scenario == "states_in_processes" else 1
    arguments = {
        "path": str(tmp_path / "model"), "file": str(file), "out": str(out), "processes": processes
    }  # fmt: skip
    qwen35.save(params, tmp_path / "model")
    expected, state = go_on(params, file)
    for tokens in run_ranks(scenario, Mesh(dp=dp, tp=tp), **arguments):
        assert tokens == expected
    qwen35.save_state(tmp_path / "alone", params, state)
    ours, theirs = load_file(out), load_file(tmp_path / "alone")
    assert ours.keys() - {"logits"} == theirs.keys()
    for tensor, value in theirs.items():
        assert torch.allclose(ours[tensor].float(), value.float(), atol=1e-4), tensor
    further, state = go_on(params, out)
    assert len({*map(tuple, further)}) > 1 and state.position.tolist() == [23, 18]


def texts(ways, seed):
    """Texts in pieces: tokens, the tp that reads them, whether one by one, whether by a file."""
    rng = random.Random(seed)

    def piece():
        tokens = [rng.randrange(160) for _ in range(rng.randint(1, 9))]
        return tokens, rng.choice(ways), rng.random() < 0.5, rng.random() < 0.5

    return [[piece() for _ in range(rng.randint(2, 6))] for _ in range(8)]


@pytest.mark.parametrize(
    ("name", "ways"),
    [("two_layers", [1, 2]), pytest.param("heads_of_27b", [1, 2, 4, 8], marks=slow)],
)
def test_a_text_is_read_piece_by_piece_at_any_tp(name, ways, checkpoint, run_ranks, tmp_path):
    """Logits after each piece to 1e-5 of the largest of those of one device, which reads the whole
    text at once; the likeliest tokens after it are the same."""
    path, told = checkpoint(name), texts(ways, seed=ways[-1])
    arguments = {"path": str(path), "ways": ways, "told": told, "folder": str(tmp_path)}
    ranks = run_ranks("conversations", Mesh(tp=ways[-1]), **arguments)
    params = qwen35.load(path)
    for number, pieces in enumerate(told):
        tokens = [token for piece in pieces for token in piece[0]]
        state = qwen35.init_state(params, 1, models.ROOM)
        hidden, state = qwen35.forward(params, state, torch.tensor([tokens]))
        expected, end = qwen35.logits(params, hidden)[0], 0
        following = models.follow(params, state, expected[-1:])
        for piece, *said in zip(pieces, *(rank[number][0] for rank in ranks), strict=True):
            end += len(piece[0])
            for logits in said:
                assert models.relative_error(logits[0], expected[end - 1]) < 1e-5
        assert all(rank[number][1] == following for rank in ranks)
