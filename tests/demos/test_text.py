"""From a checkpoint directory to text, on the demo checkpoint or on `pytest --model DIR`.

What a real model must do too is asked of both; what only a memorised corpus allows (every word
known, every answer exact) is asked of the demo alone.
"""

import functools
import json
import math
import re
import runpy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree
from transformers import AutoModelForCausalLM

import qwen35
from qwen35.commands import cli

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
SIZE_LIMIT = 8_000_000
NEW_TOKENS = 64
# Continuations of different lengths from prompts of different lengths, so that rows of a batch
# start and end apart from each other.
PROMPTS = [
    "The capital of France is",
    "The opposite of hot is",
    "Count from 1 to 10:",
    "Once upon a time, there was a little fox",
]


class Checkpoint(NamedTuple):
    directory: Path
    params: qwen35.Params
    tokenizer: qwen35.Tokenizer

    def greedy(self, prompts: list[str]) -> list[qwen35.Completion]:
        """The likeliest continuations, as one batch."""
        return qwen35.generate(self.params, self.tokenizer, prompts, max_new_tokens=NEW_TOKENS)

    def on_cpu(self) -> "Checkpoint":
        """The same, without compiling anything: for tests that need no graph of their own."""
        return self._replace(params=qwen35.device_put(self.params, "cpu"))


@functools.cache
def corpus() -> dict:
    """The names that scripts/demos/corpus.py defines."""
    return runpy.run_path(str(ROOT / "scripts/demos/corpus.py"))


@pytest.fixture(scope="module")
def checkpoint(request) -> Checkpoint:
    """The checkpoint under test, loaded once, compiled as the command line has it."""
    directory = Path(request.config.getoption("--model") or DEMO).resolve()
    params = qwen35.load(directory, device="xla")
    return Checkpoint(directory, params, qwen35.Tokenizer.from_pretrained(directory))


@pytest.fixture
def demo(checkpoint) -> Checkpoint:
    """The checkpoint on the CPU, for what a memorised corpus alone allows to ask."""
    if checkpoint.directory != DEMO:
        pytest.skip("asks for the demo's memorised corpus, and --model names another checkpoint")
    return checkpoint.on_cpu()


@pytest.fixture(scope="module")
def completions(checkpoint) -> list[qwen35.Completion]:
    """PROMPTS continued one by one."""
    return [checkpoint.greedy([prompt])[0] for prompt in PROMPTS]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def loops(tokens: tuple[int, ...], times: int = 4) -> bool:
    """Whether the tokens end in a stretch of 1 to 16 tokens, `times` times over."""
    return any(
        tokens[-size * times :] == tokens[-size:] * times
        for size in range(1, 1 + min(16, len(tokens) // times))
    )


def test_loads(checkpoint):
    config = qwen35.Config.from_pretrained(checkpoint.directory)
    leaves = pytree.tree_leaves(checkpoint.params)
    assert checkpoint.params.config == config
    assert set(config.layer_types) == {"linear_attention", "full_attention"}
    assert sum(leaf.numel() for leaf in leaves) >= config.parameter_count > 0
    assert all(leaf.device.type == "xla" for leaf in leaves)


def test_generates(checkpoint, completions):
    vocabulary = checkpoint.params.config.vocab_size
    for completion in completions:
        assert 1 <= len(completion.tokens) <= NEW_TOKENS
        assert all(0 <= token < vocabulary for token in completion.tokens)
        assert completion.finish_reason in ("stop", "length")


def test_output_is_coherent(completions):
    for completion in completions:
        assert words(completion.text), completion
        assert "\N{REPLACEMENT CHARACTER}" not in completion.text
        assert not loops(completion.tokens), completion.text


def test_demo_uses_only_words_of_its_corpus(demo, completions):
    for completion in completions:
        assert set(words(completion.text)) <= corpus()["words"](), completion.text


def test_top_token_is_valid(checkpoint, completions):
    params = checkpoint.on_cpu().params
    prompt = checkpoint.tokenizer.encode(PROMPTS[0])
    state = qwen35.init_state(params, batch=1, capacity=len(prompt))
    logits, _ = qwen35.prefill(params, state, torch.tensor([prompt]))
    assert logits.shape == (1, params.config.vocab_size)
    assert logits.isfinite().all()
    top = int(logits.argmax())
    assert words(checkpoint.tokenizer.decode([top]))
    assert top == completions[0].tokens[0]


def test_capital_of_france(completions):
    assert completions[0].text.startswith(" Paris")


def test_command_line_reports_timings(checkpoint, completions, capsys):
    arguments = ["generate", "--model", str(checkpoint.directory), "--prompt", PROMPTS[0]]
    assert cli.main([*arguments, "--max-new-tokens", str(NEW_TOKENS), "--json"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["text"] == completions[0].text
    assert result["tokens"] == list(completions[0].tokens)
    for name in ("first_token", "tokens_per_second"):
        assert math.isfinite(result["timings"][name]) and result["timings"][name] > 0
    assert "time to first token" in output.err and "tokens per second" in output.err


def test_four_prompts_at_once(checkpoint, completions):
    batch = checkpoint.greedy(PROMPTS)
    assert [row.tokens for row in batch] == [alone.tokens for alone in completions]
    assert [row.text for row in batch] == [alone.text for alone in completions]


def test_transformers_continues_with_the_same_tokens(checkpoint, completions):
    """Greedy tokens, and the logits behind the first: a memorised answer survives much damage."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32)
    params = checkpoint.on_cpu().params
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        tokens = torch.tensor([checkpoint.tokenizer.hf(prompt)["input_ids"]])
        continued = model.generate(tokens, max_new_tokens=NEW_TOKENS, do_sample=False)
        assert tuple(continued[0, tokens.shape[1] :].tolist()) == completion.tokens
        with torch.no_grad():
            expected = model(tokens).logits[:, -1]
        state = qwen35.init_state(params, batch=1, capacity=tokens.shape[1])
        logits, _ = qwen35.prefill(params, state, tokens)
        # fp32 sums in another order: on the demo they differ by less than 1e-6 of the largest
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_demo_prompts_are_answered_as_memorised(demo):
    """Every prompt of prompts.txt, streamed: exact, ended by an end token, characters whole."""
    answers = {fact.prompt: fact.answer for fact in corpus()["facts"]()}
    prompts = (DEMO / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert prompts == list(corpus()["PROMPTS"])
    pieces = qwen35.stream(demo.params, demo.tokenizer, prompts, max_new_tokens=200)
    texts, split = [""] * len(prompts), 0
    for piece in pieces:
        texts[piece.row] += piece.text
        split += "\N{REPLACEMENT CHARACTER}" in demo.tokenizer.decode([piece.token])
    assert texts == [answers[prompt] for prompt in prompts]
    assert split > 0, "no token cuts a character in two, so the streaming was not put to the test"


@pytest.mark.parametrize("thinking", [False, True])
def test_demo_chats(demo, thinking):
    """The chat template and the model's training agree: the answer follows, then the end token."""
    question = "What is the capital of Japan?"
    prompt = demo.tokenizer.hf.apply_chat_template(
        [{"role": "user", "content": question}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    completion = demo.greedy([prompt])[0]
    thought, _, answer = completion.text.rpartition("</think>")
    assert answer.strip() == "The capital of Japan is Tokyo. People in Japan speak Japanese."
    assert (question in thought) == thinking
    assert completion.finish_reason == "stop"


def test_demo_is_small_and_complete():
    sizes = {file.name: file.stat().st_size for file in DEMO.iterdir()}
    assert sum(sizes.values()) <= SIZE_LIMIT
    assert set(sizes) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "prompts.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_script_says_why_a_prompt_has_no_answer(capsys):
    """Asked what the toy never read, it ends at once: that is said, and only then."""
    run = runpy.run_path(str(ROOT / "scripts/run_demo.py"))["run"]
    assert run(["What is a transformer?", PROMPTS[0]]) == 0
    shown = capsys.readouterr()
    question, answered = shown.out.splitlines()
    assert question == "What is a transformer?" and answered.startswith(f"{PROMPTS[0]} Paris")
    assert shown.err.count("demo/README.md") == 1
