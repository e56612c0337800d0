"""Step: a picture's tower and prompt on the demo that sees, against plain torch on the CPU."""

from __future__ import annotations

from pathlib import Path

from ..files.checkpoint import load
from ..generation.generate import generate
from ..prompts.processor import Processor, user_message
from ..xla.observers import on_compile
from .model import differences
from .outcomes import Tests
from .steps import AbsentError, Settings

TOKENS = 24
QUESTIONS = ("What do you see?", "What colour is it?")


def measure(settings: Settings) -> dict:
    """Runs the step."""
    if settings.demo_vision is None:
        raise AbsentError("the demo that sees is not here: run this in the repository's clone")
    directory = Path(settings.demo_vision)
    processor = Processor.from_pretrained(directory)
    picture = str(directory / "picture.png")
    prompts = [
        processor([user_message(question, [picture])], enable_thinking=False)
        for question in QUESTIONS
    ]
    host = load(directory, dtype="float32", device="cpu")
    # Its heads of 24 are none of the kernels'.
    device = load(directory, dtype="float32", device="xla").with_runtime(kernels="portable")
    expected = generate(host, processor, prompts, max_new_tokens=TOKENS)
    tests = Tests()

    def differing() -> str:
        found = generate(device, processor, prompts, max_new_tokens=TOKENS)
        pairs = ([c.tokens for c in expected], [c.tokens for c in found])
        return differences(list(QUESTIONS), *pairs)

    with on_compile() as compiled:
        tests.equal(f"{TOKENS} greedy tokens of {len(prompts)} questions", differing)
    return tests.outcome(compile_seconds=compiled.seconds, answers=[c.text for c in expected])
