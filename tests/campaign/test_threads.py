"""Calls from several threads at once, drawn at random: values are those of each alone.

Threads share compiled functions and compile new ones meanwhile, with static values that are equal
and are not the same, and donate what they go on with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from oracle import Fault

import qwen35

STATIC = (0.0, -0.0, 1, True, 1.0, 2, "a", None, (1, 2.0), (1.0, 2))
SECONDS = 300  # after which a thread hangs, on a machine that has others to serve


def scaled(x: torch.Tensor, how: Any) -> tuple[torch.Tensor, Any]:
    """Of `how` both what it is and its sign show in the result."""
    number = how[0] if isinstance(how, tuple) else how
    number = 3 if isinstance(number, str) or number is None else number
    return x * number + 1 / torch.tensor(float(number) or 1.0).to(x), repr(how)


def stepped(state: dict[str, torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"sum": state["sum"] + x, "count": state["count"] + 1}


def factor(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.sin(x) * number


def same(found: Any, wanted: torch.Tensor) -> None:
    found = qwen35.device_put(found, "cpu")
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-5, atol=1e-6):
        raise Fault(f"{found.tolist()} instead of {wanted.tolist()}")


def work(draw: Any, shared: dict[str, Any], steps: int) -> None:
    """What a thread does: a row of calls, each compared with the same in eager torch."""
    state = {"sum": torch.zeros(3), "count": torch.zeros(())}
    here = qwen35.device_put({name: leaf.clone() for name, leaf in state.items()}, "xla")
    for _ in range(steps):
        x = torch.tensor([draw.uniform(-9, 9) for _ in range(draw.choice((1, 3, 3, 4)))])
        on_xla = qwen35.device_put(x.clone(), "xla")
        what = draw.randrange(4)
        if what == 0:
            how = draw.choice(STATIC)
            value, static = shared["scaled"](on_xla, how)
            same(value, scaled(x, how)[0])
            if static != repr(how):
                raise Fault(f"{static} for {how!r}")
        elif what == 1 and len(x) == 3:
            here, old = shared["stepped"](here, on_xla), here
            state = stepped(state, x)
            same(here["sum"], state["sum"])
            same(here["count"], state["count"])
            try:
                same(old["sum"], state["sum"])
            except RuntimeError as error:
                if "donated" not in str(error):
                    raise
            else:
                raise Fault("what was donated is there")
        elif what == 2:
            number = draw.uniform(1, 2)
            same(qwen35.jit(factor(number))(on_xla), factor(number)(x))
        else:
            copies = [qwen35.device_put(qwen35.device_put(x, "xla"), "cpu") for _ in range(3)]
            same(copies[-1], x)


def noted(errors: list[Exception], *arguments: Any) -> None:
    """Works, and notes what is wrong."""
    try:
        work(*arguments)
    except Exception as error:
        errors.append(error)


def test_calls_from_threads(campaign):
    shared = {
        "scaled": qwen35.jit(scaled),
        "stepped": qwen35.jit(stepped, donate=("state",)),
    }
    for number in campaign.numbers("programs of threads"):
        draws = [campaign.random(1000 * number + n) for n in range(2 + number % 4)]
        errors: list[Exception] = []
        running = [
            threading.Thread(target=noted, args=(errors, draw, shared, 12), daemon=True)
            for draw in draws
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(SECONDS)
        if any(thread.is_alive() for thread in running):
            errors.append(Fault(f"a thread hangs for {SECONDS} s"))
        for error in errors:
            campaign.findings.add(error, lambda number=number: f"program {number}")
