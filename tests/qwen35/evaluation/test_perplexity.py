"""Perplexity against transformers' logits, one token and its own window at a time."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

import qwen35
from qwen35.commands.cli import main
from qwen35.evaluation import models, scoring
from qwen35.evaluation.perplexity import perplexity, windows
from qwen35.evaluation.scoring import score, score_continuations
from qwen35.xla.observers import on_compile
from qwen35.xla.progress import compile_all

DEMO = Path(__file__).resolve().parents[3] / "demo"
KNOWN = "The capital of France is Paris. The capital of Japan is Tokyo."
STRANGE = "日本 and España 🐱, then words nobody taught: xylophone quorum. " * 12


@pytest.fixture(scope="module")
def oracle():
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return qwen35.Tokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def params():
    return qwen35.load(DEMO)


@torch.no_grad()
def logprobs_by_window(oracle, tokens: list[int], window: int, stride: int) -> torch.Tensor:
    """For each token but the first its log probability, [n-1] fp64, and the context it had.

    Token i belongs to the first window that reaches it: the one that begins at the smallest
    multiple of the stride above i - window.
    """
    logits, values, contexts = {}, [], []
    for index in range(1, len(tokens)):
        start = max(0, -(-(index - window + 1) // stride) * stride)
        if start not in logits:
            piece = torch.tensor([tokens[start : start + window]])
            logits[start] = oracle(piece, use_cache=False).logits[0].double().log_softmax(-1)
        values.append(logits[start][index - 1 - start, tokens[index]])
        contexts.append(index - start)
    return torch.stack(values), contexts


def token_bytes(tokenizer, text: str) -> list[bytes]:
    """Each token's bytes, by the alphabet of byte-level BPE (GPT-2's) in transformers."""
    byte = {letter: value for value, letter in bytes_to_unicode().items()}
    tokens = tokenizer.hf.convert_ids_to_tokens(tokenizer.hf.encode(text))
    parts = [bytes(byte[letter] for letter in token) for token in tokens]
    assert b"".join(parts) == text.encode()
    return parts


@pytest.mark.parametrize(
    ("text", "window", "stride"),
    [
        ("The", None, None),
        (KNOWN, None, None),
        (KNOWN, 2, 1),
        (KNOWN, 7, 3),
        (STRANGE, None, None),
        (STRANGE, 100, 99),
        (STRANGE[:120], 16, 1),
        (STRANGE, 257, 130),
    ],
)
def test_perplexity_is_that_of_transformers_logits(text, window, stride, oracle, tokenizer, params):
    tokens = tokenizer.hf.encode(text)
    if len(tokens) == 1:
        text += " cat"
        tokens = tokenizer.hf.encode(text)
    result = perplexity(
        params, tokenizer, {"a": text}, window=window, stride=stride, chunk=48, batch=3
    )
    size, step = result["window"], result["stride"]
    assert (size, step) == (window or 1024, stride or 512)
    expected, contexts = logprobs_by_window(oracle, tokens, size, step)
    [entry] = result["texts"]
    assert entry["tokens"] == len(tokens) and entry["scored_tokens"] == len(tokens) - 1
    # Rounding of a log probability is about 1e-5 here; over tokens it does not add up.
    nats = -float(expected.sum())
    assert entry["nats"] == pytest.approx(nats, rel=2e-6, abs=1e-5 * len(tokens))
    assert entry["perplexity"] == pytest.approx(math.exp(nats / (len(tokens) - 1)), rel=2e-5)
    bits = nats / math.log(2)
    assert entry["bits_per_token"] == pytest.approx(bits / (len(tokens) - 1), rel=2e-5)
    rest = len(text.encode()) - len(token_bytes(tokenizer, text)[0])
    assert entry["scored_bytes"] == rest
    assert entry["bits_per_byte"] == pytest.approx(bits / rest, rel=2e-5)
    counted = {entry["from"]: entry["tokens"] for entry in result["by_context"]}
    assert counted == {
        low: sum(low <= context < 2 * low for context in contexts)
        for low in (2**power for power in range(10))
        if any(low <= context < 2 * low for context in contexts)
    }


def test_a_cut_character_at_the_start_counts_its_own_bytes(tokenizer, params):
    """A first token that is part of a character: the bytes of all tokens are those of the text."""
    text = "龘 is rare"
    first, *rest = token_bytes(tokenizer, text)
    assert len(first) < len("龘".encode())
    [entry] = perplexity(params, tokenizer, {"a": text})["texts"]
    assert entry["bytes"] == len(text.encode())
    assert entry["scored_bytes"] == len(b"".join(rest))


def test_with_a_prefix_every_token_is_scored(oracle, tokenizer, params):
    tokens = tokenizer.hf.encode("<|endoftext|>" + KNOWN)
    result = perplexity(params, tokenizer, {"a": KNOWN}, prefix="<|endoftext|>", window=8, stride=4)
    expected, _ = logprobs_by_window(oracle, tokens, 8, 4)
    [entry] = result["texts"]
    assert entry["scored_tokens"] == entry["tokens"] == len(tokens) - 1
    assert entry["scored_bytes"] == entry["bytes"] == len(KNOWN.encode())
    assert entry["nats"] == pytest.approx(-float(expected.sum()), rel=2e-6)
    # A prefix of several tokens is context: not scored, not counted.
    longer = "France: Paris. Japan:"
    ids = tokenizer.hf.encode(longer, add_special_tokens=False)
    [entry] = perplexity(params, tokenizer, {"a": KNOWN}, prefix=longer)["texts"]
    expected, _ = logprobs_by_window(oracle, ids + tokenizer.hf.encode(KNOWN), 1024, 512)
    assert entry["nats"] == pytest.approx(-float(expected[len(ids) - 1 :].sum()), rel=2e-6)


def test_the_total_is_that_of_all_tokens(tokenizer, params):
    texts = {"known": KNOWN, "strange": STRANGE}
    both = perplexity(params, tokenizer, texts, window=64, batch=4)
    apart = [
        perplexity(params, tokenizer, {name: text}, window=64)["total"]
        for name, text in texts.items()
    ]
    for name in ("bytes", "tokens", "scored_tokens", "scored_bytes", "windows"):
        assert both["total"][name] == sum(total[name] for total in apart)
    nats = sum(total["nats"] for total in apart)
    assert both["total"]["nats"] == pytest.approx(nats, rel=1e-6)
    per_token = nats / both["total"]["scored_tokens"]
    assert both["total"]["perplexity"] == pytest.approx(math.exp(per_token), rel=1e-5)


@pytest.mark.parametrize("count", [2, 3, 10, 11, 50])
@pytest.mark.parametrize(("window", "stride"), [(2, 1), (10, 9), (10, 5), (10, 1), (64, 3)])
def test_windows_score_each_token_once_with_enough_context(count, window, stride):
    scored = []
    for start, first, end in windows(count, window, stride):
        assert 0 <= start < first < end <= min(start + window, count)
        assert start == 0 or first - start >= window - stride
        scored += range(first, end)
    assert scored == list(range(1, count))


def test_scores_do_not_depend_on_batch_chunk_or_device(reference):
    """Rows of 2 to 90 tokens, alone against batched, cut and compiled."""
    model = reference("value_heads_x3_gqa6_odd_hidden")
    tokens = model.tokens(1, 200, seed=5)[0].tolist()
    rows = [tokens[start : start + size] for start, size in enumerate((2, 90, 3, 33, 34, 17))]
    wanted = []
    for row in rows:
        logits = model.logits(torch.tensor([row]))[0, :-1].double().log_softmax(-1)
        target = torch.tensor(row[1:])
        wanted.append((logits.gather(1, target[:, None])[:, 0], logits.argmax(-1) == target))
    for device, batch, chunk in (("cpu", 1, 256), ("cpu", 4, 7), ("xla", 4, 16)):
        params = qwen35.load(model.directory, device=device)
        for got, (logprobs, greedy) in zip(
            score(params, rows, batch=batch, chunk=chunk), wanted, strict=True
        ):
            torch.testing.assert_close(got.logprobs.double(), logprobs, rtol=0, atol=1e-4)
            assert torch.equal(got.greedy, greedy)


@pytest.mark.parametrize(
    ("device", "batch", "chunk"), [("cpu", 1, 256), ("cpu", 3, 7), ("xla", 4, 16)]
)
def test_continuations_go_on_from_one_reading(device, batch, chunk, reference, monkeypatch):
    """Contexts of 1 to 70 tokens with one to five continuations of 1 to 20 tokens."""
    model = reference("value_heads_x3_gqa6_odd_hidden")
    tokens = model.tokens(1, 400, seed=6)[0].tolist()
    contexts = [tokens[start : start + size] for start, size in enumerate((70, 1, 33, 2, 34))]
    sizes = {0: (1, 3, 20, 1, 8), 1: (17, 2), 2: (1,), 3: (7, 7), 4: (16, 1, 1)}
    pairs = [
        (contexts[index], tokens[100 + 20 * count : 100 + 20 * count + size])
        for count in range(5)
        for index, wanted in sizes.items()
        for size in wanted[count : count + 1]
    ]
    read = []

    def counting(params, state, row, lengths):
        if device == "cpu":  # compiled, a step is traced once and runs often
            read.append(int(lengths.sum()))
        return qwen35.forward(params, state, row, lengths)

    monkeypatch.setattr(scoring, "forward", counting)
    params = qwen35.load(model.directory, device=device)
    got = dict(score_continuations(params, pairs, batch=batch, chunk=chunk))
    assert sorted(got) == list(range(len(pairs)))
    for index, (context, continuation) in enumerate(pairs):
        row = torch.tensor([[*context, *continuation]])
        logits = model.logits(row)[0, len(context) - 1 : -1].double().log_softmax(-1)
        target = torch.tensor(continuation)
        expected = logits.gather(1, target[:, None])[:, 0]
        torch.testing.assert_close(got[index].logprobs.double(), expected, rtol=0, atol=1e-4)
        assert torch.equal(got[index].greedy, logits.argmax(-1) == target)
    if device == "cpu":
        own = sum(len(continuation) for _, continuation in pairs)
        assert sum(read) == own + sum(len(context) - 1 for context in contexts)


@pytest.mark.slow
def test_all_is_compiled_before_the_first_token(reference, monkeypatch):
    """Under one bar, in a terminal: nothing is left to be compiled on the way."""
    model = reference("value_heads_x3_gqa6_odd_hidden")
    params = qwen35.load(model.directory, device="xla")
    tokens = model.tokens(1, 120, seed=7)[0].tolist()
    before = []

    def compile_first(graphs, show):
        before.append(compile_all(graphs, show).count)

    for module in (scoring, models):
        monkeypatch.setattr(module, "compile_all", compile_first)
    compared = models.Qwen35Model(params, None, 60, chunk=19)
    pairs = [(tokens[:30], tokens[30:36]), (tokens[:30], tokens[36:40]), (tokens[:1], tokens[9:12])]
    for run, graphs in (
        (lambda: score(params, [tokens[:50], tokens[:9], tokens[:40]], batch=2, chunk=19), 1),
        (lambda: list(score_continuations(params, pairs, batch=3, chunk=19)), 3),
        (lambda: compared.logits(tokens[:45], 5), 2),
        (lambda: compared.logits(tokens[:29], 7), 0),
    ):
        before.clear()
        with on_compile() as seen:
            run()
        assert seen.count == sum(before) == graphs


def test_pairs_that_cannot_be_scored_are_named(params):
    assert list(score_continuations(params, [])) == []
    for pair, words in (
        (([], [1]), "pair 1 has an empty context"),
        (([1], []), "pair 1 has an empty continuation"),
        (([1], [1280]), "continuation 1 has token id 1280"),
        (([1] * 1000, [1] * 26), "row 1 has 1026 tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            score_continuations(params, [([1], [2]), pair])


def test_greedy_marks_the_models_own_continuation(reference, load):
    model = reference("equal_heads")
    prompt, chosen, _ = model.greedy(20, 8)
    rows = torch.cat([prompt, chosen], 1).tolist()
    for got in score(load("equal_heads"), rows, batch=2):
        assert got.greedy[-8:].all() and not got.greedy.all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 1}, "window is 1: it must be from 2 to"),
        ({"window": 2000}, "max_position_embeddings, 1024"),
        ({"window": 8, "stride": 8}, "stride is 8, window 8: the stride must be smaller"),
        ({"window": 8, "stride": 0}, "stride must be a positive integer, not 0"),
        ({"prefix": KNOWN, "window": 8}, "no room"),
        ({"batch": 0}, "batch must be a positive integer, not 0"),
    ],
)
def test_bad_settings_are_refused_with_their_values(options, words, tokenizer, params):
    with pytest.raises(ValueError, match=words):
        perplexity(params, tokenizer, {"a": KNOWN}, **options)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_a_token_to_score_is_named(text, tokenizer, params):
    with pytest.raises(ValueError, match=r"short\.txt: \d token"):
        perplexity(params, tokenizer, {"short.txt": text})


def test_rows_that_cannot_be_scored_are_named(params):
    for row, words in (
        ([5], "row 1 has 1 tokens"),
        ([1, 1280], "row 1 has token id 1280"),
    ):
        with pytest.raises(ValueError, match=words):
            score(params, [[1, 2], row])
    with pytest.raises(ValueError, match="row 0 has 1026 tokens"):
        score(params, [[1] * 1026])


def run(tmp_path: Path, *arguments: str) -> int:
    text = tmp_path / "known.txt"
    text.write_text(KNOWN, encoding="utf-8")
    command = ["eval", "perplexity", "--model", str(DEMO), "--device", "cpu"]
    return main([*command, "--text", str(text), *arguments])


def test_the_command_prints_and_writes_its_report(tmp_path, capsys, tokenizer, params):
    assert run(tmp_path, "--json", "--output", str(tmp_path / "report")) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "report" / "perplexity.json").read_text())
    assert printed == written
    wanted = perplexity(params, tokenizer, {"a": KNOWN})["total"]
    assert printed["total"] == pytest.approx(wanted)
    assert printed["dtype"] == "float32" and printed["device"] == "cpu"
    page = (tmp_path / "report" / "perplexity.md").read_text()
    assert f"{wanted['perplexity']:.4f}" in page and f"{wanted['bits_per_byte']:.4f}" in page
    [plot] = (tmp_path / "report").glob("*.png")
    assert f"({plot.name})" in page
    assert len(list((tmp_path / "report").iterdir())) == 3  # no leftovers of writing aside


def test_without_matplotlib_the_page_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(tmp_path, "--output", str(tmp_path / "report")) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("| text ") and "matplotlib is not installed" in shown.err
    assert "need matplotlib" in (tmp_path / "report" / "perplexity.md").read_text()


def test_bad_files_are_one_line(tmp_path, capsys):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9")
    command = ["eval", "perplexity", "--model", str(DEMO), "--device", "cpu", "--text"]
    for name, words in ((bad, "is not UTF-8 text"), (tmp_path / "none.txt", "No such file")):
        assert main([*command, str(name)]) == 2
        shown = capsys.readouterr()
        assert words in shown.err and str(name) in shown.err
        assert shown.err.count("\n") == 1 and not shown.out
