"""Compiling for parameters that are still to be read: what is loaded then runs the same graphs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import qwen35
import qwen35.files.checkpoint as checkpoint
from qwen35.commands.cli import main
from qwen35.files.expected import expected
from qwen35.generation.generate import compile_steps
from qwen35.xla import trees
from qwen35.xla.observers import on_compile

DEMO = Path(__file__).resolve().parents[3] / "demo"
PROMPTS = [[5, 6, 7], [9] * 20]


def strange(directory: Path, target: Path, epsilon: float) -> Path:
    """Copies a checkpoint with an epsilon for which no other test has compiled anything."""
    shutil.copytree(directory, target)
    content = json.loads((target / "config.json").read_text())
    content.get("text_config", content)["rms_norm_eps"] = epsilon
    (target / "config.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
@pytest.mark.parametrize("name", ["value_heads_x2_tied", "equal_heads"])
@pytest.mark.parametrize("forms", ["auto", "plain"])
def test_what_is_expected_is_what_is_loaded(name, dtype, forms, reference):
    """For jit both are one: the same structure, shapes, dtypes, devices and static content."""
    directory, runtime = reference(name).directory, qwen35.Runtime(forms=forms)
    coming = expected(directory, dtype=dtype, runtime=runtime)
    params = qwen35.load(directory, dtype=dtype, runtime=runtime, device="xla")
    assert trees.flatten_frozen(coming).key is trees.flatten_frozen(params).key


@pytest.mark.parametrize("vision", [None, True, False])
def test_with_a_tower_too(vision, multimodal):
    coming = expected(multimodal.directory, vision=vision)
    params = qwen35.load(multimodal.directory, vision=vision, device="xla")
    assert trees.flatten_frozen(coming).key is trees.flatten_frozen(params).key


@pytest.mark.parametrize(
    ("name", "segments"),
    [
        ("value_heads_x2_tied", 1),
        pytest.param("conv2_interval2_gqa6", "auto", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_compiled_when_they_are_there(name, segments, reference, letters, tmp_path):
    """And what comes out is what the same model gives that was never compiled."""
    directory = strange(reference(name).directory, tmp_path / "model", 1.25e-6)
    runtime = qwen35.Runtime(segments=segments)
    how = {"max_new_tokens": 6, "capacity": 83, "sampling": qwen35.Sampling(1.0, seed=3)}
    coming = expected(directory, runtime=runtime)
    seen = compile_steps(coming, letters, PROMPTS, **how)
    assert seen.count == (3 if segments == 1 else 7)
    with pytest.raises(RuntimeError, match=r"has no value.*made to compile for"):
        qwen35.generate(coming, letters, PROMPTS, **how)
    del coming
    params = qwen35.load(directory, device="xla", runtime=runtime)
    with on_compile() as later:
        got = qwen35.generate(params, letters, PROMPTS, **how)
    assert later.count == 0
    plain = qwen35.generate(qwen35.load(directory), letters, PROMPTS, **how)
    assert [row.tokens for row in got] == [row.tokens for row in plain]


def test_what_is_not_known_before_is_not_expected(reference, tmp_path):
    directory = reference("equal_heads").directory
    qwen35.save(qwen35.load(directory, weights="int8"), tmp_path / "int8")
    assert expected(tmp_path / "int8") is None


def test_faults_are_told_before_anything_is_compiled(reference, tmp_path, capsys):
    """Of a file that lacks a tensor."""
    params = qwen35.load(reference("equal_heads").directory)
    qwen35.save(params, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["num_hidden_layers"] += 1
    content["layer_types"].append("full_attention")
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(qwen35.CheckpointError) as known:
        qwen35.load(tmp_path)
    with on_compile() as seen, pytest.raises(qwen35.CheckpointError) as found:
        expected(tmp_path)
    assert str(found.value) == str(known.value) and seen.count == 0


def test_the_command_compiles_first(tmp_path, capsys, monkeypatch):
    """And counts those seconds as it counts others."""
    demo, order = strange(DEMO, tmp_path / "demo", 1.5e-6), []
    load = checkpoint.load

    def loading(*args, **kwargs):
        order.append("load")
        return load(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "load", loading)
    command = ["generate", "--model", str(demo), "--prompt", "The", "--max-new-tokens", "5"]
    with on_compile(lambda event: order.append(event.phase)):
        assert main([*command, "--json"]) == 0
    assert order.count("done") == 3 and order.index("load") > order.index("done")
    assert order[-1] == "load"
    assert json.loads(capsys.readouterr().out)["timings"]["compile"] > 0.1
