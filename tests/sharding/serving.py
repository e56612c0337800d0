"""An engine and many requests, on any ranks: arrivals, cancellations, hits, evictions."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import models
import torch

import qwen35
from qwen35 import Sampling
from qwen35.generation.request import Request
from qwen35.generation.thinking import ThinkingBudget

CAPACITY, LARGEST = 48, 96
STARTS = [[5, 9, 2, 77, 31, 8] * 3, [140, 3, 66, 12, 99, 1, 7, 7, 30]]


@dataclasses.dataclass
class Served:
    """What came of the requests, in their order.

    stats: of the prefix cache, without its bytes: ranks that share a KV head hold more in all.
    compiled: graphs compiled after warm-up, by our count and by torch-xla's.
    """

    ends: list[tuple[tuple[int, ...], str]]
    cached: list[int]
    logprobs: list[list[float]]
    stats: dict[str, int]
    compiled: tuple[int, int] = (0, 0)


def engine_for(params: qwen35.Params, **settings) -> qwen35.Engine:
    """An engine that meets the ends of chunks, of its cache and of its slots all the time."""
    usual = {"slots": 3, "capacity": CAPACITY, "prefill_chunk": 8, "prefill_sizes": 2}
    usual |= {"snapshot_every": 16, "top_logprobs": 2}
    return qwen35.Engine(params, models.Letters(), **usual | settings)


def asked(count: int, seed: int) -> Iterator[dict]:
    """Requests of all kinds; prompts often start alike."""
    rng = random.Random(seed)
    for _ in range(count):
        prompt = rng.choice([[], *STARTS])[: rng.choice([5, 16, 18])]
        prompt = prompt + [rng.randrange(160) for _ in range(rng.choice([1, 2, 7, 8, 15]))]
        sampling = rng.choice(
            [
                Sampling(),
                Sampling(1.0, seed=rng.randrange(5)),
                Sampling(0.8, seed=4, top_k=9, top_p=0.9, repetition_penalty=1.3),
                Sampling(presence_penalty=0.9, logit_bias={3: 1.0}, banned=[1, 2]),
                Sampling(logprobs=2),
            ]
        )
        thinking = None
        if sampling.logprobs is None and rng.random() < 0.3:
            thinking = ThinkingBudget(3, 150, (151, 150))
        new = rng.choice([1, 2, 5, 12])
        yield {
            "prompt": prompt, "max_new_tokens": new, "sampling": sampling, "thinking": thinking
        }  # fmt: skip


def serve(engine: qwen35.Engine, count: int, seed: int = 0) -> Served:
    """Runs requests that arrive at random between steps, some of them cancelled."""
    rng = random.Random(seed)
    requests: list[Request] = []
    waiting = list(asked(count, seed))
    while waiting or not engine.idle:
        for _ in range(rng.choice([0, 1, 3])):
            if waiting:
                requests.append(engine.submit(**waiting.pop(0)))
        engine.step()
        going = [request for request in requests if not request.done]
        if going and rng.random() < 0.05:
            engine.cancel(rng.choice(going))
    stats = dataclasses.asdict(engine.stats)
    del stats["bytes"]
    return Served(
        [(tuple(request.new_tokens), request.finish_reason) for request in requests],
        [request.cached_tokens for request in requests],
        [[entry.logprob for entry in request.logprobs] for request in requests],
        stats,
    )


def serve_warm(engine: qwen35.Engine, count: int, seed: int = 0) -> Served:
    """The same on XLA after a warm-up, and counts what is compiled nevertheless."""
    import torch_xla.debug.metrics as metrics

    def compilations() -> int:
        data = metrics.metric_data("CompileTime")
        return data[0] if data else 0

    engine.warm_up()
    # What torch-xla runs besides graphs of ours is the zeros of a new row.
    other = qwen35.Engine(
        engine.batch.params, models.Letters(), **dataclasses.asdict(engine.settings)
    )
    list(other.stream(other.submit([1], max_new_tokens=1)))
    before = engine.compile_count, compilations()
    served = serve(engine, count, seed)
    served.compiled = engine.compile_count - before[0], compilations() - before[1]
    return served


def grow(engine: qwen35.Engine) -> list[tuple[int, ...]]:
    """Requests that need more room than slots have, one of them while others run."""
    free = Sampling(banned=[3])
    requests = [engine.submit([1, 2], max_new_tokens=20, sampling=free)]
    for _ in range(4):
        engine.step()
    requests.append(engine.submit([4] * 60, max_new_tokens=20, sampling=free))
    requests.append(engine.submit([4] * 60, max_new_tokens=4, sampling=Sampling(1.0, seed=2)))
    for _ in engine.run():
        pass
    assert engine.batch.capacity == LARGEST
    return [tuple(request.new_tokens) for request in requests]


def see(engine: qwen35.Engine) -> list[tuple[tuple[int, ...], int]]:
    """Prompts with pictures, some of which the cache knows, and one of words: the tokens, and how
    many of each prompt's came out of the cache."""
    config, free = engine.batch.params.config, Sampling(banned=[3])
    words, other = [7, 8, 9, 77, 31, 8, 20, 21, 22, 23], [7, 8, 9, 40]
    prompts = [models.picture_prompt(config, *how) for how in ((words, 1), (other, 1), (words, 2))]
    how = {"max_new_tokens": 5, "sampling": free, "boundaries": (2, 8)}  # around the picture
    first = engine.submit(prompts[0], **how)
    list(engine.stream(first))
    later = [engine.submit(prompt, **how) for prompt in (*prompts, words)]
    for _ in engine.run():
        pass
    return [(tuple(request.new_tokens), request.cached_tokens) for request in (first, *later)]


@torch.no_grad()
def check_likeliest(path: Path, count: int, served: Served, seed: int = 0) -> None:
    """Where the likeliest token was asked for, transformers finds none likelier, but for rounding.

    Args:
        path: the checkpoint.
        count, seed: of the requests.
    """
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    checked = 0
    for one, (tokens, _) in zip(asked(count, seed), served.ends, strict=True):
        plain = one["sampling"] in (Sampling(), Sampling(logprobs=2))
        if not plain or one["thinking"] or not tokens:
            continue
        read = torch.tensor([[*one["prompt"], *tokens]])
        logits = theirs(read).logits[0, len(one["prompt"]) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (logits.max(-1).values - chosen).max() < 1e-4
        checked += len(tokens)
    assert checked > 10
