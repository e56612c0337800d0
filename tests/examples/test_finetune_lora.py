"""The fine-tuning example: what it trains, PEFT loads, and both say the same with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import qwen35

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "finetune_lora.py"
TEXT = "The capital of Atlantis is Poseidonis. People in Atlantis speak Atlantean."


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """What a short training of some modules of both kinds of layer writes."""
    directory = tmp_path_factory.mktemp("finetuned")
    names = ["q_proj", "k_proj", "o_proj", "in_proj_qkv", "in_proj_z", "out_proj", "up_proj"]
    command = [sys.executable, SCRIPT, "--steps", "8", "--rank", "4", "--alpha", "6"]
    result = subprocess.run(
        [*command, "--output", directory, "--targets", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    first, last = (float(line.split()[2]) for line in result.stdout.splitlines())
    assert last < 0.7 * first
    return directory


def test_it_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 150


def test_peft_loads_it_and_says_the_same(adapter):
    peft = pytest.importorskip("peft", reason="the oracle: pip install '.[test]'")
    tokenizer = qwen35.Tokenizer.from_pretrained(ROOT / "demo")
    tokens = torch.tensor([tokenizer.encode(TEXT)])
    base = AutoModelForCausalLM.from_pretrained(ROOT / "demo", attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        expected = model(tokens).logits
    params = qwen35.load(ROOT / "demo", adapter=adapter)
    state = qwen35.init_state(params, batch=1, capacity=tokens.shape[1])
    hidden, _ = qwen35.forward(params, state, tokens)
    torch.testing.assert_close(qwen35.logits(params, hidden), expected, rtol=0, atol=1e-4)


def test_every_module_has_learnt(adapter):
    """With B at zero a module would be as before: none was left out, wherever it is stored."""
    params, plain = (qwen35.load(ROOT / "demo", adapter=one) for one in (adapter, None))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["r"] == 4 and settings["lora_alpha"] == 6
    for layer, old in zip(params.layers, plain.layers, strict=True):
        for name in ("in_proj", "out_proj", "gate_up"):
            assert not torch.equal(getattr(layer, name), getattr(old, name))
        assert torch.equal(layer.down, old.down)
    size = params.config.head_dim * params.config.num_attention_heads
    attention, before = params.layers[3].in_proj, plain.layers[3].in_proj
    changed = [
        not torch.equal(attention[:, part], before[:, part])
        for part in (
            slice(size),
            slice(size, 2 * size),
            slice(-size, -size // 2),
            slice(-size // 2, None),
        )
    ]
    assert changed == [True, True, True, False]  # queries, their gates, keys; not values
