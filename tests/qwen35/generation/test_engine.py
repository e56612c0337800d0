"""The engine against each request run alone by `generate`, and against a bookkeeping of its own."""

from __future__ import annotations

import collections
import importlib.util
import random

import pytest
import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35 import Engine, QueueFull, Sampling
from qwen35.generation import buckets, steps
from qwen35.generation.engine_settings import EngineSettings
from qwen35.generation.thinking import ThinkingBudget
from qwen35.sharding.mesh import Mesh

NAME = "value_heads_x2_tied"
CAPACITY = 96
GREEDY = Sampling()


class Letters:
    """A tokenizer of code points; a token of `broken` can't be decoded."""

    def __init__(self, broken=()):
        self.broken = set(broken)

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, tokens, skip_special_tokens=False):
        if self.broken & set(tokens):
            raise RuntimeError("this token can't be decoded")
        return "".join(chr(0x4E00 + token) for token in tokens)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def params(load):
    return load(NAME)


@pytest.fixture(scope="module")
def alone(params):
    """alone(prompt, new, sampling): what `generate` gives for one request."""
    results = {}

    def run(prompt, new, sampling=GREEDY):
        key = (tuple(prompt), new, sampling)
        if key not in results:
            [results[key]] = qwen35.generate(
                params,
                Letters(),
                [prompt],
                max_new_tokens=new,
                sampling=sampling,
                capacity=CAPACITY,
            )
        return results[key]

    return run


def engine_for(params, tokenizer=None, **options):
    small = {"slots": 3, "capacity": CAPACITY, "prefill_chunk": 8, "prefill_sizes": 4}
    options = small | {"snapshot_every": 16} | options
    return Engine(params, tokenizer or Letters(), **options)


def poison(engine):
    """Fills idle slots with NaN and positions of others: stale state must not matter."""
    idle = torch.tensor([request is None for request in engine.running])

    def spoil(leaf):
        here = idle.view(-1, *[1] * (leaf.dim() - 1)).to(leaf.device)
        return torch.where(here, float("nan") if leaf.is_floating_point() else 7, leaf)

    engine.batch.rows = pytree.tree_map(spoil, engine.batch.rows)


def random_request(rng, vocabulary, end_tokens=()):
    """Prompt, length and settings; prompts often start alike."""
    shared = [5, 9, 2, 7, 7, 1, 30, 8, 4, 4, 60, 3, 12, 90, 17, 33, 2, 1]
    prompt = shared[: rng.choice([0, 0, 5, 11, 16, 18])]
    prompt = prompt + [
        rng.randrange(vocabulary) for _ in range(rng.choice([1, 2, 7, 8, 9, 24, 40]))
    ]
    sampling = rng.choice(
        [
            Sampling(),
            Sampling(),
            Sampling(1.0, seed=rng.randrange(5)),
            Sampling(0.8, seed=rng.randrange(5), top_k=9, top_p=0.9),
            Sampling(1.3, seed=3, repetition_penalty=1.3, frequency_penalty=0.2),
            Sampling(presence_penalty=0.9, logit_bias={3: 1.0}, banned=[1, 2]),
            Sampling(stop=[rng.randrange(vocabulary) for _ in range(20)]),
            Sampling(0.9, seed=rng.randrange(5), stop=random_stops(rng, vocabulary)),
        ]
    )
    return prompt, rng.choice([1, 2, 5, 12, 20]), sampling


def random_stops(rng, vocabulary):
    """Texts of one to three tokens, a letter of which is likely, and ids beside them."""
    letters = [chr(0x4E00 + rng.randrange(vocabulary)) for _ in range(40)]
    texts = ["".join(rng.choices(letters, k=rng.choice([1, 1, 2, 3]))) for _ in range(20)]
    return [*dict.fromkeys(texts), *(rng.randrange(vocabulary) for _ in range(rng.choice([0, 5])))]


def check_stops(request, sampling):
    """A row ends at the first of its stops, by id or text, and its text before that."""
    tokens = list(request.new_tokens)
    told = [place for place, token in enumerate(tokens) if token in sampling.stop_tokens]
    assert told in ([], [len(tokens) - 1])
    words = Letters().decode(tokens[:-1] if told else tokens)
    # Of some that end at one letter, the text ends before all of them.
    first = min((place for text in sampling.stop_texts if (place := words.find(text)) >= 0),
                default=None)  # fmt: skip
    assert request.finish_reason == "stop" or (first is None and not told)
    assert request.text in (words, words[:-1]) if first is None else request.text == words[:first]


def test_every_request_gets_what_it_gets_alone(params, alone):
    """Requests of all kinds join and leave; slots are poisoned when free."""
    rng = random.Random(0)
    engine = engine_for(params)
    asked = [random_request(rng, params.config.vocab_size) for _ in range(24)]
    requests, pieces = [], collections.defaultdict(list)
    pending = list(asked)
    while pending or not engine.idle:
        for _ in range(rng.choice([0, 1, 3])):
            if pending:
                prompt, new, sampling = pending.pop(0)
                requests.append(engine.submit(prompt, max_new_tokens=new, sampling=sampling))
        for piece in engine.step():
            pieces[piece.row].append(piece)
        poison(engine)
    assert engine.stats.hits > 5
    for request, what in zip(requests, asked, strict=True):
        expected, result = alone(*what), request.completion()
        assert result.tokens == expected.tokens
        assert (result.text, result.finish_reason) == (expected.text, expected.finish_reason)
        assert [piece.token for piece in pieces[request.id]] == list(result.tokens)
        assert "".join(piece.text for piece in pieces[request.id]) == result.text


def test_greedy_tokens_are_those_of_transformers(reference, params):
    """24 requests of different lengths in 4 slots; transformers alone, one by one."""
    case = reference(NAME)
    engine = engine_for(params, slots=4)
    prompts = [case.tokens(1, length, seed=length)[0].tolist() for length in range(1, 40, 7)]
    requests = [engine.submit(prompt, max_new_tokens=12) for prompt in prompts]
    for _ in engine.run():
        poison(engine)
    for prompt, request in zip(prompts, requests, strict=True):
        tokens = torch.tensor([[*prompt, *request.new_tokens]])
        logits = case.logits(tokens)[0, len(prompt) - 1 : -1]
        best = logits.max(-1).values
        chosen = logits.gather(1, torch.tensor(request.new_tokens)[:, None])[:, 0]
        assert (best - chosen).max() < 1e-4  # the likeliest, or as likely to rounding


@pytest.mark.usefixtures("nothing_compiled")
def test_nothing_compiles_after_warm_up(load, alone):
    """On XLA: one prefill and one decode graph for all requests, and XLA compiles nothing else."""
    import torch_xla.debug.metrics as metrics

    def compilations():
        data = metrics.metric_data("CompileTime")
        return data[0] if data else 0

    params = load(NAME, "xla")
    engine = engine_for(params, top_logprobs=2, capacity=CAPACITY, prefill_sizes=2)
    before = [step.compile_count for step in steps.ALL]
    engine.warm_up()
    added = [step.compile_count - n for step, n in zip(steps.ALL, before, strict=True)]
    names = [step.__name__.strip("_") for step in steps.ALL]
    # choose: the likeliest, any settings, and those that keep few tokens, the last two with a mask
    # too where grammars can be had; put: rows, and what is
    # kept of each token; put_row: settings and what ends a row; generate's own: none; prefill
    # and decode: 4 and 8 tokens.
    masks = 2 * (importlib.util.find_spec("llguidance") is not None)
    other = {"choose": 3 + masks, "put": 2, "put_row": 2, "decode_and_choose": 0, "prefill": 0}
    other["prefill_and_decode"] = 2
    assert added == [other.get(name, 1) for name in names]
    # What torch-xla runs besides graphs of ours is the zeros of a new row.
    engine.submit([1], max_new_tokens=2)
    collections.deque(engine.run(), maxlen=0)
    count, compiled = engine.compile_count, compilations()
    rng = random.Random(1)
    asked = [random_request(rng, engine.batch.params.config.vocab_size) for _ in range(10)]
    requests = [
        engine.submit(prompt, max_new_tokens=new, sampling=sampling)
        for prompt, new, sampling in asked
    ]
    collections.deque(engine.run(), maxlen=0)
    assert engine.compile_count == count and compilations() == compiled
    for request, what in zip(requests, asked, strict=True):
        assert request.completion().tokens == alone(*what).tokens


@pytest.mark.parametrize("name", ["only_deltanet", "only_attention"])
def test_nothing_is_compiled_after_warming_up_with_one_kind_of_layer(name, load, letters):
    """What leaves a row for the prefix cache is other tensors then; a second prompt hits it."""
    small = {"slots": 1, "capacity": CAPACITY, "prefill_chunk": 8, "prefill_sizes": 1}
    engine = qwen35.Engine(load(name, "xla"), letters, snapshot_every=8, **small)
    engine.warm_up()
    count = engine.compile_count
    said = [engine.submit(list(range(1, 21)), max_new_tokens=3) for _ in range(2)]
    collections.deque(engine.run(), maxlen=0)
    assert engine.compile_count == count and engine.cache.stats.hits > 0
    assert said[0].completion().tokens == said[1].completion().tokens


@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_what_is_cached_of_a_row_that_a_text_ends_is_of_its_tokens(load, alone, device):
    """Where steps run ahead, the device has read the token that completed the text."""
    engine, prompt = engine_for(load(NAME, device), prefill_sizes=1), [5, 9, 2, 7]
    sampling = Sampling(banned=_ends(engine.batch.params))
    free = alone(prompt, 8, sampling)
    stop = free.text[3:5]
    request = engine.submit(
        prompt, max_new_tokens=8, sampling=Sampling(banned=sampling.banned, stop=[stop])
    )
    collections.deque(engine.run(), maxlen=0)
    assert request.text == free.text[: free.text.index(stop)] and request.finish_reason == "stop"
    assert request.new_tokens == list(free.tokens[: free.text.index(stop) + 2])
    further = [*prompt, *request.new_tokens, 11]
    again = engine.submit(further, max_new_tokens=4)
    collections.deque(engine.run(), maxlen=0)
    assert again.cached_tokens == len(further) - (1 if device == "xla" else 2)
    assert again.new_tokens == list(alone(further, 4).tokens)


def test_requests_start_in_order_and_none_starves(params):
    engine = engine_for(params, slots=2, cache_bytes=0)
    requests = [engine.submit([n + 1] * 12, max_new_tokens=6) for n in range(7)]
    firsts = []
    for piece in engine.run():
        if piece.row not in firsts:
            firsts.append(piece.row)
    assert firsts == [request.id for request in requests]


def test_decoding_goes_on_while_a_long_prompt_is_read(params, alone):
    """Between two tokens of a running request at most `budget` prompt tokens are read."""
    engine = engine_for(params, cache_bytes=0, budget=16)
    running = engine.submit([3], max_new_tokens=20, sampling=Sampling(banned=_ends(params)))
    engine.step()
    long = engine.submit([4] * 70, max_new_tokens=2)
    steps_until_first = 0
    while not long.new_tokens:
        before = len(running.new_tokens)
        engine.step()
        steps_until_first += 1
        assert len(running.new_tokens) == before + 1
    # 70 tokens in chunks of 8, two for each step, and the last of them beside decoding.
    assert steps_until_first == 6


def test_free_slots_are_filled_before_the_first_decode_step(params, alone, monkeypatch):
    """While nothing runs each free slot has a chunk; a piece takes the smallest step that fits."""
    sizes, put = [], steps.put_pieces

    def spy(params, pieces, chunk, pictures):
        sizes.append((len(pieces[0]), chunk))
        return put(params, pieces, chunk, pictures)

    monkeypatch.setattr(steps, "put_pieces", spy)
    engine = engine_for(params, cache_bytes=0)
    prompts = [[1] * 3, [2] * 5, [3] * 16, [4] * 8, [5]]
    requests = [engine.submit(prompt, max_new_tokens=4) for prompt in prompts]
    assert {piece.row for piece in engine.step()} == {0, 1}
    assert sizes == [(3, 4), (5, 6), (8, 8)], "18 of 24 tokens, and the next 8 are too many"
    collections.deque(engine.run(), maxlen=0)
    assert sizes[3:] == [(8, 8), (8, 8), (1, 2)]
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.completion().tokens == alone(prompt, 4).tokens


def test_more_is_read_the_less_runs():
    settings = EngineSettings(slots=8, prefill_chunk=128)
    budgets = [settings.budget_for(running) for running in range(8)]
    assert budgets == [1024, 896, 384, 128, 128, 128, 128, 128]
    assert EngineSettings(budget=64).budget_for(0) == 64


def test_sizes_of_prefill_steps():
    assert buckets.parts(128, 4) == (32, 64, 96, 128)
    assert buckets.parts(10, 4) == (3, 5, 8, 10)
    assert buckets.parts(2, 4) == (1, 2) and buckets.parts(128, 1) == (128,)


def _ends(params):
    return params.config.eos_token_ids


def test_a_full_queue_refuses(params):
    engine = engine_for(params, queue=2)
    for _ in range(2):
        engine.submit([1], max_new_tokens=1)
    with pytest.raises(QueueFull, match="2 requests wait"):
        engine.submit([1], max_new_tokens=1)
    engine.step()
    late = engine.submit([1], max_new_tokens=1)
    collections.deque(engine.run(), maxlen=0)
    assert late.finish_reason in ("stop", "length")


def test_cancelling_wherever_a_request_is(params, alone):
    """Waiting, being read, running: it ends there, keeps what it has, and others go on."""
    engine = engine_for(params, slots=2)
    free = Sampling(banned=_ends(params))
    other = engine.submit([8, 9], max_new_tokens=20, sampling=free)
    running = engine.submit([1, 2, 3], max_new_tokens=20, sampling=free)
    while len(running.new_tokens) < 4:
        engine.step()
        poison(engine)
    engine.cancel(running)
    reading = engine.submit([4] * 40, max_new_tokens=3)
    waiting = engine.submit([5], max_new_tokens=3)
    engine.step()
    poison(engine)
    engine.cancel(reading)
    engine.cancel(waiting)
    engine.cancel(waiting)
    again = engine.submit([1, 2, 3, *running.new_tokens], max_new_tokens=5, sampling=free)
    for _ in engine.run():
        poison(engine)
    kept = running.completion()
    assert kept.finish_reason == "cancelled"
    assert kept.tokens == alone([1, 2, 3], 20, free).tokens[: len(kept.tokens)]
    for request in (reading, waiting):
        assert request.completion().tokens == () and request.finish_reason == "cancelled"
    assert other.completion().tokens == alone([8, 9], 20, free).tokens
    assert again.cached_tokens == len(again.tokens), "the cancelled request left its state"
    assert again.completion().tokens == alone(list(again.tokens), 5, free).tokens


def test_a_request_ends_at_its_deadline(params):
    clock = Clock()
    engine = engine_for(params, slots=1, clock=clock)
    free = Sampling(banned=_ends(params))
    running = engine.submit([1], max_new_tokens=50, sampling=free, timeout=10)
    waiting = engine.submit([2], max_new_tokens=50, sampling=free, timeout=5)
    patient = engine.submit([3], max_new_tokens=2)
    for now in (0, 2, 4, 6):
        clock.now = now
        engine.step()
    assert waiting.finish_reason == "timeout" and waiting.new_tokens == []
    assert not running.done
    clock.now = 10
    engine.step()
    assert running.finish_reason == "timeout" and len(running.new_tokens) == 4
    assert running.completion().timings.decode == 6
    collections.deque(engine.run(), maxlen=0)
    assert patient.finish_reason in ("stop", "length")


def test_an_error_ends_its_request_alone(params, alone, monkeypatch):
    """In decoding text, in reading a prompt, in keeping its state: the others don't notice."""
    free = Sampling(banned=_ends(params))
    tokens = alone([7, 7], 10, free).tokens
    mine = alone([1, 2, 3], 10, free).tokens
    broken = next(token for token in tokens[2:] if token not in mine)
    engine = engine_for(params, Letters([broken]), slots=2)
    piece = engine.batch.piece

    def failing(tokens, pictures):
        if 66 in tokens:
            raise MemoryError("no room for this prompt")
        return piece(tokens, pictures)

    monkeypatch.setattr(engine.batch, "piece", failing)
    well = engine.submit([1, 2, 3], max_new_tokens=10, sampling=free)
    undecodable = engine.submit([7, 7], max_new_tokens=10, sampling=free)
    unreadable = engine.submit([66], max_new_tokens=10)
    late = engine.submit([1, 2, 3], max_new_tokens=10, sampling=free)
    for _ in engine.run():
        poison(engine)
    assert undecodable.finish_reason == "error" and "decoded" in str(undecodable.error)
    assert isinstance(unreadable.error, MemoryError)
    assert well.completion().tokens == late.completion().tokens == mine
    with pytest.raises(MemoryError, match="no room"):
        list(engine.stream(engine.submit([66], max_new_tokens=1)))


@pytest.mark.parametrize("name", ["decode", "prefill"])
def test_the_engine_survives_a_failed_step_of_all_slots(params, alone, monkeypatch, name):
    """It ends those that run, and the one whose prompt is being read, or has been."""
    engine = engine_for(params, slots=2)
    free = Sampling(banned=_ends(params))
    lost = [engine.submit([n] * 12, max_new_tokens=9, sampling=free) for n in (1, 2, 5)]
    waiting = engine.submit([3, 4], max_new_tokens=9)
    for _ in range(4 if name == "prefill" else 5):  # prompts are read in two steps each
        engine.step()
    assert engine.running == lost[:2] and not waiting.done
    step = getattr(engine.batch, name)

    def failing(*arguments):
        monkeypatch.setattr(engine.batch, name, step)
        engine.batch.rows = None  # as when the state has been donated
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine.batch, name, failing)
    engine.step()
    assert [request.finish_reason for request in lost] == ["error"] * 3
    assert all("gone" in str(request.error) for request in lost)
    for _ in engine.run():
        poison(engine)
    assert waiting.completion().tokens == alone([3, 4], 9).tokens


def test_an_interrupt_leaves_an_engine_that_works(params, alone, monkeypatch):
    engine = engine_for(params, slots=2)
    lost = engine.submit([1], max_new_tokens=9)
    decode = engine.batch.decode

    def interrupted(tokens):
        monkeypatch.setattr(engine.batch, "decode", decode)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.batch, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert lost.finish_reason == "error"
    request = engine.submit([3, 4], max_new_tokens=9)
    list(engine.stream(request))
    assert request.completion().tokens == alone([3, 4], 9).tokens


def test_slots_grow_between_steps(params, alone):
    """A request that needs more room gets it, to the next power of two, and changes nobody."""
    engine = engine_for(params, capacity=16, max_capacity=CAPACITY)
    free = Sampling(banned=_ends(params))
    small = engine.submit([1, 2], max_new_tokens=14, sampling=free)
    for _ in range(4):
        engine.step()
    assert engine.batch.capacity == 16
    middle = engine.submit([3] * 20, max_new_tokens=8, sampling=free)
    engine.step()
    assert engine.batch.capacity == 32
    large = engine.submit([4] * 60, max_new_tokens=20, sampling=free)
    for _ in engine.run():
        poison(engine)
    assert engine.batch.capacity == CAPACITY, "never above the limit"
    for request in (small, middle, large):
        assert request.error is None
        expected = alone(list(request.tokens), request.max_new_tokens, free)
        assert request.completion().tokens == expected.tokens


def test_slots_grow_under_a_prompt_that_is_being_read(params, alone):
    """As when a saved conversation is loaded that is longer than the slots are."""
    known = [9, 8, 7, 6] * 10
    state = qwen35.init_state(params, batch=1, capacity=len(known))
    logits, state = qwen35.prefill(params, state, torch.tensor([known]))
    engine = engine_for(params, capacity=16, max_capacity=CAPACITY, budget=8)
    reading = engine.submit([4, 5, 6] * 4, max_new_tokens=4)
    engine.step()
    assert not any(engine.running), "a part of the prompt is still to be read"
    engine.adopt(known, state, logits)
    assert engine.batch.capacity == 64
    going_on = engine.submit([*known, 5], max_new_tokens=4)
    collections.deque(engine.run(), maxlen=0)
    assert reading.completion().tokens == alone([4, 5, 6] * 4, 4).tokens
    assert going_on.cached_tokens == len(known)
    assert going_on.completion().tokens == alone([*known, 5], 4).tokens


def test_log_probabilities(params):
    engine = engine_for(params, top_logprobs=3)
    sampling = Sampling(0.7, seed=2, logprobs=2)
    request = engine.submit([1, 2, 3], max_new_tokens=6, sampling=sampling)
    without = engine.submit([1, 2, 3], max_new_tokens=6)
    collections.deque(engine.run(), maxlen=0)
    [expected] = qwen35.generate(
        params, Letters(), [[1, 2, 3]], max_new_tokens=6, sampling=sampling, capacity=CAPACITY
    )
    result = request.completion()
    assert result.tokens == expected.tokens and without.completion().logprobs is None
    for ours, theirs in zip(result.logprobs, expected.logprobs, strict=True):
        assert ours.token == theirs.token
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]


def test_penalties_know_the_prompt(params, alone):
    """Also where the prompt comes out of the cache, and after another request in the slot."""
    likely = alone([1, 2, 3], 8, Sampling(banned=_ends(params))).tokens
    prompt = [*likely, 1, 2, 3]
    sampling = Sampling(repetition_penalty=50.0)
    expected = alone(prompt, 8, sampling).tokens
    assert expected != alone(prompt, 8).tokens and not set(expected) & set(prompt)
    engine = engine_for(params, slots=1)
    for settings in (sampling, Sampling(), sampling):
        request = engine.submit(prompt, max_new_tokens=8, sampling=settings)
        list(engine.stream(request))
        assert request.completion().tokens == alone(prompt, 8, settings).tokens


def test_a_thought_that_gets_too_long_is_closed(params, alone):
    """The closing tokens are put in and read as if the model had written them."""
    end, close = 40, (41, 40, 42)
    free = Sampling(banned=(*_ends(params), end))
    thought = alone([1, 2, 3], 5, free).tokens
    engine = engine_for(params)
    request = engine.submit(
        [1, 2, 3], max_new_tokens=14, sampling=free, thinking=ThinkingBudget(5, end, close)
    )
    short = engine.submit([1, 2, 3], max_new_tokens=5, sampling=free)
    collections.deque(engine.run(), maxlen=0)
    tokens = request.completion().tokens
    assert short.completion().tokens == thought
    assert tokens[:8] == (*thought, *close)
    after = alone([1, 2, 3, *thought, *close], 6, free).tokens
    assert tokens[8:] == after
    ended = alone([1, 2, 3], 14, free).tokens[2]
    early = engine.submit(
        [1, 2, 3], max_new_tokens=14, thinking=ThinkingBudget(5, ended, close), sampling=free
    )
    collections.deque(engine.run(), maxlen=0)
    assert early.completion().tokens == alone([1, 2, 3], 14, free).tokens


def inject(batch, name, failing):
    """Lets a method raise whenever `failing()`."""
    method = getattr(batch, name)

    def run(*arguments):
        if failing():
            raise RuntimeError(f"injected into {name}")
        return method(*arguments)

    setattr(batch, name, run)


def soak(params, count, seed):
    """Random requests, arrivals, cancellations, deadlines and injected errors; poisoned slots.

    Returns how they ended. Every one that has not been disturbed has the tokens that it gets
    alone, and a disturbed one the first of them.
    """
    rng = random.Random(seed)
    vocabulary = params.config.vocab_size
    clock = Clock()
    tokenizer = Letters([vocabulary - 3])
    engine = engine_for(
        params, tokenizer, slots=4, queue=6, clock=clock, budget=24, cache_bytes=3_000_000
    )
    for name, chance in (("prefill", 0.01), ("decode", 0.003)):  # of a prompt, and of all slots
        inject(engine.batch, name, lambda chance=chance: rng.random() < chance)
    whole, asked, live = {}, {}, []
    while count or not engine.idle:
        while count and rng.random() < 0.6:
            what = random_request(rng, vocabulary)
            timeout = rng.choice([None] * 8 + [rng.uniform(0, 30)])
            try:
                request = engine.submit(
                    what[0], max_new_tokens=what[1], sampling=what[2], timeout=timeout
                )
            except QueueFull:
                break
            asked[request] = what
            live.append(request)
            count -= 1
        engine.step()
        poison(engine)
        clock.now += 1
        live = [request for request in live if not request.done]
        if live and rng.random() < 0.1:
            engine.cancel(rng.choice(live))
    for request, what in asked.items():
        key = (tuple(what[0]), *what[1:])
        if key not in whole:
            [whole[key]] = qwen35.generate(
                params, Letters(), [what[0]], max_new_tokens=what[1], sampling=what[2],
                capacity=CAPACITY,
            )  # fmt: skip
        expected, tokens = whole[key], tuple(request.new_tokens)
        assert tokens == expected.tokens[: len(tokens)], (request.id, request.finish_reason)
        if request.finish_reason in ("stop", "length"):
            assert tokens == expected.tokens and request.text == expected.text
            if vocabulary - 3 not in tokens:
                check_stops(request, what[2])
        elif request.finish_reason == "error":
            assert vocabulary - 3 in tokens or "injected" in str(request.error)
    stats = engine.stats
    assert stats.bytes <= 3_000_000 and stats.evictions and stats.saved_tokens
    return collections.Counter(request.finish_reason for request in asked)


def test_soak(params):
    assert {"stop", "length", "cancelled"} <= set(soak(params, 60, seed=1))


@pytest.mark.slow
def test_long_soak(params):
    ends = soak(params, 2500, seed=2)
    assert ends.total() == 2500
    assert {"stop", "length", "cancelled", "timeout", "error"} == set(ends)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, ["at least one token"]),
        ([5, 99999], {}, ["99999", "vocabulary"]),
        ([1] * 90, {"max_new_tokens": 9}, ["90", "9 more", "99", str(CAPACITY)]),
        ([1], {"max_new_tokens": 0}, ["max_new_tokens", "0"]),
        ([1], {"sampling": Sampling(banned=[99999])}, ["banned", "99999"]),
        ([1], {"sampling": Sampling(logprobs=2)}, ["logprobs", "2", "top_logprobs", "0"]),
        (
            [1],
            {"sampling": Sampling(logprobs=0), "thinking": ThinkingBudget(1, 2, (2,))},
            ["thinking", "logprobs"],
        ),
        ([1], {"timeout": "x"}, ["timeout", "'x'"]),
        ([1], {"timeout": float("nan")}, ["timeout", "nan"]),
        ([1], {"timeout": -1}, ["timeout", "-1"]),
        ([1], {"boundaries": 5}, ["boundaries", "5"]),
        ([1], {"boundaries": "ab"}, ["boundaries", "'ab'"]),
        ([1], {"boundaries": ("a",)}, ["boundaries", "'a'"]),
        ([1], {"boundaries": (1.5,)}, ["boundaries", "1.5"]),
        ([1], {"sampling": {"seed": 1}}, ["sampling", "Sampling", "seed"]),
        ([1], {"template": 5}, ["template", "5"]),
        ([1], {"thinking": (1, 2, (3,))}, ["thinking", "ThinkingBudget", "(1, 2, (3,))"]),
        ([1], {"thinking": ThinkingBudget("x", 2, (2,))}, ["thinking.tokens", "'x'"]),
        ([1], {"thinking": ThinkingBudget(1, 2, 2)}, ["thinking.close", "2"]),
        ([1], {"thinking": ThinkingBudget(1, 2, (999,))}, ["thinking.close", "999"]),
        ([1], {"thinking": ThinkingBudget(1, 999, (2,))}, ["thinking.end", "999"]),
    ],
)
def test_bad_requests(params, prompt, options, words):
    engine = engine_for(params)
    with pytest.raises(ValueError) as error:
        engine.submit(prompt, **{"max_new_tokens": 1, **options})
    assert all(word in str(error.value) for word in words)
    assert engine.idle


def test_a_request_of_another_engine_is_refused(params):
    """Of the same number, so that cancelling it would end one of this engine's."""
    engines = [engine_for(params) for _ in range(2)]
    own, other = (engine.submit([1], max_new_tokens=2) for engine in engines)
    for misuse in (engines[0].cancel, lambda request: list(engines[0].stream(request))):
        with pytest.raises(ValueError, match="request 0 is not this engine's"):
            misuse(other)
    assert not own.done and not other.done


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slots": 0}, ["slots", "0"]),
        ({"capacity": -1}, ["capacity", "-1"]),
        ({"prefill_chunk": 1.5}, ["prefill_chunk", "1.5"]),
        ({"budget": 0}, ["budget", "0"]),
        ({"prefill_sizes": 0}, ["prefill_sizes", "0"]),
        ({"queue": "long"}, ["queue", "long"]),
        ({"cache_bytes": -1}, ["cache_bytes", "-1"]),
        ({"top_logprobs": -1}, ["top_logprobs", "-1"]),
        ({"top_logprobs": 999}, ["top_logprobs", "131", "999"]),
        ({"max_capacity": 0}, ["max_capacity", "0"]),
    ],
)
def test_bad_engines(params, options, words):
    with pytest.raises(ValueError) as error:
        engine_for(params, **options)
    assert all(word in str(error.value) for word in words)


def test_an_engine_of_a_rank_needs_the_others(params):
    split = params.with_runtime(mesh=Mesh(tp=2), rank=0)
    with pytest.raises(RuntimeError, match="torchrun --nproc-per-node 2"):
        engine_for(split)


def test_an_unfinished_request_has_no_completion(params):
    request = engine_for(params).submit([1], max_new_tokens=1)
    with pytest.raises(RuntimeError, match="still running"):
        request.completion()
