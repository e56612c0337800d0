"""How generation cuts prompts into prefill steps."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import qwen35
from qwen35.generation.buckets import capacity, part_count, prefill_chunk, rows
from qwen35.generation.generate import PREFILL_CHUNK
from qwen35.generation.thinking import ThinkingBudget
from qwen35.xla.observers import on_compile

OF_ONE = [16, 32, 64, 128, 192, 256, 320, 384, 448, 512]
OF_SEVERAL = [288, 320, 352, 384, 416, 448, 480, 512]


def test_chunk_sizes():
    """Every length takes the fewest steps there can be, of the smallest of few sizes that does."""
    for length in range(1, 40_000):
        steps = -(-length // PREFILL_CHUNK)
        sizes = OF_ONE if steps == 1 else OF_SEVERAL
        smallest = next(size for size in sizes if steps * size >= length)
        assert prefill_chunk(length, PREFILL_CHUNK) == smallest
    assert [prefill_chunk(length, 10) for length in (1, 10, 11)] == [10, 10, 10]


@pytest.mark.parametrize("chunk", [512, 100, 37, 1])
def test_chunks_change_no_token(reference, letters, chunk):
    """Prompts of other lengths beside each other, so that some end steps before others."""
    case = reference("value_heads_x3_gqa6_odd_hidden")
    prompts, expected = [], []
    for length in (129, 70):
        tokens, chosen, _ = case.greedy(length, 8)
        prompts += tokens.tolist()
        expected += chosen.tolist()
    end = case.config.eos_token_id
    expected = [row[: row.index(end) + 1] if end in row else row for row in expected]
    params = qwen35.load(case.directory, dtype=torch.float32)
    said = qwen35.generate(params, letters, prompts, max_new_tokens=8, prefill_chunk=chunk)
    assert [list(row.tokens) for row in said] == expected


def test_what_acts_as_an_integer_is_one(load, letters):
    """NumPy's and torch's, as token ids, counts and settings; halves and truth values are none."""
    params = load("value_heads_x2_tied")
    [expected] = qwen35.generate(
        params, letters, [1, 2, 3], max_new_tokens=4, sampling=qwen35.Sampling(1.0, seed=5, top_k=9)
    )
    sampling = qwen35.Sampling(1.0, seed=np.int64(5), top_k=np.uint8(9), stop=[np.int32(130)])
    for prompt in (np.array([1, 2, 3]), torch.tensor([1, 2, 3]), [np.int64(1), 2, torch.tensor(3)]):
        [said] = qwen35.generate(
            params, letters, prompt, max_new_tokens=np.int64(4), sampling=sampling
        )
        assert said.tokens == expected.tokens
    for prompt in ([1, 2.5], [1, True], [[1, "2"]]):
        with pytest.raises(ValueError, match=r"prompt 0 has .* where a token id is needed"):
            qwen35.generate(params, letters, prompt, max_new_tokens=1)
    with pytest.raises(ValueError, match="max_new_tokens must be a positive integer, not True"):
        qwen35.generate(params, letters, [1], max_new_tokens=True)


class Ending:
    """A tokenizer of code points with an end token."""

    def __init__(self, letters, end):
        self.encode, self.decode, self.end_token_ids = letters.encode, letters.decode, (end,)


@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_a_row_that_ignores_end_tokens_goes_on_as_transformers_does(
    reference, load, letters, device
):
    """Beside one that does not, in `generate` and in an engine whose slot others had before."""
    case = reference("value_heads_x2_tied")
    prompts, chosen, _ = case.greedy(20, 12)
    prompt, chosen = prompts[0].tolist(), chosen[0].tolist()
    end = next(token for place, token in enumerate(chosen) if place > 3)
    ended = chosen[: chosen.index(end) + 1]
    params, tokenizer = load(case.name, device), Ending(letters, end)
    on, off = qwen35.Sampling(ignore_eos=True), qwen35.Sampling()
    said = qwen35.generate(
        params, tokenizer, [prompt, prompt], max_new_tokens=12, sampling=[on, off]
    )
    assert [list(row.tokens) for row in said] == [chosen, ended]
    assert [row.finish_reason for row in said] == ["length", "stop"]
    engine = qwen35.Engine(params, tokenizer, slots=1, capacity=64, prefill_sizes=1)
    for sampling, wanted in ((off, ended), (on, chosen), (off, ended)):
        request = engine.submit(prompt, max_new_tokens=12, sampling=sampling)
        assert [piece.token for piece in engine.stream(request)] == wanted


def test_batches_of_similar_size_share_graphs(load, letters):
    """With tokens of each row alone; and no batch is made half as large again."""
    for count in range(1, 200):
        assert count <= rows(count) < 1.5 * count
        assert rows(count, 3) % 3 == 0 and count <= rows(count, 3) < 1.5 * count + 3
    assert sorted({rows(count) for count in range(1, 33)}) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    params = load("value_heads_x2_tied", "xla")
    prompts = [[5 + n, 9, 2 * n] for n in range(20)]
    sampling = [qwen35.Sampling(0.9 * (n % 2), seed=n, logprobs=2) for n in range(20)]
    how = {"max_new_tokens": 4, "capacity": 32}
    whole = qwen35.generate(params, letters, prompts, sampling=sampling, **how)
    with on_compile() as seen:
        fewer = qwen35.generate(params, letters, prompts[:17], sampling=sampling[:17], **how)
    assert seen.count == 0
    assert [one.tokens for one in fewer] == [one.tokens for one in whole[:17]]
    assert all(len(one.logprobs) == len(one.tokens) for one in fewer)
    [alone] = qwen35.generate(params, letters, prompts[16], sampling=sampling[16], **how)
    assert alone.tokens == fewer[16].tokens


def test_capacities_are_few():
    """None has a quarter more tokens than are needed, or 128 more; all have fast products."""
    for tokens in range(1, 40_000):
        size = capacity(tokens)
        assert size % 128 == 0 and tokens <= size < max(tokens + 128, 1.25 * tokens)
    assert len({capacity(tokens) for tokens in range(1, 32_769)}) == 28


def test_sizes_of_prefill_steps_are_as_many_as_pay():
    """By what is compiled and padded together, for chunks of 128 and 2,000 tokens a compilation."""
    for prompts in (0, 1, 20, 100, 300, 1000, 1500):
        cost = {n: 2000 * n + prompts * 128 / (2 * n) for n in range(1, 9)}
        assert cost[part_count(prompts)] <= 1.01 * min(cost.values())
    assert part_count(0) == 1 and part_count(10**6) == 8


@pytest.mark.usefixtures("nothing_compiled")
def test_batches_of_a_call_share_graphs(load, letters):
    """The last one too, which is shorter, and later calls; each row's tokens are its own."""
    name, prompts = "value_heads_x2_tied", [[5 + n, 9, 2 * n][: 1 + n % 3] for n in range(9)]
    sampling = [qwen35.Sampling(0.9 * (n % 2 == 0), seed=n, logprobs=2) for n in range(9)]
    how = {"max_new_tokens": 4, "capacity": 40}
    params = load(name, "xla")
    with on_compile() as seen:
        said = qwen35.generate(params, letters, prompts, sampling=sampling, batch=4, **how)
    assert seen.count == 3  # prefill, choose, decode and choose
    together = qwen35.generate(load(name), letters, prompts, sampling=sampling, **how)
    for one, other in zip(said, together, strict=True):
        assert one.tokens == other.tokens and one.finish_reason == other.finish_reason
        for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, rel=0, abs=1e-5)
            assert len(mine.top) == len(theirs.top)
    with on_compile() as seen:
        two = qwen35.generate(params, letters, prompts[:2], sampling=sampling[:2], batch=4, **how)
    assert seen.count == 0 and [one.tokens for one in two] == [one.tokens for one in said[:2]]
    eager = qwen35.generate(load(name), letters, prompts, sampling=sampling, batch=4, **how)
    assert [one.tokens for one in eager] == [one.tokens for one in said]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "x"}, "sampling must be a Sampling, or one for each row, not 'x'"),
        ({"sampling": {"seed": 1}}, "sampling must be a Sampling, or one for each row, not {'se"),
        ({"sampling": None}, "sampling must be a Sampling, or one for each row, not None"),
        ({"sampling": [qwen35.Sampling(), 5]}, r"sampling[1] must be a Sampling, not 5"),
        ({"thinking": 5}, "thinking must be a ThinkingBudget, not 5"),
        ({"thinking": 0}, "thinking must be a ThinkingBudget, not 0"),
        ({"thinking": ThinkingBudget(1, 999, (2,))}, "thinking.end has token id 999"),
        ({"template": 5}, "template must be variables by name, not 5"),
    ],
)
def test_what_is_no_setting_is_refused_at_the_call(load, letters, options, message):
    """By `stream` too, before a piece is asked for; and `choose` and an engine's `map`."""
    params = load("value_heads_x2_tied")
    for call in (qwen35.generate, qwen35.stream):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(params, letters, [[1], [2]], max_new_tokens=1, **options)
    if "sampling" in options:
        with pytest.raises(ValueError, match=re.escape(message)):
            qwen35.choose(torch.zeros(2, 131), **options)
        engine = qwen35.Engine(params, letters, slots=1, capacity=8)
        with pytest.raises(ValueError, match="sampling must be a Sampling, not"):
            engine.map([[1]], **options)


def test_batches_come_one_after_the_other(load, letters):
    """Settings of all are checked before the first."""
    params, prompts = load("value_heads_x2_tied"), [[n + 1] for n in range(5)]
    pieces = list(qwen35.stream(params, letters, prompts, max_new_tokens=2, batch=2))
    assert [{piece.row for piece in pieces[n : n + 4]} for n in (0, 4, 8)] == [{0, 1}, {2, 3}, {4}]
    sampling = [*[qwen35.Sampling()] * 4, qwen35.Sampling(banned=[131])]
    with pytest.raises(ValueError, match="banned has token id 131"):
        qwen35.stream(params, letters, prompts, sampling=sampling, batch=2)
    with pytest.raises(ValueError, match="batch must be a positive integer, not 0"):
        qwen35.stream(params, letters, prompts, batch=0)
