"""Bad input is a ValueError of one line with the numbers in it, raised before anything runs.

Files have their own tests (test_checkpoint, test_config); here are the functions and the command.
"""

import json
import shutil

import pytest
import torch

import qwen35
from qwen35.commands.cli import main

NAME, OTHER = "attention_first_explicit_types", "equal_heads"
VOCABULARY, LIMIT = 131, 1024


@pytest.fixture(scope="module")
def params(load):
    return load(NAME)


@pytest.fixture(scope="module")
def state(params):
    return qwen35.init_state(params, batch=2, capacity=10)


def says(call, *words):
    """The call raises a ValueError whose one line has all the words."""
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, text


def tokens(*shape, fill=1, dtype=torch.int64):
    return torch.full(shape, fill, dtype=dtype)


@pytest.mark.parametrize("function", [qwen35.forward, qwen35.prefill])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (tokens(2, 0), ["at least one token"]),
        (tokens(2), ["[2]"]),
        (tokens(2, 3, 1), ["[2, 3, 1]"]),
        (tokens(2, 3, dtype=torch.float32), ["float32"]),
        (tokens(2, 3, dtype=torch.int16), ["int16"]),
        (tokens(3, 3), [3, 2]),
        (tokens(2, 3, fill=VOCABULARY), [VOCABULARY, VOCABULARY - 1]),
        (tokens(2, 3, fill=-1), [-1, VOCABULARY]),
        (tokens(2, 11), [11, 10]),
    ],
)
def test_tokens(params, state, function, bad, words):
    says(lambda: function(params, state, bad), *words)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.tensor([1, -1]), [-1, 3]),
        (torch.tensor([4, 1]), [4, 3]),
        (torch.tensor([1]), ["[1]", 2]),
        (torch.tensor([[1], [1]]), ["[2, 1]", 2]),
        (torch.tensor([1.0, 2.0]), ["float32"]),
        (torch.tensor([True, False]), ["bool"]),
    ],
)
def test_lengths(params, state, bad, words):
    says(lambda: qwen35.prefill(params, state, tokens(2, 3), bad), *words)


@pytest.mark.parametrize(
    ("token", "active", "words"),
    [
        (tokens(2, 1), None, ["[2, 1]"]),
        (tokens(3), None, [3, 2]),
        (tokens(2, fill=VOCABULARY), None, [VOCABULARY]),
        (tokens(2, fill=-1), torch.tensor([True, False]), [-1]),
        (tokens(2, dtype=torch.float32), None, ["float32"]),
        (tokens(2), torch.tensor([1, 0]), ["bool", "int64"]),
        (tokens(2), torch.tensor([True]), ["1", "2"]),
    ],
)
def test_decode(params, state, token, active, words):
    says(lambda: qwen35.decode(params, state, token, active), *words)


def test_capacity_names_the_row_and_all_numbers(params, state):
    _, used = qwen35.prefill(params, state, tokens(2, 8), torch.tensor([2, 8]))
    says(lambda: qwen35.prefill(params, used, tokens(2, 3)), "row 1", 8, 3, 11, 10)
    _, full = qwen35.prefill(params, used, tokens(2, 2))
    says(lambda: qwen35.decode(params, full, tokens(2)), "row 1", 10)


def test_a_refused_call_leaves_the_state_usable(params, state):
    before = [leaf.clone() for leaf in torch.utils._pytree.tree_leaves(state)]
    says(lambda: qwen35.prefill(params, state, tokens(2, 3, fill=999)), 999)
    after = torch.utils._pytree.tree_leaves(state)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("other", [OTHER, "conv2_interval2_gqa6", "only_attention"])
def test_a_state_of_another_model(params, load, other):
    foreign = qwen35.init_state(load(other), batch=2, capacity=10)
    says(lambda: qwen35.prefill(params, foreign, tokens(2, 3)), "state")


@pytest.mark.parametrize(
    "changes",
    [
        {"linear_key_head_dim": 8},
        {"linear_value_head_dim": 8},
        {"linear_num_value_heads": 2},
        {"linear_conv_kernel_dim": 2},
        {"linear_num_key_heads": 1},
        {"num_key_value_heads": 1},
        {"head_dim": 32, "rope_parameters": None},
        {"num_hidden_layers": 4, "layer_types": ["full_attention"] + ["linear_attention"] * 3},
        {"layer_types": ["full_attention"] * 2 + ["linear_attention"] * 3},
    ],
)
def test_a_state_that_differs_in_one_size(params, text_config, changes):
    config = qwen35.Config.from_dict(text_config(NAME, **changes))
    foreign = qwen35.init_state(qwen35.init_params(config), batch=2, capacity=10)
    says(lambda: qwen35.prefill(params, foreign, tokens(2, 3)), "state")


def test_a_state_of_another_dtype(params, reference):
    low = qwen35.load(reference(NAME).directory, dtype="bfloat16")
    foreign = qwen35.init_state(low, batch=2, capacity=10)
    says(lambda: qwen35.prefill(params, foreign, tokens(2, 3)), "bfloat16", "float32")


def test_tensors_on_different_devices(load, params, state):
    on_device = load(NAME, "xla")
    says(lambda: qwen35.prefill(on_device, state, tokens(2, 3)), "cpu", "xla")
    device_state = qwen35.init_state(on_device, batch=2, capacity=10)
    says(lambda: qwen35.prefill(on_device, device_state, tokens(2, 3)), "cpu", "xla")


@pytest.mark.parametrize("name", ["batch", "capacity"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, None])
def test_init_state(params, name, value):
    sizes = {"batch": 1, "capacity": 8} | {name: value}
    says(lambda: qwen35.init_state(params, **sizes), name, value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk": 0}, ["chunk", 0]),
        ({"chunk": 2.5}, ["chunk", 2.5]),
        ({"kernels": "triton"}, ["kernels", "triton", "portable"]),
        ({"rank": 1}, ["rank", 1]),
    ],
)
def test_runtime(params, changes, words):
    says(lambda: qwen35.Runtime(**changes), *words)
    says(lambda: params.with_runtime(**changes), *words)


def test_nki_kernels_without_a_neuron_device(params):
    state = qwen35.init_state(params, batch=1, capacity=8)
    says(lambda: qwen35.prefill(params.with_runtime(kernels="nki"), state, tokens(1, 3)), "nki")


@pytest.mark.parametrize("dtype", ["float16", torch.float64, 32])
def test_init_params_dtype(params, dtype):
    says(lambda: qwen35.init_params(params.config, dtype=dtype), "float32", "bfloat16", dtype)


@pytest.mark.parametrize("device", ["cuda", "xla:9", 0])
def test_unknown_device(params, device):
    says(lambda: qwen35.init_params(params.config, device=device), "cpu", "xla", device)
    says(lambda: qwen35.device_put(torch.zeros(1), device), "cpu", "xla", device)


@pytest.mark.parametrize("function", [qwen35.generate, qwen35.stream])
@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ("", {}, ["at least one token"]),
        (["a", ""], {}, ["prompt 1", "at least one token"]),
        ([[]], {}, ["at least one token"]),
        ([], {}, ["at least one prompt"]),
        ([[5, VOCABULARY]], {}, ["prompt 0", VOCABULARY]),
        ([[5], [-1]], {}, ["prompt 1", -1, VOCABULARY]),
        ("\N{SNOWMAN}", {}, [0x2603, VOCABULARY]),
        ("abcdef", {"capacity": 8, "max_new_tokens": 3}, [6, 3, 9, 8, "capacity"]),
        ("a" * 1000, {"max_new_tokens": 25}, [1000, 25, LIMIT, "max_position_embeddings"]),
        ("a", {"capacity": 2000, "max_new_tokens": LIMIT}, [LIMIT, "max_position_embeddings"]),
        ("a", {"max_new_tokens": 0}, ["max_new_tokens", 0]),
        ("a", {"max_new_tokens": 1.5}, ["max_new_tokens", 1.5]),
        ("a", {"capacity": 0}, ["capacity", 0]),
        ("a", {"capacity": -5}, ["capacity", -5]),
    ],
)
def test_generate(params, letters, function, prompts, options, words):
    says(lambda: function(params, letters, prompts, **options), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -0.1}, ["temperature", -0.1]),
        ({"temperature": float("nan")}, ["temperature", "nan"]),
        ({"temperature": float("inf")}, ["temperature", "inf"]),
        ({"temperature": "hot"}, ["temperature", "hot"]),
        ({"seed": -1}, ["seed", -1]),
        ({"seed": 0.5}, ["seed", 0.5]),
    ],
)
def test_sampling(options, words):
    says(lambda: qwen35.Sampling(**options), *words)


def test_no_tokenizer_files(reference):
    directory = reference(NAME).directory
    with pytest.raises(qwen35.CheckpointError, match=r"tokenizer\.json"):
        qwen35.Tokenizer.from_pretrained(directory)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_damaged_tokenizer_files(tmp_path, reference, content):
    directory = shutil.copytree(reference(NAME).directory, tmp_path / "model")
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(qwen35.CheckpointError, match="tokenizer"):
        qwen35.Tokenizer.from_pretrained(directory)


# The command


@pytest.fixture
def model(tmp_path, reference):
    """A directory with weights and a byte tokenizer, to be damaged."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory = shutil.copytree(reference(NAME).directory, tmp_path / "model")
    letters = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def refuses(capsys, *arguments):
    """The command ends with 2, one line on standard error, nothing on standard output."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.split("\n") if "error" in line]
    assert len(lines) == 1
    return lines[0]


def generate(model, *options):
    return ("generate", "--model", model, "--device", "cpu", *options)


def test_command_generates(capsys, model):
    """The undamaged directory works: the refusals below are for their own reasons."""
    assert main([str(a) for a in generate(model, "--prompt", "ab", "--max-new-tokens", "2")]) == 0
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: shutil.rmtree(d), ["model"]),
        (lambda d: (d / "config.json").unlink(), ["config.json"]),
        (lambda d: (d / "config.json").write_text("no"), ["config.json"]),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "qwen3_5_moe"}'),
            ["qwen3_5_moe"],
        ),
        (lambda d: (d / "model.safetensors").unlink(), ["safetensors"]),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 100), ["model.safetensors"]),
        (lambda d: (d / "tokenizer.json").unlink(), ["tokenizer.json"]),
        (lambda d: (d / "tokenizer.json").write_text("{"), ["tokenizer"]),
    ],
)
def test_command_on_a_damaged_directory(capsys, model, damage, words):
    damage(model)
    line = refuses(capsys, *generate(model, "--prompt", "ab"))
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", ""], ["at least one token"]),
        (["--prompt", "a" * 1020, "--max-new-tokens", "5"], ["1020", "5", "1024"]),
        (["--prompt", "a", "--max-new-tokens", "0"], ["0"]),
        (["--prompt", "a", "--max-new-tokens", "many"], ["many"]),
        (["--prompt", "a", "--temperature", "-1"], ["-1"]),
        (["--prompt", "a", "--temperature", "nan"], ["nan"]),
        (["--prompt", "a", "--seed", "-1"], ["-1"]),
        (["--prompt", "a", "--dtype", "int8"], ["int8"]),
        (["--prompt", "a", "--device", "gpu"], ["gpu"]),
        (["--prompt", "a", "--no-thinking"], ["--no-thinking is for messages"]),
        (["--prompt", "a", "--system", "b"], ["--system is for messages"]),
        (["--prompt", "a", "--reasoning-effort", "low"], ["--reasoning-effort is for messages"]),
        (["--prompt", "a", "--chat", "--template-arg", "b"], ["must be NAME=VALUE, not 'b'"]),
        (["--prompt", "caf\udce9"], ["'\\udce9' at character 3", "not UTF-8"]),
        (["--prompt", "a", "--stop", ""], ["stop", "texts that are not empty"]),
        ([], ["--prompt"]),
    ],
)
def test_command_options(capsys, model, options, words):
    line = refuses(capsys, *generate(model, *options))
    assert all(word in line for word in words)


def test_command_names_weights_that_are_not_finite(capsys, model):
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in refuses(capsys, *generate(model, "--prompt", "ab"))
    options = ("--prompt", "ab", "--max-new-tokens", "1", "--no-check-finite")
    assert main([str(a) for a in generate(model, *options)]) == 0


def test_command_of_no_directory(capsys, tmp_path):
    line = refuses(capsys, *generate(tmp_path / "nowhere", "--prompt", "ab"))
    assert "nowhere: no such directory" in line


@pytest.mark.parametrize("what", ["nowhere", "28b"])
def test_info_of_nothing(capsys, what):
    line = refuses(capsys, "info", what)
    assert what in line
    assert "27b" in line
