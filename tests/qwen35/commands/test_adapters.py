"""`--adapter` of the commands: the merged model everywhere, and `convert --adapter` writes it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qwen35
from qwen35.bench import suite
from qwen35.commands import cli

DEMO = Path(__file__).resolve().parents[3] / "demo"
PROMPT = ["--prompt", "The capital of France is", "--max-new-tokens", "12"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter of the demo's feed-forward layers, in PEFT's form, that changes what it says."""
    directory = tmp_path_factory.mktemp("adapter")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(8):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_"
        tensors[name + "A.weight"] = torch.randn(4, 256, generator=generator) * 0.3
        tensors[name + "B.weight"] = torch.randn(128, 4, generator=generator) * 0.3
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["down_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def tokens_of(capsys, *arguments):
    assert cli.main(["generate", "--device", "cpu", *PROMPT, "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)["tokens"]


def test_generate_and_convert(adapter, tmp_path, capsys):
    params = qwen35.load(DEMO, adapter=adapter)  # held to PEFT in files/test_adapter
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    [completion] = qwen35.generate(params, tokenizer, PROMPT[1], max_new_tokens=12)
    said = tokens_of(capsys, "--model", DEMO, "--adapter", adapter)
    assert said == list(completion.tokens) != tokens_of(capsys, "--model", DEMO)
    assert cli.main(["convert", "--adapter", str(adapter), str(DEMO), str(tmp_path / "out")]) == 0
    assert tokens_of(capsys, "--model", tmp_path / "out") == said  # its tokenizer went along


def test_a_report_names_the_adapter(adapter, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. " * 4)
    command = ["eval", "perplexity", "--device", "cpu", "--json", "--text", str(text)]
    assert cli.main([*command, "--model", str(DEMO), "--adapter", str(adapter)]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert merged["model"] == f"{DEMO} with {adapter}"
    assert cli.main([*command, "--model", str(DEMO)]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["total"]["perplexity"] < merged["total"]["perplexity"]


def test_what_convert_cannot_do_at_once_is_refused(adapter, tmp_path, capsys):
    merging = ["convert", "--adapter", str(adapter)]
    assert cli.main([*merging, "--weights", "int8", str(DEMO), str(tmp_path / "out")]) == 2
    assert "--adapter first" in capsys.readouterr().err
    assert cli.main([*merging, str(DEMO), str(DEMO)]) == 2
    assert "would lose it" in capsys.readouterr().err


def test_agreement_is_with_what_peft_merges(adapter, capsys):
    pytest.importorskip("peft", reason="the reference's own merging: pip install '.[test]'")
    command = ["eval", "agreement", "--model", str(DEMO), "--device", "cpu", "--json"]
    command += ["--dtype", "float32", "--max-new-tokens", "8"]
    assert cli.main([*command, "--adapter", str(adapter)]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert cli.main(command) == 0
    plain = json.loads(capsys.readouterr().out)
    assert merged["model"] == f"{DEMO} with {adapter}"
    [here], [there] = merged["comparisons"], plain["comparisons"]
    assert here["top1"] == 1.0 and here["logit_difference"] < 1e-3
    said, before = ([row["reference"] for row in one["prompts"]] for one in (here, there))
    assert said != before


def test_agreement_needs_peft_for_an_adapter(adapter, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    command = ["eval", "agreement", "--model", str(DEMO), "--device", "cpu"]
    assert cli.main([*command, "--adapter", str(adapter)]) == 2
    assert "pip install peft" in capsys.readouterr().err


def test_bench_measures_the_merged_checkpoint(adapter, capsys, monkeypatch):
    """What both sides are given: a checkpoint that holds the merged weights."""
    known = qwen35.load(DEMO, adapter=adapter)
    seen = {}

    def measure(directory, name, settings, say, rank):
        seen.update(name=name, params=qwen35.load(directory))
        qwen35.Tokenizer.from_pretrained(directory)
        return {}

    monkeypatch.setattr(suite, "measure", measure)
    monkeypatch.setattr(suite, "render", lambda result: "")
    monkeypatch.setattr(suite, "plots", lambda result: {})
    merged = ["--model", str(DEMO), "--adapter", str(adapter)]
    assert cli.main(["bench", "ttft", "--lengths", "8", *merged]) == 0
    assert seen["name"] == f"{DEMO} with {adapter}"
    tokens = torch.tensor([[1, 2, 3]])
    logits = [
        qwen35.prefill(params, qwen35.init_state(params, 1, 4), tokens)[0]
        for params in (known, seen["params"])
    ]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    capsys.readouterr()
    assert cli.main(["bench", "ttft", "--adapter", str(adapter)]) == 2
    assert "--adapter is of a checkpoint" in capsys.readouterr().err
