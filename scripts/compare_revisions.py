"""Times this checkout against another revision: the same work in one process, in alternation.

    scripts/compare_revisions.py REVISION [--preset 0.8b] [--layers 4] [--rounds 15] [--device cpu]

Both packages are imported side by side and called through the public API alone. Each row has the
medians of both and the median of the pairs' ratios, above 1 where this checkout is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import alternation
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
    layers = f"{options.layers} layers of " if options.layers else ""
    print(
        f"{alternation.processor()}, {layers}{options.preset}, {options.device}, "
        f"{options.rounds} pairs"
    )
    sides = {}
    for name, side in (("old", old), ("new", new)):
        with side.active(), torch.no_grad():
            config = alternation.cut(side.package.presets[options.preset], options.layers)
            params = side.package.init_params(config, device=options.device)
            sides[name] = alternation.prepared(side.package, params, side.active)
    for row in alternation.alternate(sides, options.rounds, options.only):
        ours, theirs = 1e3 * row.seconds["new"], 1e3 * row.seconds["old"]
        ratio = row.ratios["new"]
        print(f"{row.name:<18} {ours:9.1f} ms, {theirs:9.1f} ms: {ratio:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
