"""Times loading a checkpoint onto XLA against transformers' from_pretrained, in alternation.

    scripts/compare_loading.py [--model DIR | --preset 0.8b] [--rounds 7]

Both load in one process whose page cache has the files, every other round in the opposite order:
who comes after a larger tree gets its pages. transformers maps a file and copies nothing while
dtypes agree, so that its first use of the weights reads them, and they stay the page cache's. Two
more rows of its have a value of each page read, and the weights in memory of the process, as a
device has them. Each row has medians, and the median of the rounds' ratios to this project's time.
"""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3_5ForCausalLM, logging

import qwen35

_PAGE = 4096  # bytes


def seconds(load: Callable[[], Any]) -> float:
    """Returns how long a call takes; what it made is freed outside of that."""
    start = time.perf_counter()
    made = load()
    taken = time.perf_counter() - start
    del made
    gc.collect()
    return taken


def transformers(directory: Path, dtype: torch.dtype, then: Callable[[Tensor], Tensor]) -> Any:
    """Loads with transformers; `then` takes each weight and returns it, or a copy."""
    model = Qwen3_5ForCausalLM.from_pretrained(directory, dtype=dtype)
    for weight in model.parameters():
        weight.data = then(weight.data)
    return model


def as_it_is(weight: Tensor) -> Tensor:
    """Returns a weight unread."""
    return weight


def read(weight: Tensor) -> Tensor:
    """Reads a value of each page of a weight."""
    weight.view(-1)[:: _PAGE // weight.itemsize].sum()
    return weight


THEIRS = {
    "transformers": as_it_is,
    "transformers, weights read": read,
    "transformers, weights copied": torch.clone,
}


def main() -> None:
    """Parses the command line, times, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a directory; its text model is loaded")
    parser.add_argument("--preset", default="0.8b", help="of random weights, in bfloat16")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.model or Path(temporary)
        if options.model is None:
            config = qwen35.presets[options.preset].text_only()
            qwen35.save(qwen35.init_params(config, dtype="bfloat16"), directory)
        ours = functools.partial(qwen35.load, directory, device="xla", vision=False)
        print("| dtype | who | s | over this project's |\n|---|---|---|---|")
        for dtype in (torch.bfloat16, torch.float32):
            sides: dict[str, Callable[[], Any]] = {
                "qwen35": functools.partial(ours, dtype=dtype),
                "qwen35, not looking for NaN": functools.partial(
                    ours, dtype=dtype, check_finite=False
                ),
            }
            for name, then in THEIRS.items():
                if then is torch.clone and dtype == torch.float32:
                    continue  # converting has copied
                sides[name] = functools.partial(transformers, directory, dtype, then)
            times: dict[str, list[float]] = {name: [] for name in sides}
            for number in range(options.rounds + 1):
                for name in list(sides)[:: 1 if number % 2 else -1]:
                    taken = seconds(sides[name])
                    if number:  # the first round fills the page cache and imports modules
                        times[name].append(taken)
            for name, taken in times.items():
                pairs = zip(taken, times["qwen35"], strict=True)
                ratio = statistics.median(one / own for one, own in pairs)
                kind = str(dtype).removeprefix("torch.")
                print(f"| {kind} | {name} | {statistics.median(taken):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
