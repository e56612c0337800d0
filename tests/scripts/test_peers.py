"""What scripts/peers hands to the other program, with a stand-in for that."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_checkpoint_goes_to_llama_cpp_with_its_tokenizer(tmp_path, monkeypatch):
    """Its converter needs one; the stand-in ends with 7 where that is the checkpoint's own."""
    wanted = str(ROOT / "demo" / "tokenizer.json")
    (tmp_path / "build" / "bin").mkdir(parents=True)
    (tmp_path / "build" / "bin" / "llama-bench").touch()
    (tmp_path / "convert_hf_to_gguf.py").write_text(
        "import json, sys\n"
        f"files = sys.argv[1] + '/tokenizer.json', {wanted!r}\n"
        "ours, theirs = (json.load(open(file))['model']['vocab'] for file in files)\n"
        "sys.exit(7 if ours == theirs else 1)\n"
    )
    words = ["llama_cpp.py", str(tmp_path), "--model", str(ROOT / "demo")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", sys.path[:])
    with pytest.raises(subprocess.CalledProcessError) as stop:
        runpy.run_path(str(ROOT / "scripts" / "peers" / "llama_cpp.py"))["main"]()
    assert stop.value.returncode == 7
