"""The engine at work: tokens per second over slots, under arrivals, and what the cache saves."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Mapping
from typing import Any

from ..files.checkpoint import load
from ..generation.engine import PREFILL_CHUNK, Engine
from ..generation.request import Request
from ..model.params import Params
from ..prompts.tokenizer import Tokenizer
from ..xla.devices import wait_for_device
from .statistics import median, percentile, poisson_arrivals

_TURN = 8  # steps


def batches(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens per second while all slots are busy.

    Engines of so many slots take a few steps each in turn, so that a machine whose speed wanders
    treats them alike.

    Args:
        settings: `model`; `slots`, a list; `prompt`, tokens of each; `steps` that are timed.

    Returns:
        `rate_N` for N slots, and `speedup_N` over the first of them: medians over the turns.
    """
    params, tokenizer = _load(settings["model"])
    engines = [_busy_engine(params, tokenizer, slots, settings) for slots in settings["slots"]]
    turns = []
    for start in range(0, settings["steps"], _TURN):
        steps = min(_TURN, settings["steps"] - start)
        turns.append([_rate(engine, steps) for engine in engines])
    result: dict[str, Any] = {}
    for number, slots in enumerate(settings["slots"]):
        result[f"rate_{slots}"] = median(rates[number] for rates in turns)
        result[f"speedup_{slots}"] = median(rates[number] / rates[0] for rates in turns)
    return result


def _busy_engine(
    params: Params, tokenizer: Tokenizer, slots: int, settings: Mapping[str, Any]
) -> Engine:
    """An engine with a request in every slot, each with all timed steps before it."""
    # The first must not end before the last has begun, a step for each chunk of a prompt later.
    new_tokens = settings["steps"] + 2 + slots * -(-settings["prompt"] // PREFILL_CHUNK)
    engine = Engine(
        params, tokenizer, slots=slots, capacity=settings["prompt"] + new_tokens, cache_bytes=0
    )
    prompts = _prompts(params, slots, settings["prompt"])
    requests = [engine.submit(prompt, max_new_tokens=new_tokens) for prompt in prompts]
    while None in engine.running:  # compiles on the way
        engine.step()
        _raise_errors(requests)
    engine.step()
    return engine


def _rate(engine: Engine, steps: int) -> float:
    """Tokens per second over some steps, the last one's work on the device included."""
    wait_for_device()
    start = time.perf_counter()
    tokens = sum(len(engine.step()) for _ in range(steps))
    wait_for_device()
    seconds = time.perf_counter() - start
    if tokens != steps * len(engine.running):
        raise RuntimeError(f"{tokens} tokens in {steps} steps: not all slots were busy")
    return tokens / seconds


def arrivals(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Requests that arrive at random, independent of each other.

    All of them are first submitted at once: that gives the most requests per second. Then they
    arrive at shares of that rate.

    Args:
        settings: `model`; `slots`; `requests`, how many; `prompt` and `new_tokens`, the most of
            each, drawn from a quarter of it up; `shares`; `seed`.

    Returns:
        `saturated` and by share `load_S`, each with `requests_per_second`, `tokens_per_second`,
        seconds to the first token since the arrival at P50 and P95 (`ttft_p50`, `ttft_p95`), per
        later token of a request (`tpot_p50`, `tpot_p95`), and `compilations` after warm-up.
    """
    params, tokenizer = _load(settings["model"])
    source = random.Random(settings["seed"])

    def drawn(most: int) -> int:
        return source.randint(max(1, most // 4), most)

    lengths = [drawn(settings["prompt"]) for _ in range(settings["requests"])]
    wanted = [drawn(settings["new_tokens"]) for _ in range(settings["requests"])]
    prompts = [prompt for n in lengths for prompt in _prompts(params, 1, n, source)]
    work = list(zip(prompts, wanted, strict=True))

    def engine() -> Engine:
        return Engine(
            params,
            tokenizer,
            slots=settings["slots"],
            capacity=settings["prompt"] + settings["new_tokens"],
            queue=settings["requests"],
        )

    engine().warm_up()
    result = {"saturated": _serve(engine(), work, [0.0] * len(work))}
    most = result["saturated"]["requests_per_second"]
    for share in settings["shares"]:
        times = poisson_arrivals(share * most, len(work), settings["seed"])
        result[f"load_{share:g}"] = _serve(engine(), work, times)
    return result


def prefix(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds to the first token of a prompt that begins as an earlier one did.

    Args:
        settings: `model`; `prefix` and `suffix`, tokens; `repeats`.

    Returns:
        `ttft_off` without a cache, `ttft_cold` with one that knows nothing, `ttft_warm` after a
        prompt with the same prefix and another suffix, `ttft_same` after the same prompt;
        `speedup_warm` and `speedup_same`, cold over these; `saved_tokens` of the warm one.
    """
    params, tokenizer = _load(settings["model"])
    length, rest = settings["prefix"], settings["suffix"]
    engines = {
        name: Engine(params, tokenizer, slots=1, capacity=length + rest + 1, **options)
        for name, options in (("off", {"cache_bytes": 0}), ("on", {}))
    }
    engines["on"].warm_up()
    source = random.Random(0)
    for engine in engines.values():  # a first prompt takes longer than any later one
        [prompt] = _prompts(params, 1, rest, source)
        engine.submit(prompt, max_new_tokens=1)
        for _ in engine.run():
            pass
    times: dict[str, list[float]] = {name: [] for name in ("off", "cold", "warm", "same")}
    for _ in range(settings["repeats"]):
        [shared], ends = _prompts(params, 1, length, source), _prompts(params, 2, rest, source)
        first, second = ([*shared, *end] for end in ends)
        for name, prompt in (("off", first), ("cold", first), ("warm", second), ("same", second)):
            engine = engines["off" if name == "off" else "on"]
            request = engine.submit(prompt, max_new_tokens=1, boundaries=(length,))
            for _ in engine.run():
                pass
            _raise_errors([request])
            times[name].append(request.first - request.submitted)
            if name == "warm":
                saved = request.cached_tokens
    result = {f"ttft_{name}": median(values) for name, values in times.items()}
    for name in ("warm", "same"):
        pairs = zip(times["cold"], times[name], strict=True)
        result[f"speedup_{name}"] = median(cold / hit for cold, hit in pairs)
    return result | {"saved_tokens": saved}


def _serve(
    engine: Engine, work: list[tuple[list[int], int]], times: list[float]
) -> dict[str, float]:
    """Submits each request when its time has come, and runs the engine until all are done."""
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
    result = {
        "requests_per_second": len(requests) / (end - start),
        "tokens_per_second": sum(len(r.new_tokens) for r in requests) / (end - start),
        "compilations": engine.compile_count - compiled,
    }
    for name, values in (("ttft", first), ("tpot", later)):
        result |= {f"{name}_p{p}": percentile(values, p / 100) for p in (50, 95)}
    return result


def _raise_errors(requests: list[Request]) -> None:
    """The engine goes on when a request fails; a measurement of it must not."""
    for request in requests:
        if request.error is not None:
            raise request.error


def _load(directory: str) -> tuple[Params, Tokenizer]:
    """Parameters on the device and the tokenizer, both without end tokens: how much there is to do
    must not depend on what the model says."""
    params = load(directory, device="xla", check_finite=False, vision=False)
    config = dataclasses.replace(params.config, eos_token_id=None)
    hf = Tokenizer.from_pretrained(directory).hf
    return dataclasses.replace(params, config=config), Tokenizer(hf)


def _prompts(
    params: Params, count: int, length: int, source: random.Random | None = None
) -> list[list[int]]:
    """Prompts of random tokens, none of them a place for a picture."""
    source, config = source or random.Random(0), params.config
    places = {config.image_token_id, config.video_token_id}
    words = [token for token in range(config.vocab_size) if token not in places]
    return [source.choices(words, k=length) for _ in range(count)]
