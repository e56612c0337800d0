"""What parameters and states look like at a prompt: a line each, without a value."""

from pathlib import Path

import pytest
import torch

import qwen35
from qwen35.files.materialize import abstract_params
from qwen35.model.declarations import declare
from qwen35.model.state import declare_state

DEMO = Path(__file__).resolve().parents[3] / "demo"


@pytest.fixture(scope="module")
def params(multimodal):
    return qwen35.load(multimodal.directory)


def test_a_state(params):
    state = qwen35.init_state(params, batch=3, capacity=40)
    text = repr(state)
    assert text.startswith("State(batch=3, capacity=40, 2 DeltaNetState + 2 AttentionState, ")
    size = sum(t.nbytes for layer in state.layers for t in layer) + 3 * 4 * 2
    assert f"{size / 2**20:,.1f} MiB on cpu)" in text
    assert repr(state.layers[1]) == "AttentionState(key [3, 2, 32, 40], value [3, 2, 40, 32])"
    assert repr(state.layers[0]).startswith("DeltaNetState(conv [3, 3, ")
    assert "\n" not in text and len(text) < 200


def test_parameters(params):
    text = repr(params)
    assert text.startswith("Params(hidden_size=64, vocab_size=")
    assert "vision=2 blocks" in text and "2 DeltaNetLayer + 2 AttentionLayer, float32" in text
    assert "\n" not in text and len(text) < 200
    assert repr(params.layers[1]).startswith("AttentionLayer(input_norm [64], in_proj [64, ")
    assert repr(params.vision).startswith("VisionParams(hidden_size=32, 2 VisionBlock, float32")
    assert "qkv [32, 96]" in repr(params.vision.blocks[0])


def test_other_leaves(params):
    """Stored in another way, without memory, split, or declarations instead of tensors."""
    assert "int8" in repr(qwen35.load(DEMO, weights="int8"))
    assert "on meta)" in repr(abstract_params(qwen35.presets["27b"]))
    mesh = qwen35.Mesh(tp=2)
    assert "tp=2" in repr(abstract_params(params.config, runtime=qwen35.Runtime(mesh=mesh)))
    for tree in (declare(params.config), declare_state(params.config)):
        assert len(repr(tree)) < 300 and len(repr(tree.layers[0])) < 500
    assert "shape" not in repr(params.layers[0]._replace(conv=None))


def test_a_layer_of_bits(params):
    state = qwen35.init_state(params, batch=1, capacity=8)
    bits = state.layers[1]._replace(key=state.layers[1].key.to(torch.int16))
    assert "int16" in repr(state._replace(layers=(bits,)))
