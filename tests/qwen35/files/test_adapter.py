"""LoRA adapters: logits and merged weights are PEFT's, with ranks, dtypes and quantisation.

PEFT is the oracle: it makes every adapter here, draws its tensors and saves them. Tolerance on
logits: 1e-4 at a standard deviation of 0.5, as in test_parity.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree
from transformers import AutoModelForCausalLM

import qwen35
from qwen35.files.conversion import convert
from qwen35.forms import dense, is_special
from qwen35.sharding.mesh import Mesh

peft = pytest.importorskip("peft", reason="the oracle: pip install '.[test]'")

DEMO = Path(__file__).parents[3] / "demo"
UNTIED, TIED = "value_heads_x3_gqa6_odd_hidden", "conv2_wide_keys_tied"
EVEN = "equal_heads"  # sizes that groups divide
EVERYTHING = {"target_modules": "all-linear", "r": 4}


def adapt(model, directory, seed=0, size=0.2, **settings):
    """PEFT's model with an adapter whose every tensor is random, saved in a directory."""
    model = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += noise * size * parameter.shape[-1] ** -0.5
    model.save_pretrained(directory)
    return model


def all_logits(params, tokens):
    state = qwen35.init_state(params, batch=tokens.shape[0], capacity=tokens.shape[1])
    hidden, _ = qwen35.forward(params, state, tokens)
    return qwen35.logits(params, hidden)


def assert_equal(ours, theirs, tolerance=0.0):
    """Two trees of parameters hold the same, dense or not."""
    leaves = [pytree.tree_leaves(one, is_leaf=is_special) for one in (ours, theirs)]
    for one, other in zip(*leaves, strict=True):
        torch.testing.assert_close(dense(one), dense(other), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("case", "tied", "settings"),
    [
        (UNTIED, False, EVERYTHING),
        (UNTIED, False, {**EVERYTHING, "use_rslora": True, "lora_alpha": 3}),
        (
            UNTIED,
            False,
            {
                **EVERYTHING,
                "rank_pattern": {"q_proj": 2, r"layers\.[02]\.mlp\.up_proj": 7},
                "alpha_pattern": {"k_proj": 32, "layers.1.linear_attn.in_proj_qkv": 0.5},
            },
        ),
        (UNTIED, False, {**EVERYTHING, "use_dora": True}),
        (UNTIED, False, {**EVERYTHING, "use_dora": True, "use_rslora": True, "lora_alpha": 16}),
        (UNTIED, False, {"target_modules": ["lm_head", "embed_tokens"], "r": 3}),
        (UNTIED, False, {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]}),
        # A head that shared the embedding has changes of its own, or those of the embedding.
        (TIED, False, {"target_modules": ["embed_tokens"]}),
        (TIED, False, {"target_modules": ["lm_head"]}),
        (TIED, False, {"target_modules": ["embed_tokens", "lm_head"]}),
        (TIED, False, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        (TIED, True, {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
        (TIED, True, EVERYTHING),
    ],
)
def test_logits_are_those_of_peft(reference, load, tmp_path, case, tied, settings):
    base = reference(case)
    model = adapt(base.model, tmp_path, **settings)
    tokens = base.tokens(2, 70)
    with torch.no_grad():
        expected = model(tokens).logits
    params = qwen35.load(base.directory, adapter=tmp_path)
    assert params.config.tie_word_embeddings is tied
    torch.testing.assert_close(all_logits(params, tokens), expected, rtol=0, atol=1e-4)
    assert (all_logits(load(case), tokens) - expected).abs().max() > 1e-2


def merged_by_peft(model, directory):
    """A checkpoint that PEFT merged, loaded."""
    model.merge_and_unload().save_pretrained(directory)
    return qwen35.load(directory)


def test_a_tower_is_merged_too(multimodal, tmp_path):
    """Its linear maps, the convolution over patches, its table of positions, and its biases."""
    names = ["qkv", "proj", "linear_fc1", "linear_fc2", "pos_embed", "q_proj", "in_proj_z"]
    model = adapt(multimodal.model, tmp_path / "a", target_modules=names, r=4, bias="lora_only")
    params = qwen35.load(multimodal.directory, adapter=tmp_path / "a")
    text = qwen35.load(multimodal.directory, adapter=tmp_path / "a", vision=False)
    expected = merged_by_peft(model, tmp_path / "merged")
    assert_equal(params, expected, tolerance=1e-6)
    assert_equal(text.layers, expected.layers, tolerance=1e-6)
    plain = qwen35.load(multimodal.directory).vision
    for changed, old in zip(*map(pytree.tree_leaves, (params.vision, plain)), strict=True):
        matrix = changed.dim() > 1
        assert matrix <= (not torch.equal(changed, old))
    assert not torch.equal(params.vision.blocks[0].qkv_bias, plain.blocks[0].qkv_bias)


def test_names_with_and_without_the_classes_around(reference, multimodal, tmp_path):
    """An adapter of the text model inside serves the multimodal checkpoint, and so does one that
    was trained on the model without a head."""
    settings = {"target_modules": ["q_proj", "down_proj"], "r": 2}
    adapt(multimodal.model, tmp_path / "whole", **settings)
    expected = qwen35.load(multimodal.directory, adapter=tmp_path / "whole").layers
    tensors = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for kind, old, new in (
        ("text", "model.language_model.", "model."),
        ("headless", "model.language_model.", ""),
        ("bare", "base_model.model.", ""),
    ):
        renamed = {name.replace(old, new, 1): tensor for name, tensor in tensors.items()}
        assert renamed.keys() != tensors.keys()
        (tmp_path / kind).mkdir()
        save_file(renamed, tmp_path / kind / "adapter_model.safetensors")
        settings = (tmp_path / "whole" / "adapter_config.json").read_text()
        (tmp_path / kind / "adapter_config.json").write_text(settings)
        assert_equal(qwen35.load(multimodal.directory, adapter=tmp_path / kind).layers, expected)


@pytest.mark.parametrize("dora", [False, True])
def test_ranks_hold_their_share_of_the_merged(multimodal, tmp_path, dora):
    base = multimodal
    model = adapt(base.model, tmp_path / "a", **EVERYTHING, use_dora=dora, modules_to_save=["norm"])
    merged_by_peft(model, tmp_path / "merged")
    for tp in (2, 4):
        for rank in range(tp):
            runtime = qwen35.Runtime(mesh=Mesh(tp=tp), rank=rank)
            ours = qwen35.load(base.directory, adapter=tmp_path / "a", runtime=runtime)
            theirs = qwen35.load(tmp_path / "merged", runtime=runtime)
            assert_equal(ours, theirs, tolerance=1e-6)
    convert(base.directory, tmp_path / "ranks", 2, dtype="float32", adapter=tmp_path / "a")
    runtime = qwen35.Runtime(mesh=Mesh(tp=2), rank=1)
    direct = qwen35.load(base.directory, adapter=tmp_path / "a", runtime=runtime)
    assert_equal(qwen35.load(tmp_path / "ranks", runtime=runtime), direct)
    with pytest.raises(qwen35.CheckpointError, match="made for adapter"):
        convert(base.directory, tmp_path / "ranks", 2, dtype="float32")
    with pytest.raises(ValueError, match="not into rank files"):
        qwen35.load(tmp_path / "ranks", runtime=runtime, adapter=tmp_path / "a")


def test_the_sum_is_formed_in_float32_and_rounded_once(reference, tmp_path):
    base = reference(UNTIED)
    adapt(base.model, tmp_path, **EVERYTHING)
    exact = qwen35.load(base.directory, adapter=tmp_path)
    low = qwen35.load(base.directory, adapter=tmp_path, dtype="bfloat16")
    for wide, narrow in zip(*map(pytree.tree_leaves, (exact, low)), strict=True):
        assert torch.equal(wide.to(narrow.dtype), narrow)
    # An adapter that was trained in bfloat16 is added as it is, in float32 as well.
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(rounded, tmp_path / "adapter_model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    up, down = (rounded[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "BA")
    weight = base.model.state_dict()[name + ".weight"].double() + 2 * up @ down  # alpha 8, r 4
    ours = qwen35.load(base.directory, adapter=tmp_path).layers[0].down
    torch.testing.assert_close(ours.T.double(), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_weights_are_merged_before_they_are_quantised(reference, tmp_path, kind):
    base = reference(EVEN)
    adapt(base.model, tmp_path / "a", **EVERYTHING)
    qwen35.save(qwen35.load(base.directory, adapter=tmp_path / "a"), tmp_path / "merged")
    ours = qwen35.load(base.directory, adapter=tmp_path / "a", weights=kind)
    theirs = qwen35.load(tmp_path / "merged", weights=kind)
    for one, other in zip(*map(pytree.tree_leaves, (ours, theirs)), strict=True):
        assert torch.equal(one, other)


def test_what_stays_quantised_takes_no_adapter(reference, tmp_path):
    base = reference(UNTIED)
    adapt(base.model, tmp_path / "a", **EVERYTHING)
    coded = qwen35.load(base.directory, weights="int8")
    qwen35.save(coded, tmp_path / "coded")
    with pytest.raises(qwen35.CheckpointError, match="what stays in codes takes no adapter"):
        qwen35.load(tmp_path / "coded", adapter=tmp_path / "a")
    ours = qwen35.load(tmp_path / "coded", adapter=tmp_path / "a", weights="dense")
    qwen35.save(qwen35.load(tmp_path / "coded", weights="dense"), tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert_equal(ours, qwen35.load(tmp_path / "dense", adapter=tmp_path / "a"), tolerance=1e-6)
    # Of a module that is dense in the files nothing is in the way.
    adapt(base.model, tmp_path / "head", target_modules=["lm_head"])
    qwen35.load(tmp_path / "coded", adapter=tmp_path / "head")


@pytest.mark.parametrize(("case", "name"), [(UNTIED, "q_proj"), (TIED, "lm_head")])
def test_saving_writes_the_merged_model(reference, tmp_path, case, name):
    base = reference(case)
    model = adapt(base.model, tmp_path / "a", target_modules=[name])
    qwen35.save(qwen35.load(base.directory, adapter=tmp_path / "a"), tmp_path / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    tokens = base.tokens(1, 30)
    with torch.no_grad():
        expected, found = model(tokens).logits, theirs(tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True is not supported"),
        ({"lora_bias": True}, "lora_bias True is not supported"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"some_new_kind": {"a": 1}}, "some_new_kind {'a': 1} is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' changes"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq' changes"),
        (
            {"use_dora": True},
            "use_dora does not fit the tensors of model.layers.3",
        ),
        ({"r": 5}, "ranks 2 and 2, adapter_config.json says 5"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern has '\\(', no regular expression"),
        ({"lora_alpha": None}, "lora_alpha must be a number, not None"),
    ],
)
def test_other_kinds_are_refused_by_name(reference, tmp_path, settings, says):
    base = reference(UNTIED)
    adapt(base.model, tmp_path, target_modules=["q_proj"], r=2)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(qwen35.CheckpointError, match=says) as error:
        qwen35.load(base.directory, adapter=tmp_path)
    assert str(tmp_path) in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target_modules": ["conv1d"], "r": 612}, "grouped convolutions"),
        ({"target_modules": ["embed_tokens"], "use_dora": True}, "use_dora for the embedding"),
    ],
)
def test_modules_that_cannot_be_merged_are_refused(reference, tmp_path, settings, says):
    base = reference("equal_heads" if "conv1d" in settings["target_modules"] else UNTIED)
    if "r" in settings:
        settings = settings | {"r": base.model.model.layers[0].linear_attn.conv1d.groups}
    adapt(base.model, tmp_path, **settings)
    with pytest.raises(qwen35.CheckpointError, match=says):
        qwen35.load(base.directory, adapter=tmp_path)


def test_an_adapter_of_another_model_is_refused_with_the_shapes(reference, tmp_path):
    adapt(reference(UNTIED).model, tmp_path, **EVERYTHING)
    with pytest.raises(qwen35.CheckpointError) as error:
        qwen35.load(reference("equal_heads").directory, adapter=tmp_path)
    assert "[51, 4] times [4, 77], the model's is [64, 96]" in str(error.value)
    assert "more" in str(error.value) and len(str(error.value)) < 2000
    adapt(reference(UNTIED).model, tmp_path, target_modules=["q_proj"])
    with pytest.raises(qwen35.CheckpointError, match=r"q_proj\.weight is not part of"):
        qwen35.load(reference("only_deltanet").directory, adapter=tmp_path)


def test_damaged_adapters_are_refused(reference, tmp_path):
    base = reference(UNTIED)

    def refused(says, **options):
        with pytest.raises(qwen35.CheckpointError, match=says):
            qwen35.load(base.directory, adapter=tmp_path / "a", **options)

    refused("no such directory")
    adapt(base.model, tmp_path / "a", target_modules=["q_proj"], r=2)
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, file)
    refused("q_proj.weight holds NaN")
    qwen35.load(base.directory, adapter=tmp_path / "a", check_finite=False)
    save_file(tensors | {name: tensors[name].int()}, file)
    refused("has dtype I32")
    save_file(tensors | {name: tensors[name][0].clone()}, file)
    refused("no matrices")
    save_file({name: tensors[name]}, file)
    refused("lora_A and no more")
    file.rename(tmp_path / "a" / "adapter_model.bin")
    refused("no adapter_model.safetensors: adapter_model.bin is a pickle")
