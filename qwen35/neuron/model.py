"""Step: the whole model on the demo checkpoint, against plain torch on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from ..files.checkpoint import load
from ..generation.generate import generate
from ..model.decoder import prefill
from ..model.params import Params
from ..model.state import init_state
from ..prompts.tokenizer import Tokenizer
from ..xla.devices import device_put
from ..xla.jit import jit
from ..xla.observers import on_compile
from .outcomes import Tests
from .steps import AbsentError, Settings

TOKENS = 48
LOGITS = 1e-3  # of the largest logit, in float32


def measure(settings: Settings) -> dict:
    """Runs the step."""
    directory = demo_of(settings)
    tokenizer = Tokenizer.from_pretrained(directory)
    prompts = prompts_of(directory)
    host = load(directory, dtype="float32", device="cpu")
    expected = generate(host, tokenizer, prompts, max_new_tokens=TOKENS)
    tests = Tests()
    device = load(directory, dtype="float32", device="xla")
    seconds = {}
    for name, kernels in (("portable", "portable"), ("kernels", "auto")):
        params = device.with_runtime(kernels=kernels)

        def differing(params: Params = params) -> str:
            found = generate(params, tokenizer, prompts, max_new_tokens=TOKENS)
            return differences(prompts, [c.tokens for c in expected], [c.tokens for c in found])

        with on_compile() as compiled:
            ids = tokenizer.encode(prompts[0])
            tests.within(
                f"logits of a prompt, {name}", LOGITS,
                lambda params=params, ids=ids: logits_error(host, params, ids),
            )  # fmt: skip
            tests.equal(f"{TOKENS} greedy tokens of {len(prompts)} prompts, {name}", differing)
        seconds[name] = compiled.seconds
    return tests.outcome(compile_seconds=seconds)


def demo_of(settings: Settings) -> str:
    """Returns the demo's directory.

    Raises:
        AbsentError: it is not there.
    """
    if settings.demo is None:
        raise AbsentError("the demo checkpoint is not here: run this in the repository's clone")
    return settings.demo


def prompts_of(directory: str) -> list[str]:
    """Returns the demo's prompts."""
    return (Path(directory) / "prompts.txt").read_text(encoding="utf-8").splitlines()


def logits_error(host: Params, device: Params, ids: list[int]) -> float:
    """Returns the largest difference of a prompt's logits, over the largest logit."""
    tokens = torch.tensor([ids])
    truth, _ = prefill(host, init_state(host, 1, len(ids)), tokens)
    step = jit(prefill, donate=("state",))
    found, _ = step(device, init_state(device, 1, len(ids)), device_put(tokens, "xla"))
    return float((found.cpu() - truth).abs().max() / truth.abs().max())


def differences(prompts: list[str], expected: list, found: list) -> str:
    """Says which rows differ, and from which token on; "" where none does."""
    said = []
    for prompt, mine, truth in zip(prompts, found, expected, strict=True):
        pairs = enumerate(zip(mine, truth, strict=False))
        first = next((n for n, (a, b) in pairs if a != b), min(len(mine), len(truth)))
        if list(mine) != list(truth):
            said.append(f"{prompt!r} from token {first} on")
    return "; ".join(said)
