"""`--tp` of the command line: one text on one device, on virtual devices and under torchrun."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import models
import pytest
from starting import result_of, run, torchrun, two_machines

import qwen35
from qwen35.files.conversion import convert

PROMPT = "The capital"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A model with the heads of 27b and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as tokenizer_models
    from transformers import PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("with_tokenizer")
    config = dataclasses.replace(models.CONFIGS["heads_of_27b"], eos_token_id=159)
    qwen35.save(models.wide_params(config), path)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:159]
    vocabulary = {letter: index for index, letter in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(path)
    return path


def generate(directory: Path, *options: str) -> list[str]:
    model = ["--model", str(directory), "--prompt", PROMPT, "--max-new-tokens", "24"]
    return ["-m", "qwen35", "generate", *model, *options]


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--temperature", "0.8", "--seed", "3")])
def test_one_text_three_ways(directory, options):
    alone = run(sys.executable, *generate(directory, "--device", "cpu", *options))
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.endswith("\n") and len(alone.stdout) > 10
    processes = torchrun(4, *generate(directory, "--tp", "4", *options))
    assert processes.returncode == 0, processes.stderr
    assert processes.stdout == alone.stdout, "only rank 0 speaks, and says the same"
    devices = run(sys.executable, *generate(directory, "--tp", "4", *options), timeout=600)
    assert devices.returncode == 0, devices.stderr
    assert devices.stdout == alone.stdout


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_with_its_message(directory, tmp_path):
    convert(directory, tmp_path / "out", 2, dtype="float32")
    (tmp_path / "out" / "rank-00001-of-00002.safetensors").unlink()
    start = time.monotonic()
    done = torchrun(2, *generate(tmp_path / "out", "--tp", "2"))
    assert time.monotonic() - start < 50
    assert done.returncode != 0 and done.stdout == ""
    assert "rank 1: CheckpointError" in done.stderr
    assert "rank-00001-of-00002.safetensors: no such file" in done.stderr


@pytest.mark.slow
def test_an_impossible_tp_and_a_wrong_number_of_processes(directory):
    done = run(sys.executable, *generate(directory, "--tp", "3"))
    assert done.returncode == 2 and "Possible: tp = 1, 2, 4, 8, 16" in done.stderr
    done = run(sys.executable, *generate(directory, "--tp", "2", "--device", "cpu"))
    assert done.returncode == 2 and "torchrun --nproc-per-node 2" in done.stderr
    done = torchrun(2, *generate(directory, "--tp", "4"))
    assert done.returncode != 0
    assert "2 processes were started, but dp 1 x tp 4 needs 4" in done.stderr


@pytest.mark.slow
def test_info_shows_ranks_and_floors():
    command = [sys.executable, "-m", "qwen35", "info", "0.8b", "--tp", "4", "--hardware", "trn2"]
    text = run(*command)
    assert text.returncode == 0, text.stderr
    assert "per rank at dp 1 x tp 4" in text.stdout and "TPOT" in text.stdout
    content = json.loads(run(*command, "--json").stdout)
    assert content["ranks"]["tp"] == 4
    weights = content["ranks"]["weight_bytes_per_rank"]
    assert content["roofline"]["tpot"]["bytes_read"] < 1.1 * weights
    wrong = run(sys.executable, "-m", "qwen35", "info", "27b", "--tp", "5")
    assert wrong.returncode == 2 and "tp = 5 can't split this model" in wrong.stderr


DEMO = str(Path(__file__).parents[2] / "demo")
EVALS = Path(__file__).parents[2] / "evals"
JAPAN, TOKYO = "What is the capital of Japan?", "The capital of Japan is Tokyo."


@pytest.mark.slow
def test_perplexity_and_agreement_in_processes():
    """On two machines of tp 2: nats to 1e-5, prompts shared out, only the first of all prints."""
    command = ["-m", "qwen35", "eval", "perplexity", "--model", DEMO, "--text"]
    command += [str(EVALS / "story.txt"), "--window", "256", "--json"]
    alone = result_of(run(sys.executable, *command, "--device", "cpu"))["total"]
    total = result_of(two_machines(2, *command, "--tp", "2", "--dp", "2"))["total"]
    assert total == pytest.approx(alone, rel=1e-5)
    command = ["-m", "qwen35", "eval", "agreement", "--model", DEMO, "--dtype", "float32"]
    command += ["--max-new-tokens", "8", "--json"]
    [alone] = result_of(run(sys.executable, *command, "--device", "cpu"))["comparisons"]
    [compared] = result_of(two_machines(2, *command, "--tp", "2", "--dp", "2"))["comparisons"]
    assert compared["top1"] == 1 and compared["equal_tokens"] == 1
    assert compared["positions"] == alone["positions"]
    for ours, theirs in zip(compared["prompts"], alone["prompts"], strict=True):
        for name in ("prompt", "reference", "candidate", "positions", "top1", "top5"):
            assert ours[name] == theirs[name]


EVALUATIONS = """if True:
    import sys
    from qwen35.commands.cli import main
    for words in sys.argv[2:]:
        assert main(["eval", *words.split(), "--model", sys.argv[1], "--json"]) == 0
"""


@pytest.mark.slow
def test_evaluations_on_virtual_devices(directory):
    """In one process: the numbers to 1e-5, accuracies and agreement the same."""
    measures = [
        f"perplexity --text {EVALS / 'story.txt'} --window 64 --dtype float32",
        "agreement --dtype float32 --max-new-tokens 8",
        f"tasks --tasks {EVALS / 'demo_facts.yaml'} --limit 7",
    ]

    def evaluated(ranks: str) -> list[dict]:
        lines = [f"{words} {ranks}" for words in measures]
        done = run(sys.executable, "-c", EVALUATIONS, str(directory), *lines)
        assert done.returncode == 0, done.stderr
        results, rest = [], done.stdout
        while rest.strip():
            result, end = json.JSONDecoder().raw_decode(rest.lstrip())
            results.append(result)
            rest = rest.lstrip()[end:]
        return results

    alone = evaluated("--device cpu")
    for split in (evaluated("--tp 4"), evaluated("--tp 2 --dp 2")):
        assert split[0]["total"] == pytest.approx(alone[0]["total"], rel=1e-5)
        [ours], [theirs] = split[1]["comparisons"], alone[1]["comparisons"]
        assert ours["equal_tokens"] == theirs["equal_tokens"] == 1
        assert ours["top1"] == theirs["top1"]
        [ours], [theirs] = split[2]["tasks"], alone[2]["tasks"]
        assert ours["metrics"] == theirs["metrics"] and ours["metrics"]


@pytest.mark.slow
def test_replicas_share_the_tasks_of_lm_eval(tmp_path):
    """By our command and by lm-eval's own: the accuracies of one device."""
    tasks = [str(EVALS / f"demo_{name}.yaml") for name in ("facts", "answers")]
    command = ["-m", "qwen35", "eval", "tasks", "--model", DEMO, "--tasks", *tasks, "--json"]
    command += ["--limit", "7"]
    alone = result_of(run(sys.executable, *command, "--device", "cpu"))["tasks"]
    split = result_of(torchrun(4, *command, "--tp", "2", "--dp", "2"))["tasks"]
    assert [entry["metrics"] for entry in split] == [entry["metrics"] for entry in alone]
    command = ["-m", "qwen35.evaluation.harness", "run", "--model", "qwen35", "--limit", "7"]
    command += ["--model_args", f"pretrained={DEMO},tp=2", "--tasks", tasks[0]]
    done = torchrun(4, *command, "--output_path", str(tmp_path))
    assert done.returncode == 0, done.stderr
    [file] = tmp_path.rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["demo_facts"]
    assert found["acc,none"] == alone[0]["metrics"][0]["value"]
    assert done.stdout.count("|demo_facts") == 1, "only rank 0 speaks"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["processes", "devices"])
def test_chat_on_several_ranks(ranks, tmp_path):
    """An answer, a saved conversation that one device goes on with, and nothing else printed."""
    options = ["-m", "qwen35", "chat", "--model", DEMO, "--no-thinking"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher = launcher if ranks == "processes" else []
    file = tmp_path / "kept"
    said = chat([*launcher, *options, "--tp", "2"], f"{JAPAN}\n/save {file}\n/retry\n/exit\n")
    assert [line.startswith(TOKYO) for line in said.splitlines()] == [True, True]
    again = chat([*options, "--device", "cpu", "--load", str(file)], "/retry\n/exit\n")
    assert again.startswith(TOKYO)


def chat(command: list[str], lines: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        input=lines,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


BENCH = ["-m", "qwen35", "bench"]
SHORT = ["--alone", "--rounds", "1", "--threads", "1", "--json"]
SHORT += ["--steps", "3", "--slots", "1", "2", "--lengths", "8", "--contexts", "8"]
SHORT += ["--batches", "2", "--prefix-tokens", "16", "4"]
SHORT += ["--requests", "3", "--request-tokens", "12", "4", "--loads", "0.8"]
PARTS = ("ttft", "tpot", "throughput", "prefix", "sampling")


@pytest.mark.slow
def test_benchmarks_in_processes():
    """Every part has its figures, which the first of all prints; the machine is measured once."""
    done = torchrun(4, *BENCH, *PARTS, *SHORT, "--model", DEMO, "--tp", "2", "--dp", "2")
    result = result_of(done)
    assert result["device"] == "cpu, 4 processes"
    assert (result["settings"]["tp"], result["settings"]["dp"]) == (2, 2)
    parts = result["parts"]
    assert set(parts) == set(PARTS)
    for row in (*parts["ttft"], *parts["tpot"]):
        assert 0 < row["ours"] < 60
    assert [row["slots"] for row in parts["throughput"]["slots"]] == [1, 2]
    assert [row["load"] for row in parts["throughput"]["arrivals"]] == ["saturated", "0.8"]
    assert parts["throughput"]["ideal"]["share_of_ideal"] > 0
    assert parts["prefix"]["saved_tokens"] == 16
    assert all(row["seconds"] > 0 for row in parts["sampling"])
    assert done.stderr.count("round 1 of 1: machine") == 1


@pytest.mark.slow
def test_a_benchmark_of_pictures_in_processes():
    """The tower's output is transformers' there too, or there would be no figures."""
    command = [*BENCH, "images", "--rounds", "1", "--threads", "1", "--json"]
    command += ["--model", f"{DEMO}_vision", "--sides", "64", "--tp", "2"]
    part = result_of(torchrun(2, *command))["parts"]
    assert [row["step"] for row in part["images"]["rows"]] == ["processor", "tower", "ttft"]
    assert all(0 < row["ours"] < 60 and row["reference"] for row in part["images"]["rows"])
    assert part["images"]["memory"] is None


@pytest.mark.slow
def test_a_benchmark_that_fails_on_one_rank_ends_on_all(tmp_path):
    """Where the model is not one: no rank waits for the others' process."""
    convert(DEMO, tmp_path / "out", 2, dtype="float32")
    (tmp_path / "out" / "rank-00001-of-00002.safetensors").unlink()
    model = ["--model", str(tmp_path / "out"), "--tp", "2", "--timeout", "250"]
    command = [*BENCH, "ttft", *SHORT, *model]
    start = time.monotonic()
    done = torchrun(2, *command)
    assert time.monotonic() - start < 200
    assert done.returncode != 0 and done.stdout == ""
    assert "of its 2 ranks only 1 are there" in done.stderr
