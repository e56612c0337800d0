"""The engine at work: tokens per second over slots, under arrivals, and what the cache saves."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..generation import steps
from ..generation.engine import Engine
from ..generation.engine_settings import PREFILL_CHUNK
from ..generation.request import Request
from ..generation.sampling_settings import Sampling
from ..model.params import Params
from ..prompts.tokenizer import Tokenizer
from ..xla.devices import device_put
from .leading import lead, timed_steps
from .placement import Placement, finish, meet
from .statistics import median, poisson_arrivals, quantile, ratio

TURN = 8  # steps
_PREFILLS = (PREFILL_CHUNK, 4 * PREFILL_CHUNK)  # tokens; which is the best depends on the machine


@dataclass(frozen=True)
class SlotRate:
    """Tokens per second while all slots are busy, and the rate over that of the fewest slots."""

    slots: int
    tokens_per_second: float
    speedup: float


@dataclass(frozen=True)
class SlotRates:
    """Engines of several slots, in the order in which they were asked for."""

    engines: tuple[SlotRate, ...]


def measure_slots(
    model: str,
    slots: Sequence[int],
    prompt: int,
    steps: int,
    place: Placement = Placement(),
) -> SlotRates:
    """Measures tokens per second while all slots are busy, medians over turns.

    Engines of so many slots take a few steps each in turn, so that a machine whose speed wanders
    treats them alike.

    Args:
        model: a checkpoint directory.
        slots: of the engines; speed-ups are over the first.
        prompt: tokens of each request's.
        steps: that are timed.
        place: where the model is.
    """
    params, tokenizer = load_endless(model, place)
    engines = [busy_engine(params, tokenizer, count, prompt, steps) for count in slots]
    turns = []
    for start in range(0, steps, TURN):
        turns.append([_rate(engine, min(TURN, steps - start)) for engine in engines])
    return SlotRates(
        tuple(
            SlotRate(
                count,
                median(rates[number] for rates in turns),
                median(rates[number] / rates[0] for rates in turns),
            )
            for number, count in enumerate(slots)
        )
    )


def busy_engine(
    params: Params,
    tokenizer: Tokenizer,
    slots: int,
    prompt: int,
    steps: int,
    sampling: Sampling = Sampling(),
) -> Engine:
    """Makes an engine with a request in every slot, each with all timed steps before it."""
    # The first must not end before the last has begun, at most a step for each chunk later.
    new_tokens = steps + 2 + slots * -(-prompt // PREFILL_CHUNK)
    engine = Engine(params, tokenizer, slots=slots, capacity=prompt + new_tokens, cache_bytes=0)
    prompts = _prompts(params, slots, prompt)

    def fill() -> None:
        requests = [
            engine.submit(prompt, max_new_tokens=new_tokens, sampling=sampling)
            for prompt in prompts
        ]
        while None in engine.running:  # compiles on the way
            engine.step()
            _raise_errors(requests)
        engine.step()

    lead(engine, fill)
    return engine


def _rate(engine: Engine, steps: int) -> float:
    """Measures tokens per second over some steps."""
    step = timed_steps(engine, steps)
    if step.tokens != len(engine.running):
        raise RuntimeError(f"{step.tokens:g} tokens in a step: not all slots were busy")
    return step.tokens / step.seconds


@dataclass(frozen=True)
class LoadTimes:
    """The engine under arrivals at a share of its most requests per second.

    Attributes:
        load: "saturated", all at once, or the share.
        ttft_p50, ttft_p95: seconds to the first token since the arrival.
        tpot_p50, tpot_p95: seconds per later token of a request; None where none has two.
        compilations: after warm-up.
    """

    load: str
    requests_per_second: float
    tokens_per_second: float
    compilations: int
    ttft_p50: float
    ttft_p95: float
    tpot_p50: float | None
    tpot_p95: float | None


@dataclass(frozen=True)
class Arrivals:
    """The saturated engine first, then each share.

    Attributes:
        loads: one for each.
        prefill_rate: prompt tokens per second of the best prefill step.
        decode_rate: tokens per second while all slots are busy.
        share_of_ideal: the time that the saturated engine's prompts and later tokens take at those
            rates, over the time that they took.
    """

    loads: tuple[LoadTimes, ...]
    prefill_rate: float
    decode_rate: float
    share_of_ideal: float


def measure_arrivals(
    model: str,
    slots: int,
    requests: int,
    prompt: int,
    new_tokens: int,
    shares: Sequence[float],
    seed: int,
    place: Placement = Placement(),
) -> Arrivals:
    """Serves requests that arrive at random, independent of each other.

    All of them are first submitted at once: that gives the most requests per second. Then they
    arrive at shares of that rate.

    Args:
        model: a checkpoint directory.
        slots: of the engine.
        requests: how many.
        prompt, new_tokens: the most tokens of each, drawn from a quarter of it up.
        shares: of the most requests per second.
        seed: of lengths and arrivals.
        place: where the model is.
    """
    params, tokenizer = load_endless(model, place)
    source = random.Random(seed)

    def drawn(most: int) -> int:
        return source.randint(max(1, most // 4), most)

    lengths = [drawn(prompt) for _ in range(requests)]
    wanted = [drawn(new_tokens) for _ in range(requests)]
    prompts = [row for length in lengths for row in _prompts(params, 1, length, source)]
    work = list(zip(prompts, wanted, strict=True))

    def engine() -> Engine:
        return Engine(params, tokenizer, slots=slots, capacity=prompt + new_tokens, queue=requests)

    first = engine()
    lead(first, first.warm_up)
    before = _rates(params, tokenizer, slots)
    loads = [_serve("saturated", engine(), work, [0.0] * len(work))]
    after = _rates(params, tokenizer, slots)  # a machine's speed wanders
    prefill_rate, decode_rate = (sum(pair) / 2 for pair in zip(before, after, strict=True))
    # The first token of each comes with its prompt.
    ideal = sum(lengths) / prefill_rate + (sum(wanted) - requests) / decode_rate
    for share in shares:
        times = poisson_arrivals(share * loads[0].requests_per_second, len(work), seed)
        loads.append(_serve(f"{share:g}", engine(), work, times))
    share_of_ideal = ideal * loads[0].requests_per_second / requests
    return Arrivals(tuple(loads), prefill_rate, decode_rate, share_of_ideal)


def _rates(params: Params, tokenizer: Tokenizer, slots: int) -> tuple[float, float]:
    """Measures prompt tokens per second of the best prefill step, and tokens per second while all
    slots are busy."""
    prefill = max(_prefill_rate(params, tokens) for tokens in _PREFILLS)
    return prefill, _rate(busy_engine(params, tokenizer, slots, 32, TURN), TURN)


def _prefill_rate(params: Params, tokens: int) -> float:
    whole = torch.zeros(1, tokens).long(), torch.tensor([tokens])
    ids, length = device_put(whole, params.device.type)
    seconds = []
    for _ in range(3):  # the first compiles, or finds the machine cold
        rows = steps.blank(params, 1, max(_PREFILLS))
        meet(params)
        start = time.perf_counter()
        steps.prefill(params, rows, ids, length, None, None)
        finish(params)
        seconds.append(time.perf_counter() - start)
    return tokens / min(seconds)


@dataclass(frozen=True)
class PrefixTimes:
    """Seconds to the first token of a prompt that begins as an earlier one did.

    Attributes:
        ttft_off: without a cache.
        ttft_cold: with one that is empty.
        ttft_warm: after a prompt with the same prefix and another suffix.
        ttft_same: after the same prompt.
        speedup_warm, speedup_same: the cold one's time over these.
        saved_tokens: of the warm one, those that came out of the cache.
    """

    ttft_off: float
    ttft_cold: float
    ttft_warm: float
    ttft_same: float
    speedup_warm: float
    speedup_same: float
    saved_tokens: int


def measure_prefix(
    model: str,
    prefix: int,
    suffix: int,
    repeats: int,
    place: Placement = Placement(),
) -> PrefixTimes:
    """Measures what the prefix cache saves.

    Args:
        model: a checkpoint directory.
        prefix, suffix: tokens that prompts share, and that follow.
        repeats: prefixes that are timed.
        place: where the model is.
    """
    params, tokenizer = load_endless(model, place)
    capacity = prefix + suffix + 1
    without = Engine(params, tokenizer, slots=1, capacity=capacity, cache_bytes=0)
    engine = Engine(params, tokenizer, slots=1, capacity=capacity)
    lead(engine, engine.warm_up)
    source = random.Random(0)
    for one in (without, engine):  # a first prompt takes longer than any later one
        _first_token(one, _prompts(params, 1, suffix, source)[0])
    off, cold, warm, same = [], [], [], []
    for _ in range(repeats):
        [shared], ends = _prompts(params, 1, prefix, source), _prompts(params, 2, suffix, source)
        first, second = ([*shared, *end] for end in ends)
        off.append(_first_token(without, first, prefix)[0])
        cold.append(_first_token(engine, first, prefix)[0])
        seconds, saved = _first_token(engine, second, prefix)
        warm.append(seconds)
        same.append(_first_token(engine, second, prefix)[0])
    return PrefixTimes(
        median(off),
        median(cold),
        median(warm),
        median(same),
        speedup_warm=ratio(warm, cold),
        speedup_same=ratio(same, cold),
        saved_tokens=saved,
    )


def _first_token(engine: Engine, prompt: list[int], boundary: int = 0) -> tuple[float, int]:
    """Runs a request for one token; returns its seconds, and tokens that came out of the cache."""
    boundaries = (boundary,) if boundary else ()

    def run() -> tuple[float, int]:
        request = engine.submit(prompt, max_new_tokens=1, boundaries=boundaries)
        for _ in engine.run():
            pass
        _raise_errors([request])
        return request.first - request.submitted, request.cached_tokens

    return lead(engine, run)


def _serve(
    load: str, engine: Engine, work: list[tuple[list[int], int]], times: list[float]
) -> LoadTimes:
    """Submits each request when its time has come, and runs the engine until all are done."""
    return lead(engine, lambda: _serve_here(load, engine, work, times))


def _serve_here(
    load: str, engine: Engine, work: list[tuple[list[int], int]], times: list[float]
) -> LoadTimes:
    compiled = engine.compile_count
    requests: list[Request] = []
    due: list[float] = []
    start = time.perf_counter()
    while len(requests) < len(work) or not engine.idle:
        now = time.perf_counter() - start
        while len(requests) < len(work) and times[len(requests)] <= now:
            prompt, new_tokens = work[len(requests)]
            due.append(start + times[len(requests)])
            requests.append(engine.submit(prompt, max_new_tokens=new_tokens))
        if engine.idle:
            time.sleep(max(0.0, times[len(requests)] - now))
        else:
            engine.step()
    _raise_errors(requests)
    end = max(request.last for request in requests)
    first = [request.first - at for request, at in zip(requests, due, strict=True)]
    later = [
        (request.last - request.first) / (len(request.new_tokens) - 1)
        for request in requests
        if len(request.new_tokens) > 1
    ]
    return LoadTimes(
        load,
        requests_per_second=len(requests) / (end - start),
        tokens_per_second=sum(len(r.new_tokens) for r in requests) / (end - start),
        compilations=engine.compile_count - compiled,
        ttft_p50=quantile(first, 0.5),
        ttft_p95=quantile(first, 0.95),
        tpot_p50=quantile(later, 0.5),
        tpot_p95=quantile(later, 0.95),
    )


def _raise_errors(requests: list[Request]) -> None:
    """Raises the error of a request that failed: the engine goes on, a measurement must not."""
    for request in requests:
        if request.error is not None:
            raise request.error


def load_endless(directory: str, place: Placement) -> tuple[Params, Tokenizer]:
    """Loads parameters and the tokenizer of a checkpoint, both without end tokens: how much there
    is to do must not depend on what the model writes."""
    params = place.load(directory, place.start())
    config = dataclasses.replace(params.config, eos_token_id=None)
    hf = Tokenizer.from_pretrained(directory).hf
    return dataclasses.replace(params, config=config), Tokenizer(hf)


def _prompts(
    params: Params, count: int, length: int, source: random.Random | None = None
) -> list[list[int]]:
    """Draws prompts of random tokens, none of them a placeholder of a picture."""
    source, config = source or random.Random(0), params.config
    placeholders = {config.image_token_id, config.video_token_id}
    words = [token for token in range(config.vocab_size) if token not in placeholders]
    return [source.choices(words, k=length) for _ in range(count)]
