#!/usr/bin/env python
"""Reckons which share of the ideal an order of steps can reach, from the times of single steps.

    scripts/reckon_order.py [--fixed 0.22] [--token 0.007] [--decode 0.19] [--beside 0.07]

The load is that of `qwen35 bench throughput`: 24 requests of 32 to 128 + 8 to 32 tokens that all
wait from the beginning, for 8 slots. Each order takes prompts first come, first served, unless it
says otherwise. Nothing is padded, and reading several prompts in one step costs no more than
reading one of their length: what an order reaches here, no engine that keeps it exceeds.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import deque
from typing import NamedTuple

REQUESTS, SLOTS, PROMPT, NEW = 24, 8, 128, 32


class Seconds(NamedTuple):
    """Of steps: one that reads a prompt takes `fixed`, `token` for each of its tokens, and `beside`
    if it also decodes all slots; one that only decodes them takes `decode`."""

    fixed: float
    token: float
    decode: float
    beside: float


class Order(NamedTuple):
    """How prompts are read.

    pack: at most so many in a step. ahead: so many may be read before a slot is free. beside:
    whether those that run are decoded in every step, also while slots stay empty. longest: whether
    requests with the most new tokens go first, whatever came first.
    """

    name: str
    pack: int = 1
    ahead: int = 1
    beside: bool = False
    longest: bool = False


ORDERS = (
    Order("one prompt a step, one ahead (as this engine)"),
    Order("and beside others while slots are empty", beside=True),
    Order("two prompts a step, two ahead", pack=2, ahead=2),
    Order("four prompts a step, four ahead", pack=4, ahead=4),
    Order("four, and beside others while slots are empty", pack=4, ahead=4, beside=True),
    Order("eight, eight ahead", pack=8, ahead=8),
    Order("two, and the longest answers first", pack=2, ahead=2, beside=True, longest=True),
)


def drawn(seed: int) -> list[tuple[int, int]]:
    """Draws the tokens of each request's prompt and answer, as the benchmark does."""
    source = random.Random(seed)
    prompts = [source.randint(PROMPT // 4, PROMPT) for _ in range(REQUESTS)]
    return list(zip(prompts, [source.randint(NEW // 4, NEW) for _ in range(REQUESTS)], strict=True))


def ideal(load: list[tuple[int, int]], seconds: Seconds) -> float:
    """Reckons the time of all prompts in steps of 512, and of all later tokens in full slots."""
    read = sum(prompt for prompt, _ in load) * (seconds.token + seconds.fixed / 512)
    return read + sum(new - 1 for _, new in load) * seconds.decode / SLOTS


def taken(load: list[tuple[int, int]], order: Order, seconds: Seconds) -> float:
    """Reckons the time of a load in an order."""
    waiting = deque(sorted(load, key=lambda one: -one[1]) if order.longest else load)
    ready: deque[int] = deque()  # what those whose prompts are read have still to decode
    running: list[int] = []
    time = 0.0
    while waiting or ready or running:
        while ready and len(running) < SLOTS:
            running.append(ready.popleft())
        room = SLOTS - len(running) - len(ready) + order.ahead
        prompts = [waiting.popleft() for _ in range(min(order.pack, room, len(waiting)))]
        filling = bool(prompts) and bool(waiting) and len(running) + 1 < SLOTS
        decodes = bool(running) and (order.beside or not filling)
        if prompts:
            time += seconds.fixed + seconds.token * sum(prompt for prompt, _ in prompts)
            time += seconds.beside * decodes
            ready.extend(new - 1 for _, new in prompts)
        else:
            time += seconds.decode
        if decodes:
            running = [left - 1 for left in running if left > 1]
    return time


def main() -> int:
    """Parses the command line, prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fixed", type=float, default=0.22, help="s of a step that reads a prompt")
    parser.add_argument("--token", type=float, default=0.007, help="s for each of its tokens")
    parser.add_argument("--decode", type=float, default=0.19, help="s of a step that only decodes")
    parser.add_argument("--beside", type=float, default=0.07, help="s to decode beside a prompt")
    parser.add_argument("--seeds", type=int, default=20, help="loads to take the mean of")
    options = parser.parse_args()
    seconds = Seconds(options.fixed, options.token, options.decode, options.beside)
    print("| order | share of the ideal, mean | least | greatest |\n|---|---|---|---|")
    for order in ORDERS:
        loads = [drawn(seed) for seed in range(options.seeds)]
        shares = [ideal(load, seconds) / taken(load, order, seconds) for load in loads]
        mean = sum(shares) / len(shares)
        print(f"| {order.name} | {mean:.2f} | {min(shares):.2f} | {max(shares):.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
