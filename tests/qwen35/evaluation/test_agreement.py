"""Agreement with a reference, against numbers worked out by hand, in loops, by transformers."""

from __future__ import annotations

import builtins
import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import qwen35
from qwen35.commands.cli import main
from qwen35.evaluation.agreement import agreement, compare, measure
from qwen35.evaluation.agreement_page import render
from qwen35.evaluation.models import Qwen35Model
from qwen35.evaluation.reference import TransformersModel

DEMO = Path(__file__).resolve().parents[3] / "demo"
STRANGE = ["xylophone quorum", "日本 and España 🐱", "The capital of France is", "9 8 7 6"]


def divergence(reference: list[float], candidate: list[float]) -> float:
    """KL in nats, from the definition."""
    one, other = ([math.exp(x - max(row)) for x in row] for row in (reference, candidate))
    one, other = ([x / sum(row) for x in row] for row in (one, other))
    return sum(p * math.log(p / q) for p, q in zip(one, other, strict=True))


def likeliest(row: list[float], count: int) -> set[int]:
    return set(sorted(range(len(row)), key=lambda token: -row[token])[:count])


def by_hand(reference: torch.Tensor, candidate: torch.Tensor) -> list[tuple]:
    """Per place: KL, whether the likeliest is the same, the share of five, the difference."""
    measures = []
    for one, other in zip(reference.tolist(), candidate.tolist(), strict=True):
        count = min(5, len(one))
        top = likeliest(one, 1) == likeliest(other, 1)
        share = len(likeliest(one, count) & likeliest(other, count)) / count
        difference = max(abs(x - y) for x, y in zip(one, other, strict=True))
        measures.append((divergence(one, other), top, share, difference))
    return measures


@pytest.mark.parametrize(("size", "scale"), [(40, 1.0), (40, 20.0), (3, 1.0)])
def test_distributions_are_compared_as_defined(size, scale):
    generator = torch.Generator().manual_seed(size)
    reference = scale * torch.randn(12, size, generator=generator)
    candidate = reference + 0.3 * scale * torch.randn(12, size, generator=generator)
    got = compare(reference, candidate)
    wanted = [torch.tensor(column) for column in zip(*by_hand(reference, candidate), strict=True)]
    assert got.top1.tolist() == wanted[1].tolist()
    assert size == 3 or 0 < got.top1.sum() < 12
    for name, value in (("kl", wanted[0]), ("top5", wanted[2]), ("difference", wanted[3])):
        torch.testing.assert_close(
            getattr(got, name), value, rtol=1e-6, atol=1e-9, check_dtype=False
        )


class Table:
    """A model that says after each token what its table says, but for chosen prefixes."""

    def __init__(self, table: list[list[float]], exceptions: dict | None = None):
        self.table, self.exceptions = table, exceptions or {}

    def _row(self, prefix: tuple[int, ...]) -> list[float]:
        return self.exceptions.get(prefix, self.table[prefix[-1]])

    def logits(self, tokens, last):
        size = len(tokens)
        rows = [self._row(tuple(tokens[:end])) for end in range(size - last + 1, size + 1)]
        return torch.tensor(rows)

    def greedy(self, prompts, count, ends):
        written = []
        for prompt in prompts:
            row = list(prompt)
            while len(row) < len(prompt) + count and not (row[len(prompt) :] and row[-1] in ends):
                said = self._row(tuple(row))
                row.append(said.index(max(said)))
            written.append(row[len(prompt) :])
        return written


def test_counts_by_hand():
    """Tokens 0 to 3; the reference counts on, 3 ends. The candidate errs once, after 0, 1, 2."""
    follow = [
        [0.0, 4.0, 0.0, 0.0],
        [0.0, 0.0, 4.0, 0.0],
        [0.0, 0.0, 0.0, 4.0],
        [4.0, 0.0, 0.0, 0.0],
    ]
    reference = Table(follow)
    candidate = Table(follow, {(0, 1, 2): [0.0, 5.0, 0.0, 4.0]})
    prompts = [[0], [0, 1], [1], [2]]
    continuations = reference.greedy(prompts, 3, {3})
    assert continuations == [[1, 2, 3], [2, 3], [2, 3], [3]]
    got = agreement(
        reference, candidate, prompts, continuations, ends={3}, max_new_tokens=3, decode=str
    )
    # Two of the eight places follow 0, 1, 2: there five likeliest are all four tokens.
    wrong = divergence(follow[2], [0.0, 5.0, 0.0, 4.0])
    assert (got["positions"], got["top1"], got["top5"]) == (8, 6 / 8, 1.0)
    assert got["kl_mean"] == pytest.approx(2 * wrong / 8) and got["kl_max"] == pytest.approx(wrong)
    assert got["logit_difference"] == 5.0
    assert got["equal_tokens"] == (2 + 1 + 2 + 1) / 8 and got["equal_prompts"] == 2
    first = got["prompts"][0]
    assert first["prompt"] == "[0]" and first["equal_tokens"] == 2 / 3
    assert (first["reference"], first["candidate"]) == ("[1, 2, 3]", "[1, 2, 1]")
    assert first["first_difference"] == {
        "position": 2, "reference": "[3]", "candidate": "[1]", "margin": 4.0
    }  # fmt: skip
    assert got["prompts"][2]["first_difference"] is None
    assert [entry["equal"] for entry in got["by_position"]] == [1.0, 3 / 4, 2 / 4]
    assert [entry["kl_max"] > 0 for entry in got["by_position"]] == [False, True, True]
    assert got["by_position"][1]["kl_mean"] == pytest.approx(wrong / 3)


class Letters:
    """A tokenizer of ids that are no text."""

    def encode(self, text):
        return list(map(ord, text))

    def decode(self, tokens, skip_special_tokens=False):
        return " ".join(map(str, tokens))


def test_a_replica_without_a_prompt_writes_nothing():
    """As where there are fewer prompts than replicas: another replica has them."""
    assert Qwen35Model(qwen35.load(DEMO), Letters(), 20).greedy([], 4, ()) == []


@pytest.mark.parametrize(("device", "chunk"), [("cpu", 256), ("cpu", 7), ("xla", 32)])
def test_both_models_give_transformers_logits_and_tokens(device, chunk, reference):
    name = "value_heads_x3_gqa6_odd_hidden"
    model = reference(name)
    ours = Qwen35Model(qwen35.load(model.directory, device=device), Letters(), 70, chunk=chunk)
    theirs = TransformersModel(model.directory, "float32")
    rows = [model.tokens(1, length, seed=length)[0].tolist() for length in (1, 33, 60)]
    for row in rows:
        wanted = model.logits(torch.tensor([row]))[0]
        for last in sorted({1, len(row) // 2 + 1, len(row)}):
            for one in (ours, theirs):
                torch.testing.assert_close(one.logits(row, last), wanted[-last:], rtol=0, atol=1e-4)
    prompt, chosen, _ = model.greedy(20, 8)
    wanted = chosen.tolist()
    for one in (ours, theirs):
        assert one.greedy(prompt.tolist(), 8, ()) == wanted
        # An end token is kept and nothing follows it.
        end = wanted[0][3]
        cut = [row[: row.index(end) + 1] if end in row else row for row in wanted]
        assert one.greedy(prompt.tolist(), 8, {end}) == cut


@torch.no_grad()
def test_a_checkpoint_against_transformers():
    """Every number of the comparison in float32 and bfloat16, from logits asked for one by one."""
    result = measure(DEMO, STRANGE, max_new_tokens=6, device="cpu")
    known = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    rough = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.bfloat16).eval()
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)

    prompts = [tokenizer.hf.encode(text) for text in STRANGE]

    def theirs(model):
        def logits(row):
            return model(torch.tensor([row]), use_cache=False).logits[0].float()

        def write(prompt):
            row = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0]
            return row[len(prompt) :].tolist()

        return logits, write

    def ours(dtype):
        params = qwen35.load(DEMO, dtype=dtype)

        def logits(row):
            state = qwen35.init_state(params, batch=1, capacity=64)
            return qwen35.logits(params, qwen35.forward(params, state, torch.tensor([row]))[0])[0]

        def write(prompt):
            state = qwen35.init_state(params, batch=1, capacity=64)
            said, state = qwen35.prefill(params, state, torch.tensor([prompt]))
            row = [int(said.argmax())]
            while len(row) < 6 and row[-1] not in (951, 952):
                said, state = qwen35.decode(params, state, torch.tensor(row[-1:]))
                row.append(int(said.argmax()))
            return row

        return logits, write

    models = {
        ("qwen35", "float32"): ours("float32"),
        ("qwen35", "bfloat16"): ours("bfloat16"),
        ("transformers", "bfloat16"): theirs(rough),
    }
    assert [(one["model"], one["dtype"]) for one in result["comparisons"]] == list(models)
    known_logits, known_write = theirs(known)
    continuations = list(map(known_write, prompts))
    for one, (logits, write) in zip(result["comparisons"], models.values(), strict=True):
        places, alike = [], 0
        for prompt, wanted in zip(prompts, continuations, strict=True):
            row, count = [*prompt, *wanted[:-1]], len(wanted)
            places += by_hand(known_logits(row)[-count:], logits(row)[-count:])
            pairs = list(zip(wanted, write(prompt), strict=False))
            differs = [place for place, (first, other) in enumerate(pairs) if first != other]
            alike += differs[0] if differs else count
        kl, top1, top5, difference = zip(*places, strict=True)
        assert one["positions"] == len(places) == sum(map(len, continuations))
        exact = one["dtype"] == "float32"
        # float32's divergence is of rounding squared, which no two ways of computing share.
        close = {"abs": 1e-9} if exact else {"rel": 2e-3, "abs": 1e-9}
        assert one["kl_mean"] == pytest.approx(sum(kl) / len(kl), **close)
        assert one["kl_max"] == pytest.approx(max(kl), **close)
        assert one["top1"] == sum(top1) / len(top1)
        assert one["top5"] == pytest.approx(sum(top5) / len(top5), abs=1e-9)
        assert one["equal_tokens"] == pytest.approx(alike / len(places))
        assert one["logit_difference"] == pytest.approx(max(difference), rel=1e-2, abs=1e-4)
        if exact:
            assert one["logit_difference"] < 1e-4 and one["equal_prompts"] == len(STRANGE)
        else:
            assert one["kl_mean"] > 1e-7


def test_the_page_shows_the_worst_first():
    entry = dict(
        top1=1.0, top5=1.0, kl_max=1.0, equal_tokens=1.0, positions=2, logit_difference=0.5
    )
    differs = {"position": 3, "reference": "a\n", "candidate": "b", "margin": 0.25}
    good = {**entry, "prompt": "good", "kl_mean": 1e-9, "first_difference": None}
    bad = {**entry, "prompt": "bad | " + "x" * 99, "kl_mean": 2e-3, "first_difference": differs}
    one = {**entry, "model": "qwen35", "dtype": "bfloat16", "kl_mean": 1e-3, "equal_prompts": 1}
    one["prompts"] = [good, bad]
    result = {"comparisons": [one], "max_new_tokens": 2, "reference": {"model": "transformers"}}
    page = render(result)
    assert page.index('"bad \\| xxx') < page.index('"good"')
    assert 'token 3: "b" for "a\\n", 2.50e-01 below it' in page and "1 of 2" in page
    assert "good" not in render(result, worst=1)


def run(*arguments: str) -> int:
    return main(["eval", "agreement", "--model", str(DEMO), "--device", "cpu", *arguments])


def test_the_command_prints_and_writes_its_report(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["The opposite of hot is", "", STRANGE[0]]), encoding="utf-8")
    options = ["--prompts", str(prompts), "--max-new-tokens", "3", "--dtype", "float32"]
    report = tmp_path / "report"
    assert run(*options, "--json", "--output", str(report), "--reference", "transformers") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((report / "agreement.json").read_text())
    [one] = printed["comparisons"]
    assert [entry["prompt"] for entry in one["prompts"]] == ["The opposite of hot is", STRANGE[0]]
    assert "transformers" in printed["versions"] and printed["dtype"] == "float32"
    page = (report / "agreement.md").read_text()
    plots = sorted(file.name for file in report.glob("*.png"))
    assert len(plots) == 2 and all(f"({name})" in page for name in plots)
    assert re.search(r"^\| qwen35 float32 +\| +100.00% \|.* 2 of 2 \|$", page, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "head", "limit"),
    [("int8", "int8", 1e-3), ("int8", None, 1e-3), ("fp8", "fp8", 1.5e-2), ("int4", "int8", 0.3)],
)
def test_the_command_measures_what_quantising_costs(weights, head, limit, capsys):
    """From end to end, on XLA. More than rounding costs would pass the limits many times over."""
    made = ["--weights", weights, *(["--head", head] if head else [])]
    assert run(*made, "--dtype", "float32", "--device", "xla", "--json") == 0
    [one] = json.loads(capsys.readouterr().out)["comparisons"]
    assert (one["weights"], one["head"], one["device"]) == (weights, head, "xla")
    assert len(one["prompts"]) == 8 and one["positions"] > 90
    assert 1e-6 < one["kl_mean"] < limit, "quantised, and by no more than rounding"
    assert one["top1"] == 1.0 or weights != "int8"


def test_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    empty, bytes_ = tmp_path / "empty.txt", tmp_path / "bytes.txt"
    empty.write_text("\n \n")
    bytes_.write_bytes(b"caf\xe9")
    long = tmp_path / "long.txt"
    long.write_text("a b " * 600)
    for options, words in (
        (["--prompts", str(empty)], "has no prompts"),
        (["--prompts", str(bytes_)], "not UTF-8"),
        (["--prompts", str(tmp_path / "none.txt")], "No such file"),
        (["--prompts", str(long)], "max_position_embeddings of 1024"),
        (["--max-new-tokens", "0"], "--max-new-tokens: must be a positive integer, not '0'"),
        (["--output", str(empty)], "File exists"),
        (["--model", "nowhere"], "nowhere"),
    ):
        assert run(*options) == 2
        shown = capsys.readouterr()
        assert words in shown.err and shown.err.count("\n") == 1 and not shown.out
    assert run("--reference", "llama.cpp") == 2
    assert "choose from" in capsys.readouterr().err


def test_without_the_reference_the_command_says_what_is_missing(capsys, monkeypatch):
    imported = builtins.__import__

    def without(name, *rest):
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run() == 2
    shown = capsys.readouterr().err
    assert "the reference needs transformers" in shown and "pip install" in shown


def test_missing_weights_of_the_reference_are_named(tmp_path, reference):
    from safetensors.torch import load_file, save_file

    model = reference("equal_heads")
    for file in model.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors .*up_proj\.weight"):
        TransformersModel(tmp_path, "float32")


@torch.no_grad()
def test_texts_leave_a_vision_tower_unread(multimodal):
    directory, texts = multimodal.directory, ["The capital", "Hot"]
    tokens = qwen35.Tokenizer.from_pretrained(directory).encode("The capital of France is")
    wanted = multimodal.model(torch.tensor([tokens]), use_cache=False).logits[0]
    reference = TransformersModel(directory, "float32")
    torch.testing.assert_close(reference.logits(tokens, 3), wanted[-3:], rtol=0, atol=1e-5)
    result = measure(directory, texts, dtypes=["float32"], max_new_tokens=4, device="cpu")
    [one] = result["comparisons"]
    assert one["logit_difference"] < 1e-4 and one["equal_prompts"] == 2 and one["positions"] > 2
