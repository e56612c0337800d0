"""A thought's budget where a template leaves it to the model to begin one, however it is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import qwen35
from qwen35.commands import cli
from qwen35.generation.answers import thinking_budget
from qwen35.generation.thinking import begins_thought

DEMO = Path(__file__).resolve().parents[3] / "demo"
JAPAN = "What is the capital of Japan?"
ASKED = f"<|im_start|>user\n{JAPAN}<|im_end|>\n<|im_start|>assistant\n"
BUDGET = 5


@pytest.fixture(scope="module")
def tokenizer():
    return qwen35.Tokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module", params=["cpu", "xla"])
def params(request):
    return qwen35.load(DEMO, device=request.param)


def tokens_of(params, tokenizer, prompt, **more):
    [completion] = qwen35.generate(params, tokenizer, prompt, max_new_tokens=48, **more)
    return list(completion.tokens)


@pytest.fixture(scope="module")
def limited(params, tokenizer):
    """What is right, by calls without a budget: the model's "<think>" and so many tokens, the end
    that is put in, and what the model says behind that."""
    prompt = tokenizer.encode(ASKED)
    begin, end = tokenizer.encode("<think>"), tokenizer.encode("\n</think>\n\n")
    free = tokens_of(params, tokenizer, [prompt])
    assert free[: len(begin)] == begin  # it begins one itself
    head = [*free[: len(begin) + BUDGET], *end]
    return (head + tokens_of(params, tokenizer, [prompt + head]))[:48]


def test_it_counts_from_the_models_own_beginning(params, tokenizer, limited):
    budget = thinking_budget(tokenizer, BUDGET)
    assert tokens_of(params, tokenizer, ASKED, thinking=budget) == limited
    engine = qwen35.Engine(params, tokenizer, slots=2, capacity=256)
    request = engine.submit(ASKED, max_new_tokens=48, thinking=budget)
    list(engine.stream(request))
    assert request.new_tokens == limited
    opened = ASKED + "<think>"  # and from the answer's first token where the prompt begins it
    assert tokens_of(params, tokenizer, opened, thinking=budget)[: 48 - 1] == limited[1:]


@pytest.mark.parametrize("prompt", [f"{ASKED}<think>\n\n</think>\n\n", "Once upon a time"])
def test_an_answer_without_a_thought_is_left_alone(params, tokenizer, prompt):
    free = tokens_of(params, tokenizer, prompt)
    assert len(free) > BUDGET
    assert tokens_of(params, tokenizer, prompt, thinking=thinking_budget(tokenizer, 1)) == free


@pytest.mark.parametrize("command", ["generate", "batch", "chat"])
def test_every_command_counts_so(tmp_path, capsys, monkeypatch, tokenizer, command):
    """With a template that ends where the assistant's turn starts."""
    directory = shutil.copytree(DEMO, tmp_path / "model")
    template = (directory / "chat_template.jinja").read_text()
    opening = r"assistant\n<think>\n"
    assert template.count(opening) == 1
    changed = template.replace(opening, r"assistant\n")
    (directory / "chat_template.jinja").write_text(changed)
    shared = ["--model", str(directory), "--device", "cpu", "--thinking-budget", str(BUDGET)]
    shared += ["--greedy", "--max-new-tokens", "48"]
    if command == "generate":
        assert cli.main([command, *shared, "--chat", "--prompt", JAPAN, "--json"]) == 0
        message = json.loads(capsys.readouterr().out)
    elif command == "batch":
        body = {"messages": [{"role": "user", "content": JAPAN}]}
        (tmp_path / "in").write_text(json.dumps(body))
        assert cli.main([command, *shared, str(tmp_path / "in"), str(tmp_path / "out")]) == 0
        message = json.loads((tmp_path / "out").read_text())["message"]
    else:
        params = qwen35.load(directory)
        other = qwen35.Tokenizer.from_pretrained(directory)
        engine = qwen35.Engine(params, other, slots=1, capacity=256)
        chat = qwen35.Chat(engine, other, thinking_tokens=BUDGET, max_new_tokens=48)
        request = chat.ask(JAPAN)
        list(engine.stream(request))
        chat.finish(request)
        message = chat.messages[-1]
    said = tokenizer.encode(message["reasoning_content"])
    assert 1 < len(said) <= BUDGET
    assert "The user says".startswith(message["reasoning_content"][:13])


@pytest.mark.parametrize(
    ("said", "tokens", "begins"),
    [
        ("", [9], True),  # a special token, which has no text
        ("\n", [7, 9], True),
        ("", [7], None),
        ("<thi", [1, 2], None),
        ("<think>", [1, 2, 3], True),
        ("\n<think>\nA", [1, 2, 3], True),
        ("<thin ice", [1, 2], False),
        ("I <think>", [1, 9], False),  # which only speaks of it
        ("I", [9], False),
    ],
)
def test_what_begins_a_thought(said, tokens, begins):
    assert begins_thought(said, tokens, (9,)) is begins
