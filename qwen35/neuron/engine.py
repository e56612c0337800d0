"""Step: the engine's requests get the tokens that they get alone, and nothing is compiled late."""

from __future__ import annotations

from ..files.checkpoint import load
from ..generation.engine import Engine
from ..generation.generate import generate
from ..prompts.tokenizer import Tokenizer
from ..xla.observers import on_compile
from .model import demo_of, differences, prompts_of
from .outcomes import Tests
from .steps import Settings

TOKENS = 24
SLOTS = 2  # fewer than prompts: slots are used again
CAPACITY = 96


def measure(settings: Settings) -> dict:
    """Runs the step."""
    directory = demo_of(settings)
    tokenizer = Tokenizer.from_pretrained(directory)
    prompts = prompts_of(directory)
    host = load(directory, dtype="float32", device="cpu")
    expected = [c.tokens for c in generate(host, tokenizer, prompts, max_new_tokens=TOKENS)]
    device = load(directory, dtype="float32", device="xla")
    engine = Engine(device, tokenizer, slots=SLOTS, capacity=CAPACITY)
    with on_compile() as warm:
        engine.warm_up()
    tests = Tests()

    def differing() -> str:
        found = [c.tokens for c in engine.map(prompts, max_new_tokens=TOKENS)]
        return differences(prompts, expected, found)

    with on_compile() as late:
        tests.equal("tokens of prompts that come cold", differing)
        tests.equal("tokens of prompts that the prefix cache has", differing)
    tests.equal("nothing is compiled after the warm-up", lambda: _late(late.count))
    engine.close()
    return tests.outcome(graphs=warm.count, compile_seconds=warm.seconds)


def _late(count: int) -> str:
    return f"{count} graphs" if count else ""
