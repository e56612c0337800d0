"""Times this checkout against another revision: the same work in one process, in alternation.

    scripts/compare_revisions.py REVISION [--preset 0.8b] [--layers 4] [--rounds 15] [--device cpu]

Both packages are imported side by side and called through the public API alone. Each row has the
medians of both and the median of the pairs' ratios, above 1 where this checkout is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


class Side:
    """The package of one checkout; `active` while its code runs, lazy imports included."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._modules: dict[str, ModuleType] = {}
        with self.active():
            self.package: Any = importlib.import_module("qwen35")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Lets `import qwen35` mean this side's package."""
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.root))
        try:
            yield
        finally:
            sys.path.remove(str(self.root))
            mine = [name for name in sys.modules if name.partition(".")[0] == "qwen35"]
            self._modules = {name: sys.modules.pop(name) for name in mine}


def prepared(side: Side, options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """What is timed on one side: each function runs once and gives its seconds."""
    package, device = side.package, options.device
    config = package.presets[options.preset]
    if options.layers:
        kinds = config.layer_types[: options.layers]
        vision = dataclasses.replace(config.vision, depth=min(options.layers, config.vision.depth))
        config = dataclasses.replace(
            config, num_hidden_layers=len(kinds), layer_types=kinds, vision=vision
        )
    params = package.init_params(config, device=device)

    def put(tree: Any) -> Any:
        return package.device_put(tree, device)

    wrap = package.jit if device == "xla" else lambda step, donate=(): step
    decode, prefill = (wrap(step, donate=("state",)) for step in (package.decode, package.prefill))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (8, 512), generator=generator)
    patches = torch.randn(32 * 32, config.vision.patch_dim, generator=generator)

    def timed(call: Callable[[], Any]) -> float:
        with side.active(), torch.no_grad():
            start = time.perf_counter()
            package.device_put(call(), "cpu")  # waits for the device
            return time.perf_counter() - start

    def decoding(rows: int, steps: int = 8) -> Callable[[], float]:
        token, state = put(ids[:rows, 0].contiguous()), None

        def run() -> torch.Tensor:
            nonlocal state
            if state is None:  # in the round that is not counted
                _, state = prefill(params, package.init_state(params, rows, 1024), put(ids[:rows]))
            for _ in range(steps):
                logits, state = decode(params, state, token)
            state = state._replace(position=state.position * 0 + 512)
            return logits

        return lambda: timed(run) / steps

    prompt = put(ids[:1])
    return {
        "decode, 1 row": decoding(1),
        "decode, 8 rows": decoding(8),
        "prefill of 512": lambda: timed(
            lambda: prefill(params, package.init_state(params, 1, 1024), prompt)[0]
        ),
        "picture of 512²": lambda: timed(
            lambda: package.encode_images(params.vision, patches, [(1, 32, 32)])
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision")
    parser.add_argument("--preset", default="0.8b")
    parser.add_argument("--layers", type=int, help="of both models; all of them if left out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("xla", "cpu"), default="xla")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        other = Path(directory) / "other"
        add = ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(other), options.revision]
        subprocess.run(add, check=True, capture_output=True)
        try:
            for name in ("kernels", "sharding"):  # revisions from before the links
                link = other / "qwen35" / name
                if not link.exists():
                    link.symlink_to(other / name)
            compare(Side(ROOT), Side(other), options)
        finally:
            remove = ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(other)]
            subprocess.run(remove, check=True)
    return 0


def compare(new: Side, old: Side, options: argparse.Namespace) -> None:
    """Prints a row for each thing timed."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    layers = f"{options.layers} layers of " if options.layers else ""
    print(f"{processor}, {layers}{options.preset}, {options.device}, {options.rounds} pairs")
    sides = []
    for side in (new, old):
        with side.active(), torch.no_grad():
            sides.append(prepared(side, options))
    for name in sides[0]:
        if options.only not in name:
            continue
        for side in sides:
            side[name]()
        pairs = []
        for number in range(options.rounds):
            order = (0, 1) if number % 2 else (1, 0)
            seconds = {index: sides[index][name]() for index in order}
            pairs.append((seconds[0], seconds[1]))
        ours, theirs = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"{name:<18} {ours:9.1f} ms, {theirs:9.1f} ms: {ratio:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
