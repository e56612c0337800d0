"""The model of lm-eval against lm-eval's own transformers backend, on the demo checkpoint."""

from __future__ import annotations

import json
import logging
import runpy
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

import lm_eval.__main__
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import qwen35
from qwen35.evaluation.harness import Qwen35LM
from qwen35.evaluation.tasks import find_tasks, run_tasks

ROOT = Path(__file__).resolve().parents[3]
DEMO, TASKS = ROOT / "demo", ROOT / "evals"
LIMIT = 40  # tokens that the model sees in these tests: some of the texts are longer

PAIRS = [
    ("The capital of France is", " Paris."),
    ("The capital of France is", " Paris. People in France speak French."),
    ("The capital of France is", " Rome."),
    ("The capital of France is ", "Paris."),  # the space belongs to the continuation
    ("", "The opposite of hot is cold."),
    ("", "Paris"),
    ("In Japanese, Japan is called", " 日本."),
    ("The emoji for a pig is 🐷. " * 9 + "The colour of grass is", " green."),  # too long
    ("The colour of grass is", " green" * 12),
    ("xylophone", " quorum"),
    ("<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n", "Hello!"),
    ("Count from 1 to 5:", " 1, 2, 3, 4, 5."),
]
TEXTS = [
    "The capital of France is Paris. People in France speak French.",
    "Once upon a time, there was a little fox named Ruby. Ruby lived in a quiet forest. " * 4,
    "日本 and España 🐱, then words nobody taught: xylophone quorum.",
    "a",
    "",
]


@pytest.fixture(scope="module", autouse=True)
def offline():
    """Whoever opens a connection fails the test."""

    def refuse(*arguments):
        raise AssertionError(f"a connection to {arguments[1:]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(scope="module")
def params():
    return qwen35.load(DEMO)


@pytest.fixture(scope="module")
def tokenizer():
    return qwen35.Tokenizer.from_pretrained(DEMO)


@pytest.fixture
def ours(params, tokenizer):
    """ours(**settings): the model under test."""

    def build(device="cpu", **settings) -> Qwen35LM:
        placed = qwen35.device_put(params, device)
        return Qwen35LM(placed, tokenizer, progress=False, **settings)

    return build


@pytest.fixture(scope="module")
def theirs():
    return theirs_with()


def theirs_with(**settings) -> HFLM:
    return HFLM(pretrained=str(DEMO), device="cpu", dtype="float32", **settings)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=0, metadata=("a task", 0, 1))
        for one in arguments
    ]


@pytest.fixture(scope="module")
def expected_pairs():
    return theirs_with(max_length=LIMIT).loglikelihood(requests("loglikelihood", PAIRS))


@pytest.mark.parametrize(("device", "batch"), [("cpu", 1), ("cpu", 5), ("xla", 4)])
def test_loglikelihoods_are_those_of_the_transformers_backend(device, batch, ours, expected_pairs):
    model = ours(device, batch_size=batch, max_length=LIMIT)
    got = model.loglikelihood(requests("loglikelihood", PAIRS))
    for pair, (value, greedy), (wanted, wanted_greedy) in zip(
        PAIRS, got, expected_pairs, strict=True
    ):
        assert value == pytest.approx(wanted, rel=1e-6, abs=1e-4), pair
        assert greedy == wanted_greedy, pair
    assert {greedy for _, greedy in got} == {True, False}


def test_rolling_loglikelihoods_are_those_of_the_transformers_backend(ours):
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    wanted = theirs_with(max_length=LIMIT).loglikelihood_rolling(asked)
    assert len(ours().tok_encode(TEXTS[1])) > 2 * LIMIT
    for batch in (1, 3):
        got = ours(batch_size=batch, max_length=LIMIT).loglikelihood_rolling(asked)
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-4)


GENERATIONS = [
    ("The capital of France is", {"until": ["."], "max_gen_toks": 32}),
    ("The capital of Japan is", {"until": ["."], "max_gen_toks": 32}),
    ("The opposite of hot is", {"until": [], "max_gen_toks": 32, "do_sample": False}),
    ("Once upon a time, there was a little fox", {"until": ["ball"], "max_gen_toks": 200}),
    ("Once upon a time, there was a little owl", {"until": "tower. One", "max_new_tokens": 200}),
    ("In Russian, Russia is called", {"until": ["с", "."], "max_gen_toks": 20}),
    ("In Japanese, Japan is called", {"until": ["\n"], "max_gen_toks": 2}),  # half a character
    ("Days, days, days. " * 30 + "The capital of France is", {"until": ["."], "max_gen_toks": 12}),
    ("xylophone quorum", {"until": ["\n\n"], "max_gen_toks": 24, "temperature": 0.0}),
    ("<|im_start|>user\nHello!<|im_end|>\n", {"until": ["<think>"], "max_gen_toks": 12}),
    ("The colour of grass is", {"until": ["<|endoftext|>"], "max_gen_toks": 12}),
]


@pytest.mark.parametrize(
    ("device", "batch", "count"), [("cpu", 1, None), ("cpu", 4, None), ("xla", 2, 2)]
)
def test_generated_texts_are_those_of_the_transformers_backend(
    device, batch, count, ours, generated
):
    asked = requests("generate_until", GENERATIONS[:count])
    assert ours(device, batch_size=batch).generate_until(asked) == generated[:count]
    assert generated[0] == " Paris" and generated[6].endswith("\N{REPLACEMENT CHARACTER}")


@pytest.fixture(scope="module")
def generated(theirs):
    return theirs.generate_until(requests("generate_until", GENERATIONS))


def test_a_special_token_among_the_stops_ends_the_text(ours):
    """The text itself leaves special tokens out."""
    base = {"max_gen_toks": 24, "until": []}
    cut = {**base, "until": ["<|im_start|>"]}
    prompt = "<|im_start|>user\nHello!<|im_end|>\n"
    plain, stopped = ours().generate_until(
        requests("generate_until", [(prompt, base), (prompt, cut)])
    )
    assert stopped == "" != plain


def test_sampling_with_one_token_kept_is_greedy(ours, generated):
    hot = {"do_sample": True, "temperature": 7.0, "top_k": 1}
    asked = [(prompt, {**options, **hot}) for prompt, options in GENERATIONS[:5]]
    assert ours(batch_size=5).generate_until(requests("generate_until", asked)) == generated[:5]


def test_a_sample_depends_on_seed_and_request_alone(ours):
    options = {"max_gen_toks": 8, "until": [], "do_sample": True, "temperature": 3.0}
    asked = requests("generate_until", [("The capital of France is", options)] * 4)
    alone, together = (ours(batch_size=size).generate_until(asked) for size in (1, 3))
    assert alone == together
    assert len(set(alone)) == 4  # repeats of a request differ
    assert ours(seed=1).generate_until(asked) != alone
    seeded = requests("generate_until", [("The capital of France is", {**options, "seed": 1})] * 4)
    assert ours().generate_until(seeded) == ours(seed=1).generate_until(asked)


def test_a_thought_is_left_out_and_stops_nothing(ours):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    model = ours(enable_thinking=True, think_end_token="</think>")
    prompt = model.apply_chat_template(question)
    assert prompt.endswith("<think>\n")
    options = {"until": ["."], "max_gen_toks": 64}  # the thought has a full stop
    with_thought = ours(enable_thinking=True).generate_until(
        requests("generate_until", [(prompt, {**options, "until": []})])
    )
    assert "." in with_thought[0].split("</think>")[0]
    [answer] = model.generate_until(requests("generate_until", [(prompt, options)]))
    assert answer == "The capital of France is Paris"


@pytest.mark.parametrize("last", ["user", "assistant"])
def test_chat_template_is_applied_as_by_the_transformers_backend(last, ours):
    history = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of"},
    ][: 3 if last == "assistant" else 2]
    for thinking in (None, False):
        model, other = ours(enable_thinking=thinking), theirs_with(enable_thinking=thinking)
        assert model.tokenizer_name == other.tokenizer_name
        assert model.chat_template(True) == other.chat_template(True) != ""
        arguments = (history, last == "user")
        assert model.apply_chat_template(*arguments) == other.apply_chat_template(*arguments)


def test_variables_of_the_template_are_those_of_the_transformers_backend(ours, monkeypatch):
    """enable_thinking, where it is given, stands for itself and not for what is among them."""
    written = "{{ messages[0].content }} {{ reasoning_effort }} {{ enable_thinking }}"
    more = {"reasoning_effort": "low", "enable_thinking": True}
    for thinking, said in ((None, "Go. low True"), (False, "Go. low False")):
        settings = {"enable_thinking": thinking, "chat_template_args": more}
        model, other = ours(**settings), theirs_with(**settings)
        for one in (model, other):
            monkeypatch.setattr(one.tokenizer, "chat_template", written)
        history = [{"role": "user", "content": "Go."}]
        assert model.apply_chat_template(history) == other.apply_chat_template(history) == said


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (["demo"], {"limit": 21}),
        (["demo_chat"], {"limit": 21, "chat": True}),
        (["demo_chat", "demo_inverted"], {"limit": 5, "chat": True, "fewshot": 2, "system": "Go."}),
    ],
)
def test_tasks_come_out_as_with_the_transformers_backend(names, settings, ours):
    thinking = {"enable_thinking": False} if settings.get("chat") else {}
    results = []
    for model in (ours(batch_size=8, **thinking), theirs_with(batch_size=4, **thinking)):
        results.append(run_tasks(model, find_tasks(names, [TASKS]), samples=True, **settings))
    got, wanted = results
    assert [task["name"] for task in got["tasks"]] == [task["name"] for task in wanted["tasks"]]
    for task, other in zip(got["tasks"], wanted["tasks"], strict=True):
        for metric, reference in zip(task["metrics"], other["metrics"], strict=True):
            assert metric["value"] == pytest.approx(reference["value"], rel=1e-6)
            if metric["metric"] in ("acc", "acc_norm", "exact_match"):
                assert metric["value"] == reference["value"]
        for one, reference in zip(
            got["samples"][task["name"]], wanted["samples"][task["name"]], strict=True
        ):
            assert one["requests"] == reference["requests"]
            _same_responses(one["responses"], reference["responses"])
    assert {task["shots"] for task in got["tasks"]} == {settings.get("fewshot", 0)}
    scores = {task["name"]: task["metrics"][0]["value"] for task in got["tasks"]}
    if names == ["demo"]:  # what it has learnt, and what it has not
        assert scores["demo_answers"] == scores["demo_facts"] == 1.0
        assert 0.2 < scores["demo_inverted"] < 0.8
    elif names == ["demo_chat"]:
        assert scores == {"demo_chat": 1.0}


def _same_responses(got: list, wanted: list) -> None:
    for one, other in zip(got, wanted, strict=True):
        if isinstance(one, tuple):
            assert one[0] == pytest.approx(other[0], rel=1e-6, abs=1e-4) and one[1] == other[1]
        elif isinstance(one, float):
            assert one == pytest.approx(other, rel=1e-6, abs=1e-4)
        else:
            assert one == other


def test_lm_eval_finds_the_model_by_its_name(tmp_path):
    assert get_model("qwen35") is Qwen35LM
    file = tmp_path / "capitals.jsonl"
    line = {"question": "The capital of France is", "choices": ["Rome.", "Paris."], "gold": 1}
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    task = {
        "task": "capitals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
    }
    results = simple_evaluate(
        model="qwen35",
        model_args=f"pretrained={DEMO},progress=False,device=cpu",
        batch_size="2",
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    assert results["results"]["capitals"]["acc,none"] == 1.0


@pytest.mark.slow
def test_the_harness_own_command_line():
    arguments = ["--model_args", f"pretrained={DEMO},progress=False", "--device", "cpu"]
    arguments += ["--include_path", str(TASKS), "--tasks", "demo_inverted", "--limit", "4"]
    result = subprocess.run(
        [sys.executable, "-m", "qwen35.evaluation.harness", "run", "--model", "qwen35", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert "demo_inverted" in result.stdout and "acc" in result.stdout


def test_a_file_that_the_harness_does_not_find_is_one_line(monkeypatch, capfd):
    def missing() -> None:
        raise FileNotFoundError(2, "No such file or directory", "task.yaml")

    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", missing)
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # the command replaces it
    with pytest.raises(SystemExit) as end, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the module was imported before
        runpy.run_module("qwen35.evaluation.harness", run_name="__main__")
    assert end.value.code == 2
    told = "qwen35: error: [Errno 2] No such file or directory: 'task.yaml'\n"
    assert capfd.readouterr() == ("", told)


def test_contexts_that_are_cut_are_counted(ours, caplog):
    with caplog.at_level(logging.WARNING):
        ours(max_length=LIMIT).loglikelihood(requests("loglikelihood", PAIRS))
    assert "1 of 12 contexts are too long" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ours(max_length=LIMIT).generate_until(requests("generate_until", GENERATIONS[7:8]))
    assert "1 of 1 contexts are too long" in caplog.text


def test_fewer_documents_than_replicas_are_refused_before_lm_eval_does_in_some(ours):
    model = ours()
    model._world_size = 2
    with pytest.raises(ValueError, match=r"demo_facts: 1 documents for dp = 2 .*: --dp 1"):
        run_tasks(model, find_tasks(["demo_facts"], [TASKS]), limit=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": "auto"}, "batch_size must be a positive integer, not 'auto'"),
        ({"batch_size": 0}, "not 0"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 1025}, "max_position_embeddings, 1024"),
    ],
)
def test_bad_settings_are_refused(settings, words, ours):
    with pytest.raises(ValueError, match=words):
        ours(**settings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"length_penalty": 1.0, "best_of": 2}, "best_of, length_penalty"),
        ({"do_sample": True}, "temperature above 0"),
        ({"temperature": -1.0, "do_sample": True}, "temperature above 0"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p must be above 0"),
        ({"max_gen_toks": 1024}, "no room for a prompt"),
        ({"until": 3}, r"an until of \[3\]: texts are wanted"),
    ],
)
def test_generation_settings_that_are_not_known_are_refused(options, words, ours):
    with pytest.raises(ValueError, match=words):
        ours().generate_until(requests("generate_until", [("a", {"until": ["."], **options})]))


def test_what_has_no_likelihood_is_refused(ours):
    with pytest.raises(ValueError, match="turn thinking off"):
        ours(enable_thinking=True).loglikelihood(requests("loglikelihood", PAIRS[:1]))
    with pytest.raises(ValueError, match="over max_length, 4"):
        ours(max_length=4).loglikelihood(requests("loglikelihood", [("a", " green" * 9)]))
    with pytest.raises(ValueError, match="chat template can't be applied: no message of the user"):
        ours().apply_chat_template([{"role": "system", "content": "You are brief."}])
    with pytest.raises(ValueError, match="give both"):
        Qwen35LM(ours().params)
