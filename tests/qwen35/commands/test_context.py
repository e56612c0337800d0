"""`--context`: positions beyond the checkpoint's, and what they cost."""

import json
import shutil
from pathlib import Path

import pytest

import qwen35
from qwen35.commands import cli

DEMO = Path(__file__).resolve().parents[3] / "demo"


def test_info_says_what_a_million_tokens_cost(capsys):
    command = ["info", "27b", "--tp", "4", "--context", "1000000"]
    assert cli.main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    # 16 layers, keys and values of one head of 256 on a rank, in bfloat16.
    assert summary["context"] == {
        "tokens": 1_000_000,
        "positions": 262_144,
        "yarn_factor": 1_000_000 / 262_144,
        "tp": 4,
        "kv_bytes": 16 * 2 * 256 * 2 * 1_000_000,
    }
    assert cli.main(command) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("context")]
    assert "15.3 GiB" in line and "each of 4 ranks" in line and "YaRN stretches them by 3.8" in line


def test_info_within_the_positions_says_nothing_of_yarn(capsys):
    assert cli.main(["info", "27b", "--context", "262144"]) == 0
    said = capsys.readouterr().out
    assert "262,144: 16.0 GiB of KV cache" in said and "YaRN" not in said


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The demo, as if it had been trained on 64 positions; and the same with YaRN in its file."""
    plain, yarn = (tmp_path_factory.mktemp(name) for name in ("plain", "yarn"))
    for directory in (plain, yarn):
        shutil.copytree(DEMO, directory, dirs_exist_ok=True)
        content = json.loads((DEMO / "config.json").read_text())
        text = content.get("text_config", content)
        text["max_position_embeddings"] = 64
        if directory == yarn:
            text["rope_parameters"] |= {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        (directory / "config.json").write_text(json.dumps(content))
    return plain, yarn


def test_generate_beyond_the_positions(short, capsys):
    plain, yarn = short
    prompt = "The capital of France is Paris. " * 12
    command = ["generate", "--device", "cpu", "--prompt", prompt, "--json", "--max-new-tokens", "9"]
    assert cli.main([*command, "--model", str(plain)]) == 2
    assert "over the max_position_embeddings of 64" in capsys.readouterr().err
    assert cli.main([*command, "--model", str(plain), "--context", "256"]) == 0
    shown = capsys.readouterr()
    assert "beyond the checkpoint's 64 positions, so YaRN stretches them by 4" in shown.err
    tokens = json.loads(shown.out)["tokens"]
    # The same as of a file that says so, whose logits are transformers' (test_yarn).
    params = qwen35.load(yarn)
    [completion] = qwen35.generate(
        params, qwen35.Tokenizer.from_pretrained(yarn), prompt, max_new_tokens=9
    )
    assert tokens == list(completion.tokens)
    assert cli.main(["info", str(yarn)]) == 0
    assert "up to 256, by YaRN with a factor of 4" in capsys.readouterr().out
