"""`scripts/flagship.py` on a tiny geometry: files, both prompts, decoding, the comparison."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qwen35

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import flagship
import flagship_files
import flagship_reference

TINY = dataclasses.replace(
    qwen35.presets["9b"],
    vocab_size=320,
    hidden_size=256,
    intermediate_size=384,
    num_hidden_layers=2,
    layer_types=("linear_attention", "full_attention"),
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
    mrope_section=(2, 1, 1),
    vision=dataclasses.replace(
        qwen35.presets["9b"].vision,
        depth=1, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=256,
        num_position_embeddings=36,
    ),
)  # fmt: skip


def directly(function, *args):
    return function(*args)


@pytest.mark.parametrize("weights", [pytest.param("int4", marks=pytest.mark.slow), "int8"])
def test_a_tiny_one_is_as_transformers_computes_it(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/flagship.py", str(tmp_path), "--report", "docs"])
    result = flagship.measure(TINY, tmp_path, weights, 3, directly)
    assert flagship.holds(result["errors"]), result["errors"]
    assert set(result["errors"]["hidden"]) == {1, 2}
    assert result["errors"]["tokens"] == 2 * (3 + 1)
    assert all(size > 0 for size in result["figures"]["weights"].values())
    told = result["provenance"]["command"]
    assert told == f"scripts/flagship.py {tmp_path.name} --report docs"
    text = flagship.page(result)
    assert "tokens/s" in text and "hidden states, 2 layers" in text
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size == pytest.approx(flagship_files.size_of(TINY, weights), rel=0.1)


def test_what_is_off_or_another_token_does_not_hold():
    hidden, logits, image = torch.rand(2, 5, 8), torch.rand(2, 3, 9), torch.rand(4, 8)
    truth = flagship_reference.Truth({2: hidden}, logits, image)
    own = flagship.Computed(None, {2: hidden}, logits, image, None, {})
    assert flagship.holds(flagship.compare(own, truth))
    for changes in (
        {"hidden": {2: hidden * 1.01}},
        {"image": image * 1.01},
        {"logits": logits.flip(-1)},
    ):
        assert not flagship.holds(flagship.compare(own._replace(**changes), truth))


def test_codes_of_int4_become_the_values_that_the_library_reads(tmp_path):
    """The reference's own reading, and the files' form."""
    pack_quantized = pytest.importorskip("compressed_tensors.compressors.pack_quantized")
    flagship_files.write(TINY, tmp_path, "int4")
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    parts = load_file(tmp_path / "model-00001-of-00001.safetensors")
    shape = torch.Size(parts[name + "_shape"].tolist())
    codes = pack_quantized.unpack_from_int32(parts[name + "_packed"], 4, shape)
    scales = parts[name + "_scale"].float().repeat_interleave(flagship_files.GROUP, dim=1)
    values = flagship_reference.Weights(tmp_path).rows(name, slice(None))
    assert torch.equal(values, codes.float() * scales)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"
