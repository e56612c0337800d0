"""`--compile`: a backend of torch.compile at the command line, and a machine without torch-xla;
`--segments`: steps cut into several graphs."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import qwen35
from qwen35.commands import cli
from qwen35.commands.launch import Launch
from qwen35.commands.loading import load_params

ROOT = Path(__file__).resolve().parents[3]
PROMPT = ("--prompt", "The capital of France", "--greedy", "--max-new-tokens", "3")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random checkpoint of one layer of each kind, with the demo's tokenizer."""
    return saved(tmp_path_factory.mktemp("small"), "linear_attention", "full_attention")


def saved(directory, *kinds):
    config = qwen35.Config.from_pretrained(ROOT / "demo")
    config = dataclasses.replace(config, num_hidden_layers=len(kinds), layer_types=kinds)
    qwen35.save(qwen35.init_params(config), directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / name, directory)
    return directory


def said(capsys, directory, *options):
    assert cli.main(["generate", "--model", str(directory), *PROMPT, *options]) == 0
    return capsys.readouterr()


def test_a_backend_on_the_cpu_says_the_same(small, capsys):
    """Where no --device is given, it is the backend's; what it compiles is shown."""
    eager = said(capsys, small, "--device", "cpu")
    compiled = said(capsys, small, "--compile", "aot_eager")
    assert compiled.out == eager.out
    assert "compiling decode and choose" in compiled.err and "compiling" not in eager.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compile", "inductro"], "no backend 'inductro': torch.compile has"),
        (["--compile", "inductor", "--device", "xla"], "inductor runs on --device cpu, not on xla"),
        (["--compile", "openxla", "--device", "cpu"], "openxla runs on --device xla, not on cpu"),
    ],
)
def test_a_backend_that_cannot_be_is_one_line(small, capsys, options, message):
    assert cli.main(["generate", "--model", str(small), *PROMPT, *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("qwen35: error: ") and message in line


@pytest.mark.slow
def test_cut_steps_say_what_one_graph_says(tmp_path, capsys):
    """The graph of a run is compiled, then that of what follows; and the text is the same."""
    directory = saved(tmp_path, *["linear_attention", "full_attention"] * 2)
    one = said(capsys, directory)
    cut = said(capsys, directory, "--segments", "auto")
    assert cut.out == one.out and "compiling run" in cut.err and "compiling run" not in one.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--segments", "0"], "argument --segments: must be a positive integer or auto, not '0'"),
        (["--segments", "2", "--compile", "aot_eager"], "makes steps one graph: segments must be"),
        (["--segments", "2"], "its 2 layers make no 2 equal segments"),
        (["--segments", "2", "--device", "cpu"], "--device cpu compiles nothing"),
    ],
)
def test_segments_that_cannot_be_are_one_line(small, capsys, options, message):
    """With the reason, and not one graph that nobody asked for."""
    assert cli.main(["generate", "--model", str(small), *PROMPT, *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("qwen35: error: ") and message in line


def test_segments_where_there_is_nothing_to_cut_are_a_note(small, capsys):
    assert cli.main(["generate", "--model", str(small), *PROMPT, "--segments", "auto"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qwen35:")]
    [note] = notes
    assert "note: " in note and "the kinds of its 2 layers don't repeat: it is one graph" in note


@pytest.mark.parametrize(
    "words",
    [
        ("generate", *PROMPT),
        ("chat",),
        ("eval", "perplexity", "--text", str(ROOT / "README.md")),
        ("eval", "agreement", "--dtype", "float32"),
        ("bench", "ttft", "--lengths", "8"),
    ],
)
def test_every_command_says_which_segments_would_do(words, capsys):
    assert cli.main([*words, "--model", str(ROOT / "demo"), "--segments", "5"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    wanted = "segments = 5: its 8 layers make no 5 equal segments; 2 would do"
    assert last == f"qwen35: error: the model can't be cut with {wanted}"


def test_a_tower_that_stays_whole_is_told_of(capsys):
    """Its 3 layers are another number than the text's 4: hardly a number cuts both."""
    options = argparse.Namespace(model=str(ROOT / "demo_vision"), dtype="auto", weights=None)
    vars(options).update(head=None, adapter=None, check_finite=True)
    for segments, vision in ((1, True), (2, False), (2, True)):
        runtime = qwen35.Runtime(segments=segments)
        load_params(options, Launch(runtime, "cpu", True, 1), vision=vision)
        told = "note: the tower can't be cut with segments = 2: its 3 layers make no 2 equal"
        assert (told in capsys.readouterr().err) == (segments == 2 and vision)


def test_inductor_without_a_compiler_is_one_line(small, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert cli.main(["generate", "--model", str(small), *PROMPT, "--compile", "inductor"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--compile inductor needs a C++ compiler" in line


@pytest.fixture(scope="module")
def without_xla(tmp_path_factory):
    """run(*arguments): `qwen35` in an environment that has this one's packages but torch-xla's."""
    directory = tmp_path_factory.mktemp("without_xla")
    venv.create(directory, symlinks=True)
    lent = directory / "lent" / "site-packages"
    lent.mkdir(parents=True)
    for site in [path for path in sys.path if path.endswith("-packages")]:
        for entry in Path(site).iterdir():
            unwanted = ("torch_xla", "_XLAC", "libtpu", "qwen35", "__editable__")
            if not entry.name.startswith(unwanted) and entry.suffix != ".pth":
                (lent / entry.name).symlink_to(entry)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        code = f"import sys; sys.path[:0] = {[str(ROOT), str(lent)]}; import runpy; "
        code += f"sys.argv[1:] = {list(arguments)}; runpy.run_module('qwen35', run_name='__main__')"
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)}
        python = directory / "bin/python"
        return subprocess.run(
            [python, "-c", code], env=environment, capture_output=True, text=True, timeout=600
        )

    return run


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler"
)
def test_generate_compiles_without_torch_xla(tmp_path, without_xla, capsys):
    """One layer, of attention, which is compiled in a tenth of the time."""
    small = saved(tmp_path, "full_attention")
    options = ("generate", "--model", str(small), *PROMPT)
    compiled = without_xla(*options, "--device", "cpu", "--compile", "inductor")
    assert compiled.returncode == 0, compiled.stderr
    assert compiled.stdout == said(capsys, small, "--device", "cpu").out
    assert "compiling prefill" in compiled.stderr


@pytest.mark.slow
def test_without_torch_xla_the_default_device_is_a_line_that_says_so(small, without_xla):
    refused = without_xla("generate", "--model", str(small), *PROMPT)
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert "needs torch-xla, and it is not installed: --device cpu runs without" in line
