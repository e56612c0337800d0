"""`qwen35 eval` as a person has it: reports, mistakes, interruptions. Numbers have other tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from qwen35.commands.cli import main

ROOT = Path(__file__).resolve().parents[3]
DEMO, TASKS = ROOT / "demo", ROOT / "evals"


# Enough work that a signal meets it, on any machine: a question takes more than a millisecond.
LONG_TASK = """
import datasets

def facts(**_):
    document = {"prompt": "The capital of France is", "choices": ["Paris.", "Rome."], "gold": 0}
    return datasets.DatasetDict(test=datasets.Dataset.from_list([document] * 2_000))
"""


def table(text: str) -> list[list[str]]:
    """The cells of a Markdown table's rows."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def run(*arguments: str) -> int:
    return main(["eval", "tasks", "--model", str(DEMO), "--device", "cpu", *arguments])


def test_tasks_are_printed_and_reported(tmp_path, capsys):
    directory = tmp_path / "reports" / "one"
    options = ["--tasks", "demo_facts", "demo_inverted", "demo_stories"]
    options += ["--include-path", str(TASKS)]
    assert run(*options, "--limit", "3", "--samples", "--json", "--output", str(directory)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((directory / "tasks.json").read_text())
    assert printed["limit"] == 3 and "lm_eval" in printed["versions"]
    facts, inverted, stories = printed["tasks"]
    assert inverted["name"] == "demo_inverted" and inverted["documents"] == 3
    accuracy = inverted["metrics"][0]
    assert accuracy["metric"] == "acc" and accuracy["higher_is_better"] is True
    # Accuracy once more, from the requests' own likelihoods.
    right = 0
    for sample in printed["samples"]["demo_inverted"]:
        values = [value for value, _ in sample["responses"]]
        right += values.index(max(values)) == sample["target"]
        assert len(sample["requests"]) == 4
    assert accuracy["value"] == pytest.approx(right / 3)
    page = (directory / "tasks.md").read_text()
    assert ["demo_inverted", "0", "3", "acc ↑", "none"] in [row[:5] for row in table(page)]
    assert "first 3 documents" in page
    bits = next(one for one in stories["metrics"] if one["metric"] == "bits_per_byte")
    assert ["bits_per_byte ↓", "none", f"{bits['value']:.4f}"] in [row[3:6] for row in table(page)]
    assert (directory / "tasks-acc.png").stat().st_size > 1000 and "(tasks-acc.png)" in page
    both = {entry["metric"] for entry in facts["metrics"]}
    assert both == {
        entry["metric"] for entry in inverted["metrics"]
    }  # others have one bar: no plot
    drawn = {file.stem.removeprefix("tasks-") for file in directory.glob("*.png")}
    assert drawn == both and "bits_per_byte" not in drawn


def test_a_task_file_of_ones_own_with_chat_and_a_table(tmp_path, capsys):
    """A file by its path, whose group and jsonl data stand beside it."""
    (tmp_path / "data.jsonl").write_text(
        json.dumps({"q": "What is the capital of France?", "a": "Paris"}) + "\n"
    )
    (tmp_path / "functions.py").write_text(
        "import datasets\n"
        "def load(**_):\n"
        f"    return datasets.load_dataset('json', data_files={str(tmp_path / 'data.jsonl')!r},"
        f" cache_dir={str(tmp_path)!r})\n"
    )
    file = tmp_path / "mine.yaml"
    file.write_text(
        "task: mine\ncustom_dataset: !function functions.load\ntest_split: train\n"
        "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs: {until: ['. '], max_gen_toks: 64}\n"
        "filter_list: [{name: last, filter: [{function: regex, regex_pattern: '(\\w+)$'},"
        " {function: take_first}]}]\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    assert run("--tasks", str(file), "--chat", "--system", "You are brief.") == 0
    shown = capsys.readouterr()
    row = ["mine", "0", "1", "exact_match ↑", "last", "1.0000"]
    assert row in [cells[:6] for cells in table(shown.out)]
    assert "chat template, after a system prompt" in shown.out
    # Standard output is the table alone.
    assert shown.out.startswith("| task ") and "looking through" not in shown.err


BROKEN = {
    "syntax.yaml": ("task: [unclosed", "ParserError"),
    "list.yaml": ("- task", "Expected YAML dict"),
    "nothing.yaml": ("dataset_path: json", "Unknown config shape"),
    "typo.yaml": ("task: typo\noutput_typ: generate_until", "output_typ"),
    "function.yaml": ("task: x\ncustom_dataset: !function absent.load", "absent"),
    "kind.yaml": ("task: x\ncustom_dataset: !function demo.stories\noutput_type: sing", "sing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_task_file_is_named_with_the_reason(name, tmp_path, capsys):
    text, words = BROKEN[name]
    (tmp_path / name).write_text(text)
    (tmp_path / "demo.py").write_text((TASKS / "demo.py").read_text())
    assert run("--tasks", str(tmp_path / name)) == 2
    shown = capsys.readouterr()
    assert words in shown.err and name in shown.err and "Traceback" not in shown.err
    assert shown.err.count("\n") == 1 and not shown.out


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    inside = ["--include-path", str(TASKS)]
    stories = ["--tasks", "demo_stories", *inside]
    taken = tmp_path / "taken"
    taken.write_text("")
    for options, words in (
        (["--tasks", "none.yaml"], "none.yaml: no such file"),
        ([*stories, "--include-path", "nowhere"], "nowhere: no such directory"),
        ([*stories, "--no-thinking"], "--no-thinking is for --chat"),
        ([*stories, "--reasoning-effort", "low"], "--reasoning-effort are for --chat"),
        ([*stories, "--chat", "--template-arg", "low"], "--template-arg must be NAME=VALUE"),
        ([*stories, "--batch", "0"], "--batch: must be a positive integer"),
        ([*stories, "--limit", "0"], "--limit: must be a positive integer, not '0'"),
        ([*stories, "--num-fewshot", "-1"], "fewshot must be an integer of at least 0"),
        ([*stories, "--max-length", "9999"], "max_position_embeddings"),
        ([*stories, "--output", str(taken)], "File exists"),
        ([*stories, "--model", "nowhere"], "nowhere"),
        (["--tasks", "demo_facts", *inside, "--chat"], "turn thinking off"),
    ):
        assert run(*options) == 2
        shown = capsys.readouterr()
        assert words in shown.err and "Traceback" not in shown.err and not shown.out
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run(*stories) == 2
    assert "pip install 'qwen35[evals]'" in capsys.readouterr().err


@pytest.mark.slow
def test_unknown_names_come_with_near_ones_and_with_files_that_cannot_be_read(tmp_path, capsys):
    """Slow: lm-eval looks through its fourteen thousand files."""
    (tmp_path / "broken.yaml").write_text("task: [unclosed")
    options = ["--include-path", str(TASKS), str(tmp_path)]
    assert run("--tasks", "demo_storys", *options) == 2
    shown = capsys.readouterr().err
    assert "no task is called demo_storys; near are demo_stories" in shown
    assert "broken.yaml can't be read" in shown


@pytest.mark.parametrize(
    ("measure", "where"),
    [
        ("perplexity", "qwen35.evaluation.perplexity.score"),
        ("tasks", "qwen35.evaluation.lm_eval_model.score_continuations"),
        ("agreement", "qwen35.evaluation.agreement.compare"),
    ],
)
def test_interrupts_end_with_130_and_no_report(measure, where, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    what = {
        "perplexity": ["--text", str(ROOT / "LICENSE")],
        "tasks": ["--tasks", str(TASKS / "demo_inverted.yaml")],
        "agreement": ["--dtype", "float32", "--max-new-tokens", "1"],
    }[measure]
    command = ["eval", measure, "--model", str(DEMO), "--device", "cpu", *what]
    assert main([*command, "--output", str(tmp_path)]) == 130
    shown = capsys.readouterr()
    assert "interrupted" in shown.err and not shown.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command(sent, code, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/long.py").write_text(LONG_TASK)
    (tmp_path / "tasks/long.yaml").write_text(
        (TASKS / "demo_facts.yaml").read_text().replace("demo.facts", "long.facts")
    )
    task, reports = str(tmp_path / "tasks/long.yaml"), tmp_path / "reports"
    reports.mkdir()
    arguments = ["--model", str(DEMO), "--device", "cpu", "--tasks", task, "--batch", "1"]
    ours, theirs = os.openpty()  # a terminal with columns: elsewhere no bar is drawn
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen35", "eval", "tasks", *arguments, "--output", str(reports)],
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while b"score" not in shown:  # the bar of the work itself
        shown += os.read(ours, 4096)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    with contextlib.suppress(OSError):  # Linux's end of a terminal that nobody else holds
        while more := os.read(ours, 4096):
            shown += more
    os.close(ours)
    assert process.returncode == code
    assert not output and b"Traceback" not in shown and list(reports.iterdir()) == []
