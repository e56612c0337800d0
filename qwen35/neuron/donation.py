"""Step: a thousand donated steps take no more memory than a hundred."""

from __future__ import annotations

import torch

from ..bench.machine import anonymous_memory
from ..files.checkpoint import load
from ..model.decoder import decode
from ..model.params import Params
from ..model.state import State, init_state
from ..xla.devices import device_put
from ..xla.jit import jit
from .machine import device_memory_used
from .model import demo_of
from .outcomes import Tests
from .steps import Settings

STEPS = 1000
EVERY = 50  # steps between two looks
SETTLED = 4  # looks until whatever is made once is there
HOST, DEVICE = 48e6, 4e6  # bytes: a state that is kept takes a megabyte a step


def following(params: Params, state: State, token: torch.Tensor) -> tuple[torch.Tensor, State]:
    """Decodes greedily: the next token and the new state."""
    logits, state = decode(params, state, token)
    return logits.argmax(-1).int(), state


def measure(settings: Settings) -> dict:
    """Runs the step."""
    directory = demo_of(settings)
    params = load(directory, dtype="float32", device="xla")
    step = jit(following, donate=("state",))
    state = init_state(params, 1, STEPS + 1)
    token = device_put(torch.zeros(1, dtype=torch.int32), "xla")
    host, device = [], []
    for number in range(1, STEPS + 1):
        token, state = step(params, state, token)
        if number % EVERY == 0:
            token.cpu()  # waits for all that was started
            host.append(anonymous_memory())
            device.append(device_memory_used())
    tests = Tests()
    tests.within("growth of the host's memory, bytes", HOST, lambda: _growth(host))
    known = [value for value in device if value is not None]
    if len(known) == len(device):
        tests.within("growth of the device's memory, bytes", DEVICE, lambda: _growth(known))
    tests.equal("one compilation", lambda: _more_than_one(step.compile_count))
    tests.equal("position after all steps", lambda: _position(int(state.position.cpu())))
    return tests.outcome(host_bytes=host, device_bytes=known)


def _growth(looks: list[int]) -> float:
    return float(max(looks[SETTLED:]) - looks[SETTLED - 1])


def _more_than_one(count: int) -> str:
    return "" if count == 1 else f"{count} compilations"


def _position(position: int) -> str:
    return "" if position == STEPS else f"{position}, not {STEPS}"
