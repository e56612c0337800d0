"""Streams the demo checkpoint's continuations: of the arguments, or of demo/prompts.txt."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import qwen35

DEMO = Path(__file__).resolve().parent.parent / "demo"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description="Continue prompts with the demo checkpoint in demo/."
    )
    parser.add_argument("prompt", nargs="*", help="default: the prompts of demo/prompts.txt")
    prompts = parser.parse_args().prompt
    if not prompts:
        prompts = (DEMO / "prompts.txt").read_text(encoding="utf-8").splitlines()
    try:
        return run(prompts)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"scripts/demo: error: {error}", file=sys.stderr)
        return 2


def run(prompts: list[str]) -> int:
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    params = qwen35.load(DEMO, device="xla", progress=True)
    for prompt in prompts:
        pieces = qwen35.stream(params, tokenizer, prompt, max_new_tokens=160, progress=True)
        piece = next(pieces)  # compiles, and says so, before the prompt is shown
        print(f"{prompt}{piece.text}", end="", flush=True)
        while True:
            try:
                print(next(pieces).text, end="", flush=True)
            except StopIteration as stop:
                [completion] = stop.value
                break
        print(flush=True)
    timings = completion.timings
    rate = timings.tokens_per_second
    print(
        f"last prompt: time to first token {timings.first_token * 1e3:.1f} ms"
        + ("" if rate is None else f", then {rate:.0f} tokens per second"),
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
