"""Options of all commands: one name is one thing everywhere, and a bad value is named."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwen35.commands import cli, launch
from qwen35.commands.options import add_sampling, sampling_from
from qwen35.generation.sampling_settings import Sampling

DEMO = Path(__file__).resolve().parents[3] / "demo"

# Of these the values differ with the command, and so does the help: `bench` times two devices, of
# which one is a protocol; `eval agreement` takes several dtypes.
_OWN = {("bench", "--device"), ("eval agreement", "--dtype"), ("info", "--slots")}


def commands(parser: argparse.ArgumentParser, name: str = "") -> dict[str, list[argparse.Action]]:
    """All commands, those of `eval` too, with their options."""
    found = {name: [action for action in parser._actions if action.option_strings]}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                found |= commands(below, f"{name} {word}".strip())
    return found


def test_an_option_is_one_thing_in_all_commands():
    """Its flag gives one attribute, takes one kind of value and has one explanation."""
    seen: dict[str, dict[str, tuple]] = {}
    for command, options in commands(cli._parser()).items():
        for option in options:
            [flag] = [text for text in option.option_strings if text.startswith("--")]
            if (command, flag) in _OWN:
                continue
            text, _, _ = option.help.partition("; default")
            kind = (option.dest, option.type, option.metavar, text)
            seen.setdefault(flag, {})[command] = kind
    assert len(seen["--model"]) == 9 and len(seen["--json"]) == 9
    for flag, kinds in seen.items():
        assert len(set(kinds.values())) == 1, (flag, kinds)


def test_every_option_is_explained_and_shows_its_default():
    for command, options in commands(cli._parser()).items():
        for option in options:
            assert option.help, (command, option.option_strings)
            if option.default not in (None, argparse.SUPPRESS, True, False, "", []):
                assert "default" in option.help, (command, option.option_strings)


@pytest.mark.parametrize("command", commands(cli._parser()))
def test_help_is_printed(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: qwen35" in shown
    # It teaches: at least one line that can be typed in.
    assert re.search(r"^  (torchrun .* -m )?qwen35 ", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate --model m --prompt p --tp 0", "argument --tp: must be a positive integer"),
        ("generate --model m --prompt p --timeout -1", "argument --timeout: must be a positive nu"),
        ("generate --model m --prompt p --top-k x", "argument --top-k: invalid int value: 'x'"),
        ("generate --model m --prompt p --dtype int8", "argument --dtype: invalid choice: 'int8'"),
        ("generate --model m", "one of the arguments --prompt --prompt-file is required"),
        ("generate --model m --prompt p --prompt-file f", "not allowed with argument --prompt"),
        ("generate --prompt p", "the following arguments are required: --model"),
        ("chat --model m --max-new-tokens 1.5", "argument --max-new-tokens: must be a positive"),
        ("eval tasks --model m --tasks t --batch 0", "argument --batch: must be a positive"),
        ("eval agreement --model m --sing", "unrecognized arguments: --sing"),
        ("bench --sides 512 0", "argument --sides: must be a positive integer, not '0'"),
        ("convert --weights int3 in out", "argument --weights: invalid choice: 'int3'"),
        ("export --phase decode out", "one of the arguments --model --preset is required"),
        ("info 27b --context", "argument --context: expected one argument"),
        ("sing", "argument COMMAND: invalid choice: 'sing'"),
        ("eval", "the following arguments are required: MEASURE"),
    ],
)
def test_a_bad_option_is_one_line_that_names_it(line, said, capsys):
    assert cli.main(line.split()) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith("qwen35: error: ") and said in error
    assert "--help` explains" in error


def test_sampling_options_change_what_they_name_and_leave_the_rest():
    parser = argparse.ArgumentParser()
    add_sampling(parser)
    base = Sampling(temperature=0.6, top_p=0.95, presence_penalty=1.5, banned=(3,))
    assert sampling_from(parser.parse_args([]), base) == base
    words = "--temperature 0 --top-k 20 --min-p 0.1 --seed 7".split()
    words += "--repetition-penalty 1.1 --frequency-penalty -1".split()
    assert sampling_from(parser.parse_args(words), base) == Sampling(
        temperature=0, top_k=20, top_p=0.95, min_p=0.1, repetition_penalty=1.1,
        presence_penalty=1.5, frequency_penalty=-1, banned=(3,), seed=7,
    )  # fmt: skip
    assert sampling_from(parser.parse_args(["--greedy", "--ignore-eos"]), base) == Sampling(
        ignore_eos=True
    )
    with pytest.raises(ValueError, match="--greedy takes the likeliest token, at no --temperature"):
        sampling_from(parser.parse_args(["--greedy", "--temperature", "1"]), base)
    with pytest.raises(ValueError, match="top_p must be above 0 and at most 1, not 2"):
        sampling_from(parser.parse_args(["--top-p", "2"]), base)


def test_help_and_import_leave_the_heavy_packages_alone():
    script = """if True:
        import sys
        from qwen35.commands.cli import main
        for words in sys.argv[1:]:
            try:
                main([*words.split(), "--help"])
            except SystemExit as stop:
                assert stop.code == 0
        heavy = {"lm_eval", "datasets", "matplotlib", "transformers", "torch_xla"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    words = list(commands(cli._parser()))
    command = [sys.executable, "-c", script, *words]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--include-path" in result.stdout and "--reference" in result.stdout


@pytest.mark.parametrize("line", ["generate --prompt p", "chat", "batch in out", "bench"])
def test_neuron_is_a_device_everywhere_and_refused_where_there_is_none(line, capsys, tmp_path):
    (tmp_path / "in").write_text('"a prompt"\n')
    words = [str(tmp_path / word) if word in ("in", "out") else word for word in line.split()]
    assert cli.main([*words, "--model", str(DEMO), "--device", "neuron"]) == 2
    assert "--device neuron needs a Neuron device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["generate --prompt-file @/p --image @/p", "batch @/in @/out"])
def test_each_machine_may_have_its_files_elsewhere(command, tmp_path, monkeypatch):
    """Ranks compare what was asked for, and what files hold; not where one machine has them."""
    compared = []
    monkeypatch.setattr(
        launch.process, "check_equal_on_ranks", lambda **facts: compared.append(facts)
    )
    files = " --model @ --adapter @/adapter --json-schema @/schema --max-new-tokens "
    for machine, tokens in (("one", "3"), ("other", "3"), ("third", "4")):
        (tmp_path / machine).symlink_to(DEMO)
        words = (command + files + tokens).replace("@", str(tmp_path / machine)).split()
        options = cli._parser().parse_args(words)
        cli._fetch(options)
        launch.check_asked_alike(options, input=tokens)
    assert compared[0] == compared[1]
    assert {**compared[2], "options": {**compared[2]["options"], "max_new_tokens": 3}} == {
        **compared[0], "input": "4"
    }  # fmt: skip
