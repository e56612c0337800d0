"""Sampling against NumPy with sorts, transformers' logits processors, and known distributions."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import generation as hf

import qwen35
from qwen35.generation import steps
from qwen35.generation.filters import Filters, kept, kept_candidates
from qwen35.generation.sampling import bias_for, choose, controls_for, count, counts_for
from qwen35.generation.sampling_settings import CANDIDATES, Sampling
from qwen35.generation.threefry import gumbel, threefry

V = 97


def token(logits, samplings, position=0, counts=None, **options):
    """`choose` with one setting for each row."""
    controls = controls_for(samplings, logits.shape[1])
    position = torch.as_tensor(position, dtype=torch.int32).expand(len(logits))
    bias = bias_for(samplings, logits.shape[1])
    return choose(logits, controls, position, counts, bias, **options)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((-1, -1), (-1, -1), (0x1CB996FC, 0xBB002BE7)),
        (
            (0x13198A2E, 0x03707344),
            (0x243F6A88, 0x85A308D3 - 2**32),
            (0xC4923A9C, 0x483DF7A0),
        ),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_threefry_gives_its_published_answers(key, counter, expected, device):
    """The known answers that come with the authors' Random123 library."""
    words = [torch.tensor([word], dtype=torch.int32) for word in (*key, *counter)]
    function = qwen35.jit(lambda a, b, c, d: threefry((a, b), (c, d)))
    if device == "cpu":
        function = function.__wrapped__
    result = qwen35.device_put(function(*qwen35.device_put(words, device)), "cpu")
    assert tuple(int(word) % 2**32 for word in result) == expected


def test_noise_is_gumbel():
    """Kolmogorov-Smirnov against exp(-exp(-x)); neighbours in no direction are correlated."""
    seeds = torch.tensor([[3, 0], [4, 0], [3, 1]], dtype=torch.int32)
    n = 40001
    noise = gumbel(seeds, torch.tensor([5, 5, 5], dtype=torch.int32), n)
    later = gumbel(seeds[:1], torch.tensor([6], dtype=torch.int32), n)
    for row in (*noise, *later):
        x = np.sort(row.double().numpy())
        distance = np.abs(np.exp(-np.exp(-x)) - (np.arange(n) + 0.5) / n).max()
        assert distance < 1.95 / math.sqrt(n)  # p = 0.001
    series = torch.stack([*noise, *later, noise[0].roll(1), noise[0].roll(n // 2)]).double()
    correlation = torch.corrcoef(series) - torch.eye(len(series))
    assert correlation.abs().max() < 4 / math.sqrt(n)


def oracle_kept(distance: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The definition, with sorts, in float64: ties of the last token kept stay too."""
    left = np.ones(distance.shape, bool)
    ranked = np.sort(distance)
    if top_k:
        left &= distance <= ranked[min(top_k, len(ranked)) - 1]
    weight = np.exp(-distance.astype(np.float64)) * left
    if top_p < 1:
        order = np.argsort(distance, kind="stable")
        before = np.cumsum(weight[order]) - weight[order]
        last = order[np.flatnonzero(before < top_p * weight.sum())[-1]]
        left &= distance <= distance[last]
    return left & (weight >= min_p)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 120),
    st.floats(0.01, 1),
    st.sampled_from([0, 0, 0.05, 0.5, 1]),
    st.sampled_from([0, 1, 2**-4]),
    st.sampled_from([1e-3, 0.3, 3, 40]),
)
def test_filters_equal_sorts(seed, top_k, top_p, min_p, grid, spread):
    """Any values, ties (logits on a grid) and spreads; two rows with settings of their own."""
    logits = np.random.default_rng(seed).normal(size=(2, V)).astype(np.float32) * spread
    if grid:
        logits = np.round(logits / grid) * np.float32(grid)
    distance = logits.max(1, keepdims=True) - logits
    settings_of_rows = ((top_k, top_p, min_p), (0, 1.0, 0.0))
    columns = torch.tensor(settings_of_rows, dtype=torch.float32).T
    result = kept(torch.from_numpy(distance), Filters(*columns)).numpy()
    assert result[1].all()
    top_p32 = float(columns[1][0])
    expected = oracle_kept(distance[0], top_k, top_p32, min_p)
    differing = result[0] != expected
    # float32 sums may put a cumulative probability on the other side of top_p, by an ulp or so.
    for shift in (1e-6, -1e-6):
        if differing.any():
            other = oracle_kept(distance[0], top_k, min(max(top_p32 + shift, 1e-9), 1), min_p)
            differing = result[0] != other
    assert not differing.any()


@pytest.mark.parametrize(
    ("options", "processors"),
    [
        ({"top_k": 5}, [hf.TopKLogitsWarper(5)]),
        ({"top_p": 0.7}, [hf.TopPLogitsWarper(0.7)]),
        ({"min_p": 0.1}, [hf.MinPLogitsWarper(0.1)]),
        (
            {"top_k": 20, "top_p": 0.8, "min_p": 0.05},
            [hf.TopKLogitsWarper(20), hf.TopPLogitsWarper(0.8), hf.MinPLogitsWarper(0.05)],
        ),
    ],
)
def test_filters_equal_those_of_transformers(options, processors):
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0)) * 2
    scores = logits / 0.7
    for processor in processors:
        scores = processor(None, scores)
    controls = controls_for([Sampling(temperature=0.7, **options)] * 6, 1000)
    result = kept((logits.amax(-1, keepdim=True) - logits) / 0.7, controls.filters)
    assert torch.equal(result, scores > -math.inf)
    assert 1 < result.sum(-1).float().mean() < 999


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, CANDIDATES),
    st.floats(0.01, 1),
    st.sampled_from([0, 0.05, 0.5, 1]),
    st.sampled_from([0, 1, 2**-4]),
    st.sampled_from([0.3, 3, 40]),
)
def test_candidates_are_chosen_from_as_the_whole_vocabulary(
    seed, top_k, top_p, min_p, grid, spread
):
    """The same tokens are kept, and the same one is drawn, beside a greedy row too."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 300)).astype(np.float32) * spread
    if grid:
        logits = np.round(logits / grid) * np.float32(grid)
    logits = torch.from_numpy(logits)
    distance = logits.amax(-1, keepdim=True) - logits
    filters = Filters(*torch.tensor([[top_k, top_p, min_p]] * 3, dtype=torch.float32).T)
    of_top_k = kept(distance, Filters(filters.top_k, torch.ones(3), torch.zeros(3)))
    assume(of_top_k.sum(-1).max() <= CANDIDATES)  # ties can make them more
    wanted = kept(distance, filters)
    ranked = distance.sort(-1).values[:, :CANDIDATES]
    found = kept_candidates(ranked, filters)
    # Other orders of summation: a cumulative probability may fall on the other side of top_p.
    counts = [wanted.sum(-1)]
    for shift in (1e-6, -1e-6):
        nudged = filters._replace(top_p=(filters.top_p + shift).clamp(1e-9, 1))
        counts.append(kept(distance, nudged).sum(-1))
    for row, number in enumerate(found.sum(-1).tolist()):
        assert number in [int(count[row]) for count in counts]
    if all(torch.equal(counts[0], count) for count in counts):
        row = Sampling(0.9, seed=seed % 1000, top_k=top_k, top_p=top_p, min_p=min_p)
        controls = controls_for([row, Sampling(), row.for_row(2)], 300)
        position = torch.tensor([3, 4, 5], dtype=torch.int32)
        short, whole = (
            choose(logits, controls, position, short=kind).token for kind in (True, False)
        )
        assert torch.equal(short, whole)


def test_only_settings_that_keep_few_tokens_are_short():
    few = (Sampling(), Sampling(0.7, top_k=CANDIDATES), Sampling(0.7, top_k=1, top_p=0.5))
    assert all(sampling.short for sampling in few)
    many = (Sampling(0.7, top_k=CANDIDATES + 1), Sampling(0.7), Sampling(0.7, top_p=0.9))
    assert not any(sampling.short for sampling in many)


def test_filters_on_a_full_vocabulary():
    """248,320 logits: counts and cumulative sums that are long, and each threshold exact."""
    logits = np.random.default_rng(0).normal(size=(1, 248_320)).astype(np.float32) * 3
    distance = logits.max() - logits
    for top_k, top_p in ((50, 1.0), (200_000, 1.0), (0, 0.9), (1000, 0.5)):
        columns = torch.tensor([[top_k], [top_p], [0]], dtype=torch.float32)
        result = kept(torch.from_numpy(distance), Filters(*columns)).numpy()[0]
        expected = oracle_kept(distance[0], top_k, float(columns[1]), 0)
        # top_p: the float32 sum of 248,320 terms is off by up to about 1e-6 of itself.
        assert abs(result.sum() - expected.sum()) <= (3e-5 * expected.sum() if top_p < 1 else 0)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The statistic, in standard deviations above its mean; cells of few expected are joined."""
    expected = probabilities * counts.sum()
    large = expected >= 8
    seen = np.append(counts[large], counts[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum())
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    freedom = len(seen) - 1
    return (((seen - wanted) ** 2 / wanted).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 12}, {"top_p": 0.8}, {"top_k": 30, "top_p": 0.9, "min_p": 0.02}]
)
@pytest.mark.parametrize("over", ["positions", "seeds"])
def test_draws_follow_their_distribution(options, over):
    """20,000 draws of one distribution, over positions of one seed, and over seeds."""
    draws, temperature = 20_000, 0.8
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(1)) * 1.5
    samplings = [
        Sampling(temperature, seed=row if over == "seeds" else 9, **options) for row in range(draws)
    ]
    positions = torch.arange(draws) if over == "positions" else 7
    drawn = token(logits.expand(draws, -1), samplings, positions).token.numpy()
    distance = (logits.max() - logits).numpy()[0] / np.float32(temperature)
    full = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    probabilities = np.exp(-distance.astype(np.float64)) * oracle_kept(distance, **full)
    probabilities /= probabilities.sum()
    counts = np.bincount(drawn, minlength=V)
    assert not counts[probabilities == 0].any()
    assert abs(chi_square(counts, probabilities)) < 4
    wrong = np.roll(probabilities, 1)
    assert chi_square(counts[wrong > 0], wrong[wrong > 0]) > 100, "the test has no power"


def test_a_row_draws_from_its_seed_and_position_alone():
    """Alone, in a batch, in another slot, beside other settings: the same token."""
    logits = torch.randn(5, V, generator=torch.Generator().manual_seed(2))
    samplings = [
        Sampling(1.0, seed=2**40 + 3),
        Sampling(),
        Sampling(2.0, seed=5, top_k=7, min_p=0.1),
        Sampling(0.5, seed=5, presence_penalty=1.0, banned=[3]),
        Sampling(1.0, seed=3),
    ]
    positions = [0, 4, 4, 100_000, 0]
    counts = counts_for([[1, 2]] * 5, V)
    batch = token(logits, samplings, positions, counts).token
    order = [3, 0, 4, 1, 2]
    mixed = token(
        logits[order], [samplings[i] for i in order], [positions[i] for i in order], counts
    ).token
    assert torch.equal(mixed, batch[order])
    for row in range(5):
        alone = token(logits[row : row + 1], [samplings[row]], [positions[row]], counts[:1]).token
        assert alone.item() == batch[row].item()
    assert batch[1] == logits[1].argmax()
    positions = torch.arange(20)
    draws = [
        tuple(token(logits[:1].expand(20, -1), [Sampling(1.0, seed=seed)] * 20, positions).token)
        for seed in (3, 3 + 2**32, 4)
    ]
    assert len({tuple(map(int, row)) for row in draws}) == 3, "both halves of a seed count"
    assert all(len(set(map(int, row))) > 5 for row in draws), "and so do positions"


def test_penalties_equal_those_of_transformers_and_openais_formula():
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(3)) * 4
    prompts, continuations = [[1, 2, 2, 3], [4]], [[2, 5, 5, 5], [9, 9]]
    counts = counts_for(prompts, V)
    for step in range(4):
        pairs = [row[step] if step < len(row) else 0 for row in continuations]
        active = torch.tensor([step < len(row) for row in continuations])
        counts = count(counts, torch.tensor(pairs), active)
    expected = logits.clone()
    for row in range(2):
        seen = torch.tensor([prompts[row] + continuations[row]])
        repeated = hf.RepetitionPenaltyLogitsProcessor(1.3)(seen, logits[row : row + 1].clone())
        times = torch.tensor([continuations[row].count(i) for i in range(V)])
        expected[row] = repeated[0] - 0.7 * (times > 0) - 0.4 * times
    sampling = Sampling(
        repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.4, logit_bias={6: 1.5}
    )
    expected[:, 6] = logits[:, 6] + 1.5
    # Every token in turn, by banning all that come before it.
    banned: list[list[int]] = [[], []]
    for _ in range(V):
        samplings = [
            Sampling(**{**sampling.__dict__, "banned": tuple(banned[row])}) for row in range(2)
        ]
        chosen = token(logits, samplings, counts=counts).token.tolist()
        for row in range(2):
            rest = expected[row].clone()
            rest[banned[row]] = -math.inf
            assert chosen[row] == rest.argmax()
            if len(banned[row]) < V - 1:
                banned[row].append(chosen[row])


def test_log_probabilities_are_the_models_own():
    """Of the chosen and of the likeliest, before temperature, bias and filters."""
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(4)) * 3
    likeliest = logits.argmax(-1).tolist()
    samplings = [Sampling(0.9, seed=1, top_k=3), Sampling(banned=[likeliest[1]])]
    choice = token(logits, samplings, logprobs=6)
    expected = torch.log(torch.exp(logits.double()) / torch.exp(logits.double()).sum(-1)[:, None])
    values, ids = expected.topk(6)
    assert torch.equal(choice.top_tokens, ids)
    torch.testing.assert_close(choice.top_logprobs.double(), values, rtol=0, atol=1e-5)
    chosen = expected.gather(1, choice.token[:, None])[:, 0]
    torch.testing.assert_close(choice.logprob.double(), chosen, rtol=0, atol=1e-5)
    assert choice.token[1] == ids[1, 1] != likeliest[1]
    assert token(logits, samplings, logprobs=0).top_tokens is None


def test_compiled_once_for_all_settings():
    """The device's tokens are the host's, and other values or mixtures compile nothing."""
    step = qwen35.jit(choose)
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(5)) * 2
    counts = counts_for([[1, 2, 3], [4]], 1000)
    rows = [
        Sampling(),
        Sampling(0.7, seed=11),
        Sampling(1.2, seed=12, top_k=20, top_p=0.9),
        Sampling(1.0, seed=13, min_p=0.2, repetition_penalty=1.5),
        Sampling(frequency_penalty=2.0, logit_bias={7: 9.0}, banned=[1]),
    ]
    for i, first in enumerate(rows):
        controls = controls_for([first, rows[i - 1]], 1000, everything=True)
        position = torch.tensor([i, 50], dtype=torch.int32)
        arguments = (logits, controls, position, counts, bias_for([first, rows[i - 1]], 1000))
        on_device = step(*qwen35.device_put(arguments, "xla"), logprobs=2)
        assert on_device.token.tolist() == choose(*arguments).token.tolist()
    assert step.compile_count == 1
    for short in (False, True):
        text = step.lower(*qwen35.device_put(arguments, "xla"), logprobs=2, short=short)
        assert not re.search(r"\b(sort|rng|custom-call)\(|f64\[", text)
        assert not re.search(r"s64\[\d+,\d+\]\S* (add|multiply|shift|xor)", text)


def test_the_greedy_step_is_nothing_but_decode_and_argmax(load):
    """Default settings leave no trace in the graph."""
    params = load("value_heads_x2_tied", "xla")
    state = qwen35.init_state(params, batch=2, capacity=16)
    vector, active = torch.tensor([1, 2]), torch.tensor([True, True])
    vector, active = qwen35.device_put((vector, active), "xla")

    def bare(params, state, token, active):
        logits, state = qwen35.decode(params, state, token, active)
        return logits.argmax(-1), state

    controls = controls_for([Sampling()] * 2, params.config.vocab_size)
    ours = steps.decode_and_choose.lower(params, state, vector, active, controls, None, None, None)
    theirs = qwen35.jit(bare).lower(params, state, vector, active)

    def operations(text):
        return sorted(re.findall(r"= (\S+ [\w-]+)\(", text))

    assert operations(ours) == operations(theirs)


def test_generate_takes_settings_for_each_row(load, letters):
    """Rows of a batch give what they give alone; stop tokens, bans and log probabilities hold."""
    params = load("value_heads_x2_tied")
    samplings = [
        Sampling(),
        Sampling(1.0, seed=4, top_p=0.9),
        Sampling(1.5, seed=4, repetition_penalty=1.2, logprobs=3),
    ]
    prompts = [[9, 2, 3], [4, 5], [6] * 20]
    batch = qwen35.generate(params, letters, prompts, max_new_tokens=12, sampling=samplings)
    for prompt, sampling, row in zip(prompts, samplings, batch, strict=True):
        [alone] = qwen35.generate(params, letters, [prompt], max_new_tokens=12, sampling=sampling)
        assert alone.tokens == row.tokens
        assert (row.logprobs is None) == (sampling.logprobs is None)
    assert [entry.token for entry in batch[2].logprobs] == list(batch[2].tokens)
    for i, entry in enumerate(batch[2].logprobs):
        state = qwen35.init_state(params, batch=1, capacity=40)
        logits, _ = qwen35.prefill(
            params, state, torch.tensor([[*prompts[2], *batch[2].tokens[:i]]])
        )
        expected = logits[0].log_softmax(-1)
        assert entry.logprob == pytest.approx(expected[entry.token].item(), abs=1e-4)
        values, ids = expected.topk(3)
        assert [token for token, _ in entry.top] == ids.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-4)
    first, later = batch[0].tokens[0], batch[0].tokens[1]
    assert first != later and len(batch[0].tokens) > 2
    [stopped] = qwen35.generate(
        params, letters, prompts[:1], max_new_tokens=12, sampling=Sampling(stop=[later])
    )
    assert stopped.tokens == batch[0].tokens[:2] and stopped.finish_reason == "stop"
    [banned] = qwen35.generate(
        params, letters, prompts[:1], max_new_tokens=12, sampling=Sampling(banned=[first])
    )
    assert first not in banned.tokens


def test_one_setting_gives_each_row_draws_of_its_own(load, letters):
    params = load("value_heads_x2_tied")
    sampling = Sampling(2.0, seed=1)
    rows = qwen35.generate(params, letters, [[1, 2]] * 3, max_new_tokens=10, sampling=sampling)
    [alone] = qwen35.generate(params, letters, [[1, 2]], max_new_tokens=10, sampling=sampling)
    assert alone.tokens == rows[0].tokens
    assert len({row.tokens for row in rows}) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": -1}, ["top_k", "-1"]),
        ({"top_k": 2.5}, ["top_k", "2.5"]),
        ({"top_p": 0}, ["top_p", "above 0"]),
        ({"top_p": 1.1}, ["top_p", "1.1"]),
        ({"min_p": -0.1}, ["min_p", "-0.1"]),
        ({"repetition_penalty": 0}, ["repetition_penalty", "above 0"]),
        ({"presence_penalty": math.nan}, ["presence_penalty", "nan"]),
        ({"frequency_penalty": "much"}, ["frequency_penalty", "much"]),
        ({"logit_bias": {3: math.inf}}, ["logit_bias", "inf"]),
        ({"logit_bias": {-3: 1.0}}, ["logit_bias", "-3"]),
        ({"banned": [-1]}, ["banned", "-1"]),
        ({"stop": [2.5]}, ["stop", "token ids"]),
        ({"logprobs": -1}, ["logprobs", "-1"]),
    ],
)
def test_bad_settings(options, words):
    with pytest.raises(ValueError) as error:
        Sampling(**options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(banned=[V]), ["banned", str(V)]),
        (Sampling(stop=[V + 2]), ["stop", str(V + 2)]),
        (Sampling(logit_bias={V: 1.0}), ["logit_bias", str(V)]),
        (Sampling(banned=range(V)), ["banned", "one must be left"]),
        (Sampling(logprobs=V + 1), ["logprobs", str(V + 1)]),
    ],
)
def test_settings_outside_the_vocabulary(sampling, words):
    with pytest.raises(ValueError) as error:
        controls_for([sampling], V)
    assert all(word in str(error.value) for word in words)


def test_settings_for_too_few_rows(load, letters):
    with pytest.raises(ValueError, match="2 entries for 1 prompts"):
        qwen35.generate(
            load("value_heads_x2_tied"), letters, [[1]], sampling=[Sampling(), Sampling()]
        )


@pytest.mark.parametrize("truth", [np.True_, torch.tensor(True)])
def test_truth_values_of_other_libraries_are_ones(truth):
    assert Sampling(ignore_eos=truth) == Sampling(ignore_eos=True)
    with pytest.raises(ValueError, match="ignore_eos must be True or False, not 1"):
        Sampling(ignore_eos=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"presence_penalty": 1e39},
        {"presence_penalty": -1e39},
        {"frequency_penalty": 1e39},
        {"repetition_penalty": 1e39},
        {"repetition_penalty": 1e-45},
        {"logit_bias": {5: 1e39}},
        {"logit_bias": {5: -1e300}},
    ],
    ids=str,
)
def test_what_float32_cannot_hold_is_refused(settings):
    """It would be infinite, zero times that NaN, and every token as good as another."""
    [name] = settings
    with pytest.raises(ValueError, match=f"{name} must be .*from -?1e[+-]30 to 1e[+]30"):
        Sampling(**settings)
    Sampling(presence_penalty=-1e30, frequency_penalty=1e30, repetition_penalty=1e-30)
