"""Exported files by themselves: a stranger puts their inputs together, and JAX's XLA runs them.

JAX has an XLA of its own, of another release than torch-xla's, in a process of its own.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import qwen35
from qwen35.commands import cli
from qwen35.graphs import export_check, export_files
from qwen35.graphs.export_check import Call, Compared, compare, relative_difference
from qwen35.xla import trees

sys.path.insert(0, str(Path(__file__).parent))  # lets this file import the module beside it

from stranger import build_inputs

TOKENS, BATCH, CAPACITY = 12, 2, 64
SIZES = ["--tokens", str(TOKENS), "--batch", str(BATCH), "--capacity", str(CAPACITY)]
# transformers and we differ by 2e-6 of the largest logit here, as its own prefill and decode do.
BOUND = 5e-6


def export(model, out, phases, *more) -> int:
    """Runs `qwen35 export` in float32; returns its exit code."""
    command = ["export", "--model", str(model), "--dtype", "float32", "--phase", phases]
    return cli.main([*command, *SIZES, *more, str(out)])


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    """A checkpoint whose heads do not split evenly over 4 ranks: some have padding."""
    vision = qwen35.VisionConfig(
        depth=1, hidden_size=48, intermediate_size=50, num_heads=6, out_hidden_size=64
    )
    config = qwen35.Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=4,
        linear_num_value_heads=8,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        vision=vision,
    )
    directory = tmp_path_factory.mktemp("uneven")
    qwen35.save(qwen35.init_params(config), directory)
    return directory


@pytest.mark.parametrize("form", ["multimodal", "text"])
@pytest.mark.parametrize("tp", [1, 4])
def test_a_stranger_puts_every_input_together(tp, form, uneven, tmp_path):
    """From the manifest and the checkpoint: the values that each rank loads, bit for bit."""
    model, phases = uneven, "decode,vision"
    if form == "text":
        model, phases = tmp_path / "text", "decode"
        qwen35.save(qwen35.load(uneven, vision=False), model)
    assert export(model, tmp_path / "out", phases, "--tp", str(tp)) == 0
    for rank in range(tp):
        runtime = qwen35.Runtime(mesh=qwen35.Mesh(tp=tp), rank=rank, forms="plain")
        params = qwen35.load(model, runtime=runtime)
        seen = set()
        for phase in phases.split(","):
            tree = params.vision if phase == "vision" else params
            loaded = dict(trees.named_leaves(tree, "params"))
            inputs = build_inputs(tmp_path / "out" / f"{phase}.json", model, rank)
            content = json.loads((tmp_path / "out" / f"{phase}.json").read_text())
            missing = {entry["path"] for entry in content["parameters"]} - inputs.keys()
            assert all(path.startswith("tokens") for path in missing), missing
            for path, value in inputs.items():
                if path.startswith("params"):
                    seen.add((phase, path))
                    np.testing.assert_array_equal(value, loaded[path].numpy(), path)
        every = {("decode", path) for path, _ in trees.named_leaves(params, "params")}
        every = {pair for pair in every if "params.vision" not in pair[1]}
        assert every <= seen


@pytest.mark.parametrize("tp", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_jax_agrees_with_transformers(tp, multimodal, tmp_path):
    """Prefill, prefill with a state, decode: the exported files in JAX's XLA, with the checkpoint
    that transformers wrote. With tp 2 the collectives join two of JAX's CPU devices."""
    assert export(multimodal.directory, tmp_path, "prefill,decode", "--tp", str(tp)) == 0
    length = 2 * TOKENS + 4
    generator = torch.Generator().manual_seed(5)
    vocabulary = multimodal.model.config.text_config.vocab_size
    ids = torch.randint(vocabulary, (BATCH, length), generator=generator)
    with torch.no_grad():
        logits = multimodal.model(input_ids=ids, use_cache=False).logits.float()
    content = json.loads((tmp_path / "prefill.json").read_text())
    state = {
        entry["path"]: torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        for entry in content["parameters"]
        if entry["path"].startswith("state")
    }
    ids, calls = ids.to(torch.int32), []
    for start in (0, TOKENS):
        given = {"tokens": ids[:, start : start + TOKENS]} | (state if not start else {})
        expected = {"logits": logits[:, start + TOKENS - 1].contiguous()}
        calls.append(Call("prefill", given, expected))
    for place in range(2 * TOKENS, length):
        expected = {"logits": logits[:, place].contiguous()}
        calls.append(Call("decode", {"tokens": ids[:, place].contiguous()}, expected))
    compared = compare(tmp_path, multimodal.directory, calls, ranks=tp, dtype="float32")
    assert [one.calls for one in compared] == [2, 4, 2, 4]
    for one in compared:
        assert one.faults == [] and one.difference < BOUND
        assert one.agreed == one.tokens == one.calls * BATCH * tp


@pytest.mark.parametrize(
    ("phases", "tp"),
    [
        pytest.param("vision,prefill_images,decode", 1, marks=pytest.mark.slow),
        pytest.param("vision,prefill_images", 2, marks=pytest.mark.slow),
    ],
)
def test_the_command_runs_pictures(phases, tp, multimodal, tmp_path, capsys):
    more = ("--tp", str(tp), "--run", "--json")
    assert export(multimodal.directory, tmp_path, phases, *more) == 0
    said = json.loads(capsys.readouterr().out)
    names = phases.split(",")
    assert list(said["graphs"]) == names
    ran = {(one["phase"], one["file"]): one for one in said["run"]}
    assert ran.keys() == {(p, file) for p in names for file in ("hlo.pb", "stablehlo")}
    for one in ran.values():
        assert one["faults"] == [] and 0 < one["difference"] < BOUND and one["calls"] > 0


@pytest.mark.slow
def test_the_command_runs_every_graph_of_an_engine(multimodal, tmp_path, capsys):
    more = ("--slots", "3", "--chunks", "8", "--run", "--json")
    assert export(multimodal.directory, tmp_path, "engine", *more) == 0
    said = json.loads(capsys.readouterr().out)
    [table] = said["graphs"].pop("engine")["files"]
    assert table == str(tmp_path / "engine.json")
    assert {one["phase"] for one in said["run"]} == said["graphs"].keys()
    assert len(said["run"]) == 2 * len(said["graphs"]) == 32
    for one in said["run"]:
        assert one["faults"] == [] and one["difference"] < BOUND and one["calls"] == 1


@pytest.mark.slow
def test_bfloat16_agrees_within_its_rounding(multimodal, tmp_path, capsys):
    more = ("--run", "--json", "--dtype", "bfloat16")
    assert export(multimodal.directory, tmp_path, "decode", *more) == 0
    for one in json.loads(capsys.readouterr().out)["run"]:
        assert 1e-4 < one["difference"] < export_check.BOUNDS["bfloat16"]


# Exports that are broken on purpose.


def changed_constant(directory: Path, content: dict) -> None:
    file = directory / "decode.captured.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(file).items()}, file)


def swapped_parameters(directory: Path, content: dict) -> None:
    """Two of one shape and type, under each other's names."""
    entries = {entry["path"]: entry for entry in content["parameters"]}
    first, second = entries["params.layers[0].input_norm"], entries["params.layers[1].input_norm"]
    for key in ("path", "checkpoint"):
        first[key], second[key] = second[key], first[key]


def wrong_slice(directory: Path, content: dict) -> None:
    """Keys from where queries are."""
    [entry] = [e for e in content["parameters"] if e["path"] == "params.layers[0].in_proj"]
    [_, columns] = entry["checkpoint"]["pieces"][1]["ranks"][0]
    columns[0][1] = 0


def other_type(directory: Path, content: dict) -> None:
    [entry] = [e for e in content["parameters"] if e["path"] == "params.norm"]
    entry["dtype"] = "float16"


def unknown_tensor(directory: Path, content: dict) -> None:
    [entry] = [e for e in content["parameters"] if e["path"] == "params.norm"]
    entry["checkpoint"]["pieces"][0]["names"] = ["model.no_norm.weight"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        # Of RoPE, which does nothing at position 0.
        (changed_constant, "call 2: logits of rank 0 differs by"),
        (swapped_parameters, "call 1: logits of rank 0 differs by"),
        (wrong_slice, "call 1: logits of rank 0 differs by"),
        pytest.param(other_type, "decode.stablehlo could not be run: ", marks=pytest.mark.slow),
        pytest.param(unknown_tensor, "no tensor model.no_norm.weight", marks=pytest.mark.slow),
    ],
)
def test_a_broken_export_is_found(fault, said, multimodal, tmp_path, capsys, monkeypatch):
    """The command says what differs and ends with 1."""
    write = export_files.write_graph

    def broken(directory, graph):
        written = write(directory, graph)
        file = directory / "decode.json"
        content = json.loads(file.read_text())
        fault(directory, content)
        file.write_text(json.dumps(content))
        return written

    monkeypatch.setattr(export_files, "write_graph", broken)
    monkeypatch.setattr(export_check, "ENDINGS", ("stablehlo",))
    assert export(multimodal.directory, tmp_path, "decode", "--run") == 1
    out, error = capsys.readouterr()
    assert said in error and "| disagrees |" in out


def test_what_counts_as_a_difference():
    ours = torch.tensor([1.0, -4.0, 0.0])
    assert relative_difference(ours, ours) == 0
    assert relative_difference(ours + torch.tensor([0.0, 0.0, 0.5]), ours) == 0.125
    inf, nan = float("inf"), float("nan")
    assert relative_difference(torch.tensor([1.0, nan, 0.0]), ours) == inf
    assert relative_difference(ours.bfloat16(), ours) == inf
    assert relative_difference(ours[:2], ours) == inf
    masked = torch.tensor([-inf, 2.0])
    assert relative_difference(masked.clone(), masked) == 0
    assert relative_difference(torch.tensor([0.0, 2.0]), masked) == inf
    assert relative_difference(torch.tensor([0.1]), torch.zeros(1)) == inf
    assert relative_difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == inf


def test_every_rank_is_compared():
    ours = torch.tensor([[0.0, 1.0]])
    one = Compared("decode", "hlo.pb")
    theirs = {"0:logits": ours, "1:logits": ours.flip(1)}
    one.add(Call("decode", {}, {"logits": ours}), theirs, 2, 1e-5)
    assert (one.tokens, one.agreed) == (2, 1)
    [fault] = one.faults
    assert fault.startswith("decode.hlo.pb, call 1: logits of rank 1 differs by 1.0e+00")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--kernels", "nki"], "which has no NKI kernels to call"),
        (["--weights", "int8"], "not those of --weights and --head"),
        (["--phase", "engine", "--tp", "2"], "--run of an engine is for --tp 1"),
        (["--capacity", "31"], "--run takes 32 tokens"),
    ],
)
def test_runs_that_can_not_be_had_are_refused(more, said, uneven, tmp_path, capsys):
    phase = [] if "--phase" in more else ["--phase", "prefill,decode"]
    command = ["export", "--model", str(uneven), "--tokens", "14", "--capacity", "64", *phase]
    assert cli.main([*command, *more, "--run", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_run_needs_weights_and_jax(uneven, tmp_path, capsys, monkeypatch):
    preset = ["export", "--preset", "0.8b", "--phase", "decode", "--run", str(tmp_path)]
    assert cli.main(preset) == 2
    assert "--run needs the weights of a checkpoint" in capsys.readouterr().err
    quantised = tmp_path / "int8"
    assert cli.main(["convert", "--weights", "int8", str(uneven), str(quantised)]) == 0
    assert export(quantised, tmp_path / "out", "decode", "--run") == 2
    assert "is quantised: --run reads dense weights" in capsys.readouterr().err
    monkeypatch.setattr(export_check.importlib.util, "find_spec", lambda name: None)
    assert export(uneven, tmp_path / "out", "decode", "--run") == 2
    assert "pip install 'qwen35[export-check]'" in capsys.readouterr().err
