"""Streams what the demo checkpoints say: to prompts, or to questions about a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

import qwen35
from qwen35.ending import exit_code
from qwen35.xla.environment import set_cpu_flag

ROOT = Path(__file__).resolve().parent.parent
TEXT, VISION = ROOT / "demo", ROOT / "demo_vision"
SHIPPED = VISION / "picture.png"
QUESTIONS = ("What do you see?", "How many are there?", "What colour is it?", "What shape is it?")
NOTHING = (
    "nothing: to the model the text ends there; demo/README.md and demo_vision/README.md say what "
    "the toys know, demo/prompts.txt has prompts"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Continue prompts with the demo checkpoint in demo/, or ask the one in "
        "demo_vision/ about a picture of drawn shapes.",
    )
    parser.add_argument(
        "prompt",
        nargs="*",
        help="default: the prompts of demo/prompts.txt; with --image, a few questions",
    )
    parser.add_argument(
        "--image",
        nargs="?",
        const=str(SHIPPED),
        metavar="PATH",
        help="a picture of shapes; without PATH a shipped one",
    )
    options = parser.parse_args()
    try:
        if options.image is None:
            return run(options.prompt)
        return look(*picture_and_questions(options.image, options.prompt))
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"scripts/demo: error: {error}", file=sys.stderr)
        return 2


def picture_and_questions(image: str, questions: Sequence[str]) -> tuple[str, Sequence[str]]:
    """`--image "What is it?"` asks that about the shipped picture: it is no name of a picture."""
    pictures = Image.registered_extensions()
    if not questions and not Path(image).exists() and Path(image).suffix.lower() not in pictures:
        return str(SHIPPED), [image]
    return image, questions or QUESTIONS


def run(prompts: Sequence[str]) -> int:
    """Continues prompts."""
    if not prompts:
        prompts = (TEXT / "prompts.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = qwen35.Tokenizer.from_pretrained(TEXT)
    params = qwen35.load(TEXT, device="xla", progress=True)
    for prompt in prompts:
        pieces = qwen35.stream(params, tokenizer, prompt, max_new_tokens=160, progress=True)
        completion = show(prompt, pieces)
    report("prompt", completion)
    return 0


def look(image: str, questions: Sequence[str]) -> int:
    """Answers questions about a picture."""
    processor = qwen35.Processor.from_pretrained(VISION)
    prompts = [
        processor([qwen35.user_message(question, [image])], enable_thinking=False)
        for question in questions
    ]
    params = qwen35.load(VISION, device="xla", progress=True)
    print(image)
    for question, prompt in zip(questions, prompts, strict=True):
        pieces = qwen35.stream(params, processor, prompt, max_new_tokens=32, progress=True)
        completion = show(f"{question} ", pieces)
    report("question", completion)
    return 0


def show(start: str, pieces: Iterator[qwen35.Piece]) -> qwen35.Completion:
    """Prints a line that starts so and goes on as the model does."""
    piece = next(pieces)  # compiles, and says so, before the start is shown
    print(f"{start}{piece.text}", end="", flush=True)
    while True:
        try:
            print(next(pieces).text, end="", flush=True)
        except StopIteration as stop:
            [completion] = stop.value
            break
    print(flush=True)
    if not completion.text.strip():
        print(f"({NOTHING})", file=sys.stderr)
    return completion


def report(what: str, completion: qwen35.Completion) -> None:
    """Says how fast that went."""
    rate = completion.timings.tokens_per_second
    print(
        f"last {what}: time to first token {completion.timings.first_token * 1e3:.1f} ms"
        + ("" if rate is None else f", then {rate:.0f} tokens per second"),
        file=sys.stderr,
    )


if __name__ == "__main__":
    # LLVM's optimisation is most of what compiling takes, and a toy's steps are short without it.
    set_cpu_flag("xla_backend_optimization_level", "0")
    sys.exit(exit_code(main))
