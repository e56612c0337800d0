"""Checkpoints quantised into the form of compressed-tensors: that library is the oracle."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qwen35
from qwen35.commands import cli
from qwen35.files import aside
from qwen35.files.compressing import compress
from qwen35.forms import dense

DEMO, VISION = (Path(__file__).parents[3] / name for name in ("demo", "demo_vision"))
GATE = "model.layers.0.linear_attn.in_proj_a.weight"
UP = "model.layers.0.mlp.up_proj."


def sharded(directory, dtype=torch.bfloat16, **config):
    """The demo in two files, with a head of its own and a tensor that nobody here reads."""
    directory.mkdir()
    tensors = {n: t.to(dtype) for n, t in load_file(DEMO / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    tensors["mtp.fc.weight"] = torch.ones(3, 4)
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    content = json.loads((DEMO / "config.json").read_text())
    content |= {"tie_word_embeddings": False, "dtype": str(dtype).removeprefix("torch.")} | config
    (directory / "config.json").write_text(json.dumps(content))
    shutil.copy(DEMO / "tokenizer.json", directory)
    return directory, tensors


def written(directory):
    return {n: t for file in directory.glob("*.safetensors") for n, t in load_file(file).items()}


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_names_and_configuration_are_the_published_ones(tmp_path, kind):
    source, before = sharded(tmp_path / "in")
    lines = []
    compress(source, tmp_path / "out", kind, report=lines.append)
    assert [line.partition(":")[0] for line in lines] == sorted(
        file.name for file in source.glob("*.safetensors")
    )
    after = written(tmp_path / "out")
    for name in (GATE, "lm_head.weight", "mtp.fc.weight", "model.norm.weight"):
        assert torch.equal(after[name], before[name])
    members = {name.removeprefix(UP): tensor for name, tensor in after.items() if UP in name}
    groups = 1  # of 128 inputs, as many as the demo is wide
    assert members["weight_scale"].shape == (256, groups)
    assert members["weight_scale"].dtype == torch.bfloat16
    if kind == "fp8":
        assert members.keys() == {"weight", "weight_scale"}
        assert members["weight"].dtype == torch.float8_e4m3fn
    else:
        assert members.keys() == {"weight_packed", "weight_scale", "weight_shape"}
        per_word = 4 if kind == "int8" else 8
        assert members["weight_packed"].shape == (256, 128 // per_word)
        assert members["weight_packed"].dtype == torch.int32
        assert members["weight_shape"].tolist() == [256, 128]
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    known = json.loads((source / "config.json").read_text())
    stated = content.pop("quantization_config")
    assert content == known and (tmp_path / "out" / "tokenizer.json").is_file()
    assert stated["quant_method"] == "compressed-tensors"
    assert stated["quantization_status"] == "compressed"
    assert stated["format"] == ("float-quantized" if kind == "fp8" else "pack-quantized")
    [group] = stated["config_groups"].values()
    assert group["targets"] == ["Linear"]
    weights = group["weights"]
    assert weights["num_bits"] == (4 if kind == "int4" else 8) and weights["symmetric"]
    assert weights["type"] == ("float" if kind == "fp8" else "int")
    assert weights["strategy"] == ("group" if kind == "int4" else "channel")
    assert weights["group_size"] == (128 if kind == "int4" else None)
    assert {GATE.removesuffix(".weight"), "lm_head"} < set(stated["ignore"])
    assert UP + "weight" not in stated["ignore"] and UP[:-1] not in stated["ignore"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_transformers_reads_the_same_values(tmp_path, kind, dtype):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    source, _ = sharded(tmp_path / "in", dtype)
    compress(source, tmp_path / "out", kind, head=kind)
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        dtype=dtype,
        quantization_config=CompressedTensorsConfig(run_compressed=False),
    ).eval()
    params = qwen35.load(tmp_path / "out", dtype=dtype)
    qwen35.save(qwen35.load(tmp_path / "out", dtype=dtype, weights="dense"), tmp_path / "dense")
    ours = load_file(tmp_path / "dense" / "model.safetensors")
    theirs = reference.state_dict()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name
    if dtype == torch.float32:
        tokens = torch.randint(1280, (2, 40), generator=torch.Generator().manual_seed(0))
        hidden, _ = qwen35.forward(params, qwen35.init_state(params, 2, 40), tokens)
        with torch.no_grad():
            expected = reference(tokens, use_cache=False).logits
        torch.testing.assert_close(qwen35.logits(params, hidden), expected, rtol=0, atol=1e-4)


def test_a_tower_and_a_head_of_another_kind(tmp_path):
    """Of a multimodal checkpoint only the text layers; two kinds are two groups."""
    compress(VISION, tmp_path / "vision", "int8")
    known, found = qwen35.load(VISION), qwen35.load(tmp_path / "vision", weights="dense")
    assert torch.equal(found.vision.blocks[0].up, known.vision.blocks[0].up)
    stated = json.loads((tmp_path / "vision" / "config.json").read_text())["quantization_config"]
    assert any("visual" in name for name in stated["ignore"])
    source, _ = sharded(tmp_path / "in")
    compress(source, tmp_path / "out", "int4", head="int8")
    content = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert content["format"] == "pack-quantized" and "lm_head" not in content["ignore"]
    targets = [group["targets"] for group in content["config_groups"].values()]
    assert targets[0] == ["lm_head"] and UP[:-1] in targets[1]
    params = qwen35.load(tmp_path / "out")
    assert (params.head.kind, params.layers[0].down.kind) == ("int8", "int4")


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_saving_keeps_the_codes(tmp_path, kind):
    """A tied head, for which that library has no form, keeps its values."""
    params = qwen35.load(DEMO, weights=kind, head=kind)
    qwen35.save(params, tmp_path)
    saved = qwen35.load(tmp_path)
    assert torch.equal(saved.head, dense(params.head))
    for ours, theirs in zip(saved.layers, params.layers, strict=True):
        for name in ("in_proj", "out_proj", "gate_up", "down"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert torch.equal(dense(one), dense(other))
        assert torch.equal(ours.down.values.float(), theirs.down.values.float())


def test_interrupted_it_goes_on_where_it_was(tmp_path):
    source, _ = sharded(tmp_path / "in")
    out = tmp_path / "out"

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(source, out, "int8", report=stop)
    [first] = out.glob("*.safetensors")
    assert not (out / "config.json").exists()
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        qwen35.load(out)
    with pytest.raises(qwen35.CheckpointError, match="not a part of this conversion"):
        compress(source, out, "int4")
    before = first.stat().st_mtime_ns
    lines = []
    compress(source, out, "int8", report=lines.append)
    assert [line.endswith("there already") for line in lines] == [True, False]
    assert first.stat().st_mtime_ns == before
    assert not list(out.glob(".*"))
    whole = written(out)
    compress(source, out, "int8", report=lines.append)
    assert [line.endswith("there already") for line in lines[2:]] == [True, True]
    compress(source, tmp_path / "again", "int8")
    for name, tensor in written(tmp_path / "again").items():
        assert torch.equal(whole[name], tensor)


def test_what_cannot_be_converted_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="weights must be one of int8, int4, fp8, not 'int3'"):
        compress(DEMO, tmp_path / "out", "int3")
    with pytest.raises(ValueError, match="the head is the embedding here"):
        compress(DEMO, tmp_path / "out", "int8", head="int8")
    assert not (tmp_path / "out").exists()
    compress(DEMO, tmp_path / "out", "int8")
    with pytest.raises(qwen35.CheckpointError, match="quantised already"):
        compress(tmp_path / "out", tmp_path / "twice", "int8")
    with pytest.raises(qwen35.CheckpointError, match="another checkpoint stands there"):
        compress(DEMO, tmp_path / "out", "fp8")
    source, _ = sharded(tmp_path / "in")
    for file in source.glob("*.safetensors"):
        content = {name: tensor.clone() for name, tensor in load_file(file).items()}
        if UP + "weight" in content:
            content[UP + "weight"][3, 5] = float("nan")
            save_file(content, file)
    with pytest.raises(qwen35.CheckpointError, match=r"up_proj\.weight holds NaN"):
        compress(source, tmp_path / "nan", "int8")
    for line, said in (
        ("convert in out", "--tp, --weights or --adapter says what to convert to"),
        ("convert --weights int8 --no-vision in out", "--no-vision is for --tp"),
        ("convert --weights int8 --dtype float32 in out", "--dtype is for --tp"),
        ("convert --weights dense in out", "weights must be one of"),
    ):
        assert cli.main(line.split()) == 2
        assert said in capsys.readouterr().err


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    assert cli.main(["convert", "--weights", "int4", str(DEMO), str(tmp_path / "out")]) == 0
    assert "model.safetensors: " in capsys.readouterr().err
    params = qwen35.load(tmp_path / "out")
    assert params.layers[0].down.kind == "int4" and params.layers[0].down.group == 128
    aside.settle(tmp_path / "out")
