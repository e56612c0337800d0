"""Loading and saving: where every value goes, what is refused and how, round trips, memory."""

import json
import select
import shutil
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree
from transformers import Qwen3_5Config, Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration

import qwen35
from qwen35.files import checkpoint as checkpoint_module
from qwen35.files.conversion import convert
from qwen35.xla import progress

UNTIED, TIED = "attention_first_explicit_types", "value_heads_x2_tied"


@pytest.fixture
def checkpoint(reference, tmp_path):
    """checkpoint(case): a fresh copy of a case's directory, to be damaged."""

    def copy(name=UNTIED):
        return shutil.copytree(reference(name).directory, tmp_path / name)

    return copy


def edit(directory, change):
    """Apply change(tensors) to a single-file checkpoint."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata={"format": "pt"})


def shard(directory, parts=3):
    """Rewrite as shards with an index; returns the index's weight map."""
    single = directory / "model.safetensors"
    tensors, weight_map = load_file(single), {}
    single.unlink()
    for i in range(parts):
        file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
        part = {name: tensors[name].clone() for name in sorted(tensors)[i::parts]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_index(directory, weight_map)
    return weight_map


def write_index(directory, weight_map):
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def saved_tensors(directory):
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


def assert_same_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def assert_same_params(actual, expected):
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def tensors(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if leaf is not None]


def refusal(directory, **options):
    """The text of the CheckpointError that loading gives."""
    with pytest.raises(qwen35.CheckpointError) as error:
        qwen35.load(directory, **options)
    return str(error.value)


# Where every value goes


def test_every_value_is_loaded_once(case, load):
    leaves = pytree.tree_leaves(load(case.name))
    count = sum(p.numel() for p in case.model.parameters())
    assert sum(leaf.numel() for leaf in leaves) == count
    assert load(case.name).config.parameter_count == count
    assert len({leaf.data_ptr() for leaf in leaves}) == len(leaves)


def test_layer_kinds(case, load):
    kinds = {"linear_attention": "DeltaNetLayer", "full_attention": "AttentionLayer"}
    layers = load(case.name).layers
    assert [type(layer).__name__ for layer in layers] == [kinds[k] for k in case.config.layer_types]


def layer_pairs(case, load, kind):
    """(our layer, transformers' layer) of one kind."""
    pairs = zip(load(case.name).layers, case.model.model.layers, strict=True)
    return [(ours, theirs) for ours, theirs in pairs if hasattr(theirs, kind)]


def test_attention_projections_are_fused_and_the_gate_is_taken_apart(case, load):
    """q_proj holds [q_0 | gate_0 | q_1 | gate_1 ...]; ours is [all q | all gates | k | v]."""
    config = case.config
    for ours, theirs in layer_pairs(case, load, "self_attn"):
        mixer, heads, dim = theirs.self_attn, config.num_attention_heads, config.head_dim
        per_head = mixer.q_proj.weight.view(heads, 2, dim, config.hidden_size)
        query, gate = per_head[:, 0].flatten(0, 1), per_head[:, 1].flatten(0, 1)
        fused = torch.cat([query, gate, mixer.k_proj.weight, mixer.v_proj.weight])
        assert torch.equal(ours.in_proj, fused.T)
        assert torch.equal(ours.out_proj, mixer.o_proj.weight.T)


def test_deltanet_projections_are_fused(case, load):
    for ours, theirs in layer_pairs(case, load, "linear_attn"):
        parts = [getattr(theirs.linear_attn, f"in_proj_{n}").weight for n in ("qkv", "z", "b", "a")]
        assert torch.equal(ours.in_proj, torch.cat(parts).T)
        assert torch.equal(ours.out_proj, theirs.linear_attn.out_proj.weight.T)


def test_convolution_layout(case, load):
    """[channels, 1, taps] in the file, [taps, channels] here, oldest tap first."""
    for ours, theirs in layer_pairs(case, load, "linear_attn"):
        assert torch.equal(ours.conv, theirs.linear_attn.conv1d.weight[:, 0].T)


def test_norm_weights_are_stored_raw(case, load):
    """No 1 is added at load to any of them: the zero-centred norms add it at run time."""
    for ours, theirs in layer_pairs(case, load, "mlp"):
        assert torch.equal(ours.input_norm, theirs.input_layernorm.weight)
        assert torch.equal(ours.post_norm, theirs.post_attention_layernorm.weight)
    for ours, theirs in layer_pairs(case, load, "self_attn"):
        assert torch.equal(ours.q_norm, theirs.self_attn.q_norm.weight)
        assert torch.equal(ours.k_norm, theirs.self_attn.k_norm.weight)
    for ours, theirs in layer_pairs(case, load, "linear_attn"):
        assert torch.equal(ours.norm, theirs.linear_attn.norm.weight)
    assert torch.equal(load(case.name).norm, case.model.model.norm.weight)


def test_decay_parameters(case, load):
    for ours, theirs in layer_pairs(case, load, "linear_attn"):
        assert torch.equal(ours.a_log, theirs.linear_attn.A_log)
        assert torch.equal(ours.dt_bias, theirs.linear_attn.dt_bias)


def test_mlp_projections_are_fused(case, load):
    for ours, theirs in layer_pairs(case, load, "mlp"):
        mlp = theirs.mlp
        fused = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        assert torch.equal(ours.gate_up, fused.T)
        assert torch.equal(ours.down, mlp.down_proj.weight.T)


def test_embedding_and_head(case, load):
    params, model = load(case.name), case.model
    assert torch.equal(params.head, model.lm_head.weight.T)
    if case.config.tie_word_embeddings:
        assert params.embed is None
    else:
        assert torch.equal(params.embed, model.model.embed_tokens.weight)


def test_a_tied_head_is_one_leaf(reference, load):
    config = reference(TIED).config
    table = config.vocab_size * config.hidden_size
    assert sum(leaf.numel() == table for leaf in pytree.tree_leaves(load(TIED))) == 1


# dtypes


@pytest.mark.parametrize("name", [UNTIED, TIED])
@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_bfloat16_rounds_the_weights_but_not_the_decay(reference, load, name, dtype):
    """A_log and dt_bias stay fp32: exp and softplus would magnify their rounding."""
    exact, low = load(name), qwen35.load(reference(name).directory, dtype=dtype)
    for ours, full in zip(low.layers, exact.layers, strict=True):
        for field in full._fields:
            kept = field in ("a_log", "dt_bias")
            expected = getattr(full, field).to(torch.float32 if kept else torch.bfloat16)
            assert getattr(ours, field).dtype == expected.dtype, field
            assert torch.equal(getattr(ours, field), expected), field
    assert torch.equal(low.head, exact.head.bfloat16())
    assert torch.equal(low.norm, exact.norm.bfloat16())


def test_a_bfloat16_file_widens_exactly(checkpoint):
    directory = checkpoint()
    edit(directory, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    wide, narrow = (qwen35.load(directory, dtype=dtype) for dtype in ("float32", "bfloat16"))
    for a, b in zip(pytree.tree_leaves(wide), pytree.tree_leaves(narrow), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


def test_float32_by_name(reference, load):
    by_name = qwen35.load(reference(UNTIED).directory, dtype="float32")
    assert_same_params(by_name, load(UNTIED))


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "int8", "fp64"])
def test_unknown_dtype(reference, dtype):
    with pytest.raises(ValueError, match=r"float32.*bfloat16"):
        qwen35.load(reference(UNTIED).directory, dtype=dtype)


@pytest.mark.parametrize("device", ["cuda", "tpu", ""])
def test_unknown_device(reference, device):
    with pytest.raises(ValueError, match=r"cpu.*xla"):
        qwen35.load(reference(UNTIED).directory, device=device)


@pytest.mark.parametrize("name", [UNTIED, TIED])
def test_progress_counts_the_bytes_of_the_file(reference, name, monkeypatch):
    bars = []

    class Bar(progress.Bar):
        def close(self):
            bars.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(progress, "Bar", Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)  # hidden where there is no terminal
    directory = reference(name).directory
    qwen35.load(directory, progress=True)
    size = sum(t.nbytes for t in load_file(directory / "model.safetensors").values())
    assert bars[0] == (size, size)


# Accepted forms


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_shards_load_as_one_file_does(checkpoint, load, parts):
    directory = checkpoint()
    shard(directory, parts)
    assert_same_params(qwen35.load(directory), load(UNTIED))


@pytest.fixture(scope="module", params=[UNTIED, TIED])
def multimodal(request, text_config, perturb_model, tmp_path_factory):
    """A tiny multimodal transformers model and the directory that it was saved to."""
    content = text_config(request.param)
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 4,
        "out_hidden_size": content["hidden_size"],
        "num_position_embeddings": 16,
    }
    tied = content["tie_word_embeddings"]
    config = Qwen3_5Config(text_config=content, vision_config=vision, tie_word_embeddings=tied)
    model = Qwen3_5ForConditionalGeneration(config).eval()
    perturb_model(model, seed=3)
    directory = tmp_path_factory.mktemp("multimodal")
    model.save_pretrained(directory)
    return model, directory


def test_both_name_prefixes_give_the_same_text_model(multimodal, tmp_path):
    model, directory = multimodal
    text = Qwen3_5ForCausalLM(model.config.text_config)
    text.model.load_state_dict(model.model.language_model.state_dict())
    text.lm_head.load_state_dict(model.lm_head.state_dict())
    text.save_pretrained(tmp_path)
    ours, alone = qwen35.load(directory), qwen35.load(tmp_path)
    assert (ours.embed is None) == (alone.embed is None)
    text_parts = [(p.embed, p.layers, p.norm, p.head) for p in (ours, alone)]
    assert_same_params(*text_parts)


def test_known_extras_are_accepted(checkpoint, load):
    directory = checkpoint()
    extras = {
        "mtp.fc.weight": torch.randn(4, 8),
        "mtp.layers.0.self_attn.q_proj.weight": torch.randn(4, 4),
        "model.mtp.layers.0.mlp.up_proj.weight": torch.randn(4, 4),
        "model.language_model.mtp.norm.weight": torch.randn(4),
        "model.rotary_emb.inv_freq": torch.randn(4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.randn(4),
    }
    edit(directory, lambda t: t.update(extras))
    assert_same_params(qwen35.load(directory), load(UNTIED))


def test_a_tied_head_may_be_in_the_file_if_it_is_equal(checkpoint, load):
    directory = checkpoint(TIED)
    edit(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert_same_params(qwen35.load(directory), load(TIED))


def test_a_tied_head_that_differs_is_refused(checkpoint):
    directory = checkpoint(TIED)
    edit(directory, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    assert "lm_head.weight" in refusal(directory)


@pytest.mark.parametrize(
    "change",
    [
        lambda embedding: torch.tensor(1.0),
        lambda embedding: embedding[:, 1:],
        lambda embedding: embedding.flatten(),
        lambda embedding: embedding.bfloat16(),
        lambda embedding: embedding.to(torch.int8),
    ],
    ids=["scalar", "narrow", "flat", "bfloat16", "int8"],
)
@pytest.mark.parametrize("both", [False, True])
def test_a_tied_head_of_another_shape_or_dtype_is_refused(checkpoint, change, both):
    directory = checkpoint(TIED)

    def damage(tensors):
        embedding = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = change(embedding).clone()
        if both:
            tensors["model.embed_tokens.weight"] = change(embedding).clone()

    edit(directory, damage)
    if both and change(torch.ones(2, 2)).dtype == torch.bfloat16:
        qwen35.load(directory)
    else:
        assert "model.safetensors" in refusal(directory)


# Refusals


def test_every_problem_is_reported_at_once(checkpoint):
    directory = checkpoint()

    def damage(tensors):
        del tensors["model.norm.weight"]
        del tensors["model.layers.1.linear_attn.A_log"]
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
        tensors["surprise"] = torch.zeros(1)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, 1:]
        tensors["model.layers.1.linear_attn.conv1d.weight"] = torch.zeros(3, 1, 5)
        tensors["model.layers.2.mlp.down_proj.weight"] = torch.zeros(64, 96, dtype=torch.int8)
        tensors["model.layers.0.self_attn.k_norm.weight"] = torch.zeros(16, dtype=torch.int64)

    edit(directory, damage)
    text = refusal(directory)
    for name in (
        "model.norm.weight",
        "model.layers.1.linear_attn.A_log",
        "model.layers.7.mlp.up_proj.weight",
        "surprise",
        "lm_head.weight",
        "model.layers.1.linear_attn.conv1d.weight",
        "model.layers.2.mlp.down_proj.weight",
        "model.layers.0.self_attn.k_norm.weight",
    ):
        assert name in text
    assert "model.safetensors" in text
    for value in ("131, 63", "131, 64", "3, 1, 5", "128, 1, 4"):  # seen and right shapes
        assert value in text.replace("(", "").replace("[", "")
    assert "int8" in text.lower() or "I8" in text


def test_problems_in_shards_name_their_file(checkpoint):
    directory = checkpoint()
    weight_map = shard(directory)
    name = "model.layers.1.mlp.gate_proj.weight"
    file = directory / weight_map[name]
    tensors = load_file(file)
    tensors[name] = torch.zeros(5, 5)
    save_file(tensors, file)
    text = refusal(directory)
    assert name in text
    assert file.name in text


@pytest.mark.parametrize("kind", ["layer", "head", "embedding"])
def test_a_missing_tensor_is_named(checkpoint, kind):
    name = {
        "layer": "model.layers.3.self_attn.q_proj.weight",
        "head": "lm_head.weight",
        "embedding": "model.embed_tokens.weight",
    }[kind]
    directory = checkpoint()
    edit(directory, lambda t: t.pop(name))
    assert name in refusal(directory)


def test_a_layer_of_the_other_kind_is_refused(checkpoint):
    """The file has attention where the config says DeltaNet: both sides are named."""
    directory = checkpoint()
    config = json.loads((directory / "config.json").read_text())
    config["layer_types"][3] = "linear_attention"
    (directory / "config.json").write_text(json.dumps(config))
    text = refusal(directory)
    assert "model.layers.3.linear_attn.A_log" in text
    assert "model.layers.3.self_attn.q_proj.weight" in text


def test_a_tensor_in_two_shards(checkpoint):
    """Of which the index names none."""
    directory = checkpoint()
    weight_map = shard(directory)
    name = "model.norm.weight"
    other = next(file for file in weight_map.values() if file != weight_map[name])
    tensors = load_file(directory / other)
    tensors[name] = torch.zeros(64)
    save_file(tensors, directory / other)
    write_index(directory, {n: file for n, file in weight_map.items() if n != name})
    text = refusal(directory)
    assert name in text
    assert other in text
    assert weight_map[name] in text


def test_the_index_names_a_missing_shard(checkpoint):
    directory = checkpoint()
    weight_map = shard(directory)
    lost = weight_map["model.norm.weight"]
    (directory / lost).unlink()
    assert lost in refusal(directory)


def test_the_index_names_a_tensor_that_its_shard_lacks(checkpoint):
    directory = checkpoint()
    weight_map = shard(directory)
    file = directory / weight_map["model.norm.weight"]
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file)
    assert "model.norm.weight" in refusal(directory)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "x\\u0000"}}',
        '{"weight_map": {"a": "' + "x" * 300 + '"}}',
    ],
)
def test_an_unusable_index(checkpoint, index):
    directory = checkpoint()
    shard(directory)
    (directory / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(directory)


def test_an_index_may_not_point_out_of_the_directory(checkpoint):
    directory = checkpoint()
    weight_map = shard(directory)
    inside = weight_map["model.norm.weight"]
    (directory / inside).rename(directory.parent / "outside.safetensors")
    moved = {k: "../outside.safetensors" if v == inside else v for k, v in weight_map.items()}
    write_index(directory, moved)
    assert "../outside.safetensors" in refusal(directory)


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -1000])
def test_a_truncated_file(checkpoint, keep):
    directory = checkpoint()
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:keep])
    assert "model.safetensors" in refusal(directory)


def test_a_file_of_something_else(checkpoint):
    directory = checkpoint()
    (directory / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors" in refusal(directory)


def test_no_weights(checkpoint):
    directory = checkpoint()
    (directory / "model.safetensors").unlink()
    assert "safetensors" in refusal(directory)


def test_no_directory(tmp_path):
    assert "nowhere" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.linear_attn.A_log",
        "model.layers.3.self_attn.q_proj.weight",
        "lm_head.weight",
        "model.norm.weight",
    ],
)
def test_values_that_are_not_finite_are_named(checkpoint, name, dtype, value):
    directory = checkpoint()

    def damage(tensors):
        tensors[name].view(-1)[-1] = value

    edit(directory, damage)
    text = refusal(directory, dtype=dtype)
    assert name in text
    assert "model.safetensors" in text
    params = qwen35.load(directory, dtype=dtype, check_finite=False)
    assert sum((~torch.isfinite(leaf)).sum() for leaf in pytree.tree_leaves(params)) == 1


def test_all_tensors_that_are_not_finite_are_named_at_once(checkpoint):
    names = ["lm_head.weight", "model.layers.1.linear_attn.A_log", "model.norm.weight"]
    directory = checkpoint()

    def damage(tensors):
        for name in names:
            tensors[name].view(-1)[0] = float("nan")

    edit(directory, damage)
    text = refusal(directory)
    assert all(f"{name} holds NaN" in text for name in names)
    assert text.count("holds NaN") == len(names)


@pytest.mark.parametrize("at", [0, 700_000, -1])
def test_the_scan_reaches_every_value_of_a_large_tensor(text_config, tmp_path, at):
    """2.6 million values: more than the scan takes at a time."""
    config = qwen35.Config.from_dict(text_config(UNTIED, vocab_size=40_000))
    qwen35.save(qwen35.init_params(config), tmp_path)

    def damage(tensors):
        tensors["lm_head.weight"].view(-1)[at] = float("nan")

    edit(tmp_path, damage)
    assert "lm_head.weight" in refusal(tmp_path)


def test_values_too_large_for_bfloat16_are_named(checkpoint):
    """Finite in the file, Inf once rounded to bfloat16."""
    directory = checkpoint()

    def damage(tensors):
        tensors["model.norm.weight"][3] = torch.finfo(torch.float32).max

    edit(directory, damage)
    qwen35.load(directory)
    assert "model.norm.weight" in refusal(directory, dtype="bfloat16")


# Round trips


def test_round_trip_is_bit_exact(case, load, tmp_path):
    """load, save: every tensor of the file as it was; transformers loads it without remarks."""
    qwen35.save(load(case.name), tmp_path)
    assert_same_tensors(saved_tensors(tmp_path), saved_tensors(case.directory))
    assert_same_params(qwen35.load(tmp_path), load(case.name))
    assert qwen35.Config.from_pretrained(tmp_path) == load(case.name).config
    model, info = Qwen3_5ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_tensors(model.state_dict(), case.model.state_dict())


def test_bfloat16_round_trip(reference, load, tmp_path):
    params = qwen35.load(reference(UNTIED).directory, dtype="bfloat16")
    qwen35.save(params, tmp_path)
    assert_same_params(qwen35.load(tmp_path, dtype="bfloat16"), params)
    assert Qwen3_5ForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_round_trip_from_the_xla_device(load, tmp_path):
    qwen35.save(load(UNTIED, "xla"), tmp_path)
    assert_same_params(qwen35.load(tmp_path), load(UNTIED))


def test_load_to_the_xla_device(reference, load):
    params = qwen35.load(reference(UNTIED).directory, device="xla")
    assert {leaf.device.type for leaf in pytree.tree_leaves(params)} == {"xla"}
    assert_same_params(qwen35.device_put(params, "cpu"), load(UNTIED))


def test_the_multimodal_names_are_kept(multimodal, tmp_path):
    _, directory = multimodal
    qwen35.save(qwen35.load(directory), tmp_path)
    saved, original = saved_tensors(tmp_path), saved_tensors(directory)
    text = {name: tensor for name, tensor in original.items() if ".visual." not in name}
    assert_same_tensors({name: saved[name] for name in text}, text)
    assert qwen35.Config.from_pretrained(tmp_path) == qwen35.Config.from_pretrained(directory)


def test_the_multimodal_form_is_kept_whole(multimodal, tmp_path):
    model, directory = multimodal
    qwen35.save(qwen35.load(directory), tmp_path)
    loaded = Qwen3_5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    again, info = loaded
    assert not any(info.values())
    assert_same_tensors(again.state_dict(), model.state_dict())


def test_saving_twice_gives_the_same_bytes(load, tmp_path):
    for name in ("a", "b"):
        qwen35.save(load(UNTIED), tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saved_files_are_as_readable_as_any_other(load, tmp_path):
    qwen35.save(load(UNTIED), tmp_path)
    plain = tmp_path / "plain"
    plain.write_text("")
    assert {file.stat().st_mode for file in tmp_path.iterdir()} == {plain.stat().st_mode}


# Whole or not at all

KILLED = """
import os, signal, sys, torch, qwen35
from unittest import mock
from qwen35.files import checkpoint

directory, config = sys.argv[1], qwen35.Config.from_pretrained(sys.argv[1])
new = qwen35.init_params(config, seed=2)

def save(event):
    seen = 0
    def hook(name, arguments):
        nonlocal seen
        changes = name in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")
        if changes or (name == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    qwen35.save(new, directory)
    os._exit(0)

def whose():
    try:
        params = qwen35.load(directory)
    except qwen35.CheckpointError as error:
        return f"refused: {error}"
    leaves = torch.utils._pytree.tree_leaves(params)
    for name, known in models.items():
        theirs = torch.utils._pytree.tree_leaves(known)
        if all(map(torch.equal, leaves, theirs)):
            return name
    return "a mixture"

old = qwen35.init_params(config, seed=1)
models = {"old": old, "new": new}
event, killed, found = -1, True, []
with mock.patch.object(checkpoint, "_SHARD_BYTES", 300_000):
    while killed:
        qwen35.save(old, directory)
        event += 2
        child = os.fork()
        if not child:
            save(event)
        killed = os.waitpid(child, 0)[1] == signal.SIGKILL
        found.append(whose())
    qwen35.save(old, directory)
print(*found, sep="\\n")
"""


def test_a_save_over_a_checkpoint_is_one_switch_whenever_it_is_killed(reference, tmp_path):
    """Two models of one config, in shards: killed at every second file operation (`test_aside` has
    each), a save leaves the old one or the new one, never weights of both, which would load; and
    what it leaves beside them is cleared."""
    directory = tmp_path / "saved"
    qwen35.save(qwen35.init_params(config_of(reference, UNTIED)), directory)
    (directory / "notes.txt").write_text("kept")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(directory)], capture_output=True, text=True, check=True
    )
    found = done.stdout.split("\n")[:-1]
    switch = found.index("new")
    assert 4 < switch < len(found) - 4
    assert found == ["old"] * switch + ["new"] * (len(found) - switch)
    files = {file.name for file in directory.iterdir()}
    shards = {name for name in files if name.startswith("model-")}
    assert len(shards) > 1
    others = {"config.json", "generation_config.json", "model.safetensors.index.json", "notes.txt"}
    assert files - shards == others


def test_a_save_removes_the_files_of_the_last_one(load, checkpoint):
    """Shards and index go when one file comes, and the other way round; other files stay."""
    directory = checkpoint()
    shard(directory)
    (directory / "model-card.md").write_text("kept")
    before = {file.name for file in directory.iterdir()}
    qwen35.save(load(UNTIED), directory)
    weights = {name for name in before if name.startswith("model") and name != "model-card.md"}
    after = {file.name for file in directory.iterdir()}
    assert after == before - weights | {"model.safetensors"}
    with mock.patch.object(checkpoint_module, "_SHARD_BYTES", 50_000):
        qwen35.save(load(UNTIED), directory)
    assert not (directory / "model.safetensors").exists()
    assert_same_params(qwen35.load(directory), load(UNTIED))


def test_saves_at_once_never_mix(reference, tmp_path):
    config = config_of(reference, UNTIED)
    models = [qwen35.init_params(config, seed=seed) for seed in range(4)]
    with mock.patch.object(checkpoint_module, "_SHARD_BYTES", 50_000):
        threads = [threading.Thread(target=qwen35.save, args=(m, tmp_path)) for m in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    leaves = tensors(qwen35.load(tmp_path))
    assert any(all(map(torch.equal, leaves, tensors(model))) for model in models)
    assert not list(tmp_path.glob(".*"))


# Random parameters


def config_of(reference, name):
    return qwen35.Config.from_pretrained(reference(name).directory)


@pytest.mark.parametrize("name", [UNTIED, TIED])
def test_random_parameters_load_in_transformers_and_agree(reference, tmp_path, name):
    params = qwen35.init_params(config_of(reference, name), seed=3)
    qwen35.save(params, tmp_path)
    model, info = Qwen3_5ForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values())
    tokens = reference(name).tokens(1, 70)
    state = qwen35.init_state(params, batch=1, capacity=70)
    hidden, _ = qwen35.forward(params, state, tokens)
    with torch.no_grad():
        expected = model.eval()(tokens, use_cache=False).logits
    torch.testing.assert_close(qwen35.logits(params, hidden), expected, rtol=0, atol=1e-4)


def test_random_parameters_follow_their_seed(reference):
    config = config_of(reference, UNTIED)
    first, again, other = (qwen35.init_params(config, seed=seed) for seed in (1, 1, 2))
    assert_same_params(first, again)
    assert not torch.equal(first.head, other.head)


def test_random_parameters_start_as_those_of_transformers(reference):
    """Zero-centred norms at 0, the gated norm at 1, dt_bias at 1, A in (0.01, 16), the rest
    normal with initializer_range."""
    config = config_of(reference, UNTIED)
    params = qwen35.init_params(config, seed=0)
    assert not params.norm.any()
    assert abs(params.head.std() / config.initializer_range - 1) < 0.05
    for layer in params.layers:
        assert not layer.input_norm.any()
        assert not layer.post_norm.any()
        assert abs(layer.in_proj.std() / config.initializer_range - 1) < 0.05
        if hasattr(layer, "a_log"):
            assert torch.equal(layer.norm, torch.ones_like(layer.norm))
            assert torch.equal(layer.dt_bias, torch.ones_like(layer.dt_bias))
            assert ((layer.a_log.exp() >= 0.01) & (layer.a_log.exp() <= 16)).all()
        else:
            assert not layer.q_norm.any()
            assert not layer.k_norm.any()


# Memory

CHILD = """
import sys, qwen35, torch
torch.set_num_threads(1)
torch.ones(8, 8) @ torch.ones(8, 8)
print("ready", flush=True)
sys.stdin.readline()
params = qwen35.load(sys.argv[1], dtype=sys.argv[2])
print("loaded", flush=True)
sys.stdin.readline()
"""


def anonymous_bytes(pid):
    """Anonymous resident memory of a process: mapped file pages are counted elsewhere."""
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
        pytest.param("float32", "float32", marks=pytest.mark.slow),
        pytest.param("bfloat16", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_loading_needs_the_parameters_and_one_tensor_more(tmp_path, stored, asked):
    """Peak anonymous memory of a load <= parameters + the largest tensor (+ 16 MB of slack for
    the allocator), sampled from outside the process. The largest tensor, the embedding, is a
    quarter of the file, so that a second copy of anything bigger shows."""
    config = qwen35.Config.from_dict(
        {
            "model_type": "qwen3_5_text",
            "vocab_size": 24000,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 5,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "linear_num_key_heads": 8,
            "linear_num_value_heads": 16,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
            "full_attention_interval": 2,
            "tie_word_embeddings": True,
        }
    )
    params = qwen35.init_params(config, dtype=stored)
    qwen35.save(params, tmp_path)
    largest = config.vocab_size * config.hidden_size * (4 if asked == "float32" else 2)
    parameters = config.parameter_count * (4 if asked == "float32" else 2)

    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), asked],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n"
        before = peak = anonymous_bytes(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        while not select.select([child.stdout], [], [], 0)[0]:
            peak = max(peak, anonymous_bytes(child.pid))
            time.sleep(0.0005)
        assert child.stdout.readline() == "loaded\n"
        after = anonymous_bytes(child.pid)
    finally:
        child.kill()
        child.wait()
    assert after - before >= 0.9 * parameters, "the parameters are held in anonymous memory"
    assert peak - before <= parameters + largest + 16e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_checkpoints_own_dtype(reference, tmp_path, dtype):
    """Without a dtype weights are what the file has, and so are its rank files'."""
    source = qwen35.load(reference("value_heads_x2_tied").directory, dtype=dtype)
    qwen35.save(source, tmp_path / "whole")
    convert(tmp_path / "whole", tmp_path / "ranks", 1, dtype=dtype)
    for directory in (tmp_path / "whole", tmp_path / "ranks"):
        for asked in (None, "auto"):
            params = qwen35.load(directory, dtype=asked)
            assert params.dtype == dtype and torch.equal(params.head, source.head)
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    assert qwen35.load(tmp_path / "whole", dtype=other).dtype == other
