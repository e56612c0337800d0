"""Checkpoints of another kind, or put together otherwise: what is said first is why.

Each is made as its tool makes it: names by the wrappers' own `state_dict()`, adapters and quantised
forms by their published names.
"""

import copy
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

import qwen35
from qwen35.checks.errors import CheckpointNote
from qwen35.commands import cli
from qwen35.files.faults import Faults

CASE = "attention_first_explicit_types"


@pytest.fixture
def checkpoint(reference, tmp_path):
    """A copy of transformers' own checkpoint."""
    for file in reference(CASE).directory.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def rename(directory, new):
    """Gives every tensor another name; None drops it."""
    file = directory / "model.safetensors"
    tensors = {new(name): tensor for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name}, file)


def refusal(directory, **options):
    with pytest.raises(qwen35.CheckpointError) as error:
        qwen35.load(directory, **options)
    text = str(error.value).removeprefix(f"{directory}: ")
    assert len(text) < 2500, "a page of names says nothing"
    return text


def compiled_layers(model):
    model.model.layers = torch.nn.ModuleList([torch.compile(layer) for layer in model.model.layers])
    return model


WRAPPED = {
    "module.": (torch.nn.DataParallel, "all {} names start with 'module.', as DistributedData"),
    "_orig_mod.": (torch.compile, "all {} names start with '_orig_mod.', as torch.compile leaves"),
    "layers": (compiled_layers, "of {} names have '_orig_mod.' in them, as torch.compile leaves"),
    "both": (
        lambda model: torch.nn.DataParallel(torch.compile(model)),
        "all {} names start with 'module.'",
    ),
    "mine": (lambda model: torch.nn.ModuleDict({"student": model}), "all {} names start with 'stu"),
    "base": (lambda model: model.model, "all {} names lack the 'model.' that those of this model"),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_names_of_a_wrapper(reference, checkpoint, kind):
    wrap, says = WRAPPED[kind]
    state = wrap(copy.deepcopy(reference(CASE).model)).state_dict()
    save_file({name: t.clone() for name, t in state.items()}, checkpoint / "model.safetensors")
    text = refusal(checkpoint)
    assert says.format(len(state)) in text.split("; ")[0]
    assert "is missing; " in text and "more are missing; " in text
    assert text.endswith("more are not part of this model")


def test_a_few_faults_are_all_listed(checkpoint):
    rename(checkpoint, lambda name: name.replace("layers.0.mlp.up", "layers.0.mlp.upper"))
    assert refusal(checkpoint) == (
        "model.layers.0.mlp.up_proj.weight is missing; "
        "model.safetensors: model.layers.0.mlp.upper_proj.weight is not part of this model"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n: n.replace("mlp.down_proj.", "mlp.down_proj.base_layer."), "is missing"),
        (lambda n: None if ".layers.3." in n else n, "the files have 4 layers, config.json says 5"),
        (lambda n: n.replace(".layers.3.", ".layers.9."), "model.layers.3."),
    ],
    ids=["base_layer", "fewer", "moved"],
)
def test_names_that_differ_otherwise(checkpoint, change, says):
    rename(checkpoint, change)
    assert says in refusal(checkpoint)


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        (("lora_A.weight", "lora_B.weight"), "a LoRA adapter is in it, not merged"),
        (("weight.absmax", "weight.quant_map"), "quantised by bitsandbytes, which is not read"),
        (("qweight", "qzeros", "scales"), "quantised, but config.json tells no quantisation"),
        (("weight_packed", "weight_scale"), "quantised, but config.json tells no quantisation"),
        (("scales", "biases"), "quantised by MLX, which is not read"),
    ],
)
def test_tensors_that_tell_the_kind(checkpoint, ends, says):
    """Every matrix of an MLP is stored so, and config.json does not say it."""
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    stems = [name.removesuffix("weight") for name in tensors if ".mlp." in name]
    tensors |= {stem + end: torch.zeros(2, 2) for stem in stems for end in ends}
    save_file(tensors, file)
    assert refusal(checkpoint).split("; ")[0].endswith(says) or says in refusal(checkpoint)


@pytest.mark.parametrize(
    ("quantization", "says"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4 bit of 'bitsandbytes'"),
        ({"quant_method": "hqq"}, "'hqq'"),
        ({"quant_method": ["gptq"]}, r"['gptq']"),
        ({"quant_method": "x", "quant_algo": "y" * 5000}, "y" * 40 + " of 'x'"),
    ],
)
def test_quantisation_that_is_not_read(checkpoint, quantization, says):
    file = checkpoint / "config.json"
    content = json.loads(file.read_text()) | {"quantization_config": quantization}
    file.write_text(json.dumps(content))
    assert refusal(checkpoint).startswith(f"its weights are quantised as {says}, which is not read")


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 10**400},
        {"quant_method": "fp8", "weight_block_size": [128, 10**400]},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
    ],
)
def test_sizes_of_groups_that_no_weight_has(checkpoint, settings):
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    assert refusal(checkpoint).startswith("quantization_config: ")


def test_a_quantisation_of_null_beside_mlx(checkpoint):
    file = checkpoint / "config.json"
    added = {"quantization_config": None, "quantization": {"bits": 4}}
    file.write_text(json.dumps(json.loads(file.read_text()) | added))
    assert refusal(checkpoint).startswith("its weights are quantised as mlx")


def test_a_long_name_is_not_repeated_whole(checkpoint):
    file = checkpoint / "model.safetensors"
    save_file(load_file(file) | {"x" * 5000: torch.zeros(1), "y" * 5000: torch.zeros(1)}, file)
    assert len(refusal(checkpoint)) < 600


def test_quantisation_by_mlx(checkpoint):
    """Its exporter writes one object under two names, of bits and group_size alone."""
    file = checkpoint / "config.json"
    stated = {"group_size": 64, "bits": 4, "mode": "affine"}
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"quantization": stated, "quantization_config": stated}))
    assert refusal(checkpoint).startswith("its weights are quantised as mlx, which is not read")


def test_convolutions_as_mlx_stores_them(checkpoint):
    """Not quantised: [channels, taps, 1], and norms that have 1 added."""
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    turned = {n: t.transpose(1, 2).contiguous() for n, t in tensors.items() if "conv1d" in n}
    save_file(tensors | turned, file)
    assert refusal(checkpoint).startswith("its convolutions are stored as MLX stores them")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("hidden_size", 128, "hidden_size is 64 in the files and 128 in config.json"),
        ("vocab_size", 200, "vocab_size is 131 in the files and 200 in config.json"),
        ("intermediate_size", 100, "intermediate_size is 96 in the files and 100 in config.json"),
    ],
)
def test_a_configuration_of_another_size(checkpoint, key, value, says):
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert refusal(checkpoint).startswith(says)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {
                "adapter_config.json": '{"base_model_name_or_path": "Qwen/Qwen3.5-4B"}',
                "adapter_model.safetensors": "",
            },
            "a LoRA adapter of 'Qwen/Qwen3.5-4B', not a model: load that with adapter=",
        ),
        ({"adapter_config.json": "[]"}, "a LoRA adapter, not a model"),
        ({"model-Q4_K_M.gguf": ""}, "a GGUF file (model-Q4_K_M.gguf)"),
        ({"pytorch_model-00001-of-00002.bin": ""}, "weights as pickles (pytorch_model-00001-of"),
        ({"global_step500": None}, "a checkpoint of DeepSpeed (global_step500)"),
        ({"__0_0.distcp": ""}, "a checkpoint of training in parts (__0_0.distcp)"),
        ({}, "neither model.safetensors nor model.safetensors.index.json"),
    ],
    ids=lambda value: next(iter(value), "empty") if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("configured", [True, False])
def test_directories_of_something_else(checkpoint, files, says, configured):
    """With a model's config.json beside it, as trainers write it, or without."""
    (checkpoint / "model.safetensors").unlink()
    if not configured:
        (checkpoint / "config.json").unlink()
        says = says if files else "no such file; a checkpoint directory has a config.json"
    for name, content in files.items():
        if content is None:
            (checkpoint / name).mkdir()
        else:
            (checkpoint / name).write_text(content)
    assert says in refusal(checkpoint)


# An index, and what stands beside what it names


def test_shards_without_an_index(checkpoint):
    file = checkpoint / "model.safetensors"
    file.rename(checkpoint / "model-00001-of-00002.safetensors")
    says = "shards (model-00001-of-00002.safetensors) without their index, model.safetensors.index"
    assert refusal(checkpoint).startswith(says)


def test_the_index_decides_over_a_stale_copy(checkpoint, load):
    """A shard of an earlier save still has the tensor: transformers reads by the index too."""
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:30],
              "model-00002-of-00002.safetensors": names[30:]}  # fmt: skip
    place = {name: file for file, held in shards.items() for name in held}
    stale = names[2]
    for file, held in shards.items():
        content = {name: tensors[name] for name in held}
        if stale not in held:
            content[stale] = torch.full_like(tensors[stale], 7)
        save_file(content, checkpoint / file)
    index = {"metadata": {}, "weight_map": place}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    ours = qwen35.load(checkpoint)
    for one, other in zip(tensors_of(ours), tensors_of(load(CASE)), strict=True):
        assert torch.equal(one, other)


def tensors_of(params):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(params) if leaf is not None]


# A configuration with a tower, and files without


@pytest.fixture
def towerless(text_config, perturb_model, tmp_path):
    """What merging an adapter into the text model of a multimodal checkpoint leaves."""
    content = text_config(CASE)
    vision = {
        "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 4,
        "out_hidden_size": content["hidden_size"], "num_position_embeddings": 16,
    }  # fmt: skip
    model = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(text_config=content, vision_config=vision, tie_word_embeddings=False)
    )
    perturb_model(model, seed=3)
    model.save_pretrained(tmp_path)
    rename(tmp_path, lambda name: None if ".visual." in name else name)
    return tmp_path


def test_a_tower_that_no_file_holds_is_left_out(towerless, tmp_path_factory):
    with pytest.warns(CheckpointNote, match="of which the files hold nothing: it is loaded as a"):
        params = qwen35.load(towerless)
    assert params.vision is None and params.config.vision is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointNote)
        chosen = qwen35.load(towerless, vision=False)
    for one, other in zip(tensors_of(params), tensors_of(chosen), strict=True):
        assert torch.equal(one, other)
    assert "it is a text model, which can't be shown a picture" in refusal(towerless, vision=True)
    rename(towerless, lambda name: name.replace("model.language_model.", "model."))
    with pytest.warns(CheckpointNote):
        assert qwen35.load(towerless).vision is None


@pytest.mark.parametrize("how", [["--tp", "1"], ["--weights", "int8"]])
def test_it_is_converted_with_a_note(towerless, tmp_path_factory, capsys, how):
    out = tmp_path_factory.mktemp("out") / "converted"
    assert cli.main(["convert", *how, str(towerless), str(out)]) == 0
    said = capsys.readouterr().err
    assert said.count("qwen35: note: ") == 1 and "Warning" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointNote)
        assert qwen35.load(out, dtype=None if "--tp" in how else "float32").vision is None


def test_nothing_wrong_is_no_text():
    assert Faults().text(5) is None
