"""A stand-in for a Neuron device: torch-xla's CPU under Neuron's names, kernels on the emulator.

`import nki` finds a `jit` whose kernels take torch-xla's tensors. On their own they run on the
emulator; in a graph that is being traced the portable form stands for them, since XLA:CPU can call
nothing of Python. As a program it is the process of a step, with the arguments of
`python -m qwen35.neuron`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import torch

from qwen35 import kernels
from qwen35.bench import neuron
from qwen35.kernels import binding, grid, host, portable
from qwen35.neuron import buckets, delta_rule
from qwen35.xla import private
from qwen35.xla.devices import device_put
from qwen35.xla.environment import xla
from qwen35.xla.turns import tracing_here

KIND = "NC_v3d"  # what the runtime calls a logical core of two on Trainium2


class Kernel:
    """What the stand-in's `@nki.jit` makes of a function."""

    def __init__(self, function, cores=1):
        self.function, self.cores = function, cores

    def __getitem__(self, cores):
        return Kernel(self.function, cores)

    def __call__(self, *operands, **static):
        name = binding.Kernel(Path(inspect.getfile(self.function)).stem, self.function.__name__)
        if not tracing_here.active:
            results = host.launch(name, *device_put(list(operands), "cpu"), **static)
            return device_put(results, "xla")
        if name == binding.STEP:
            query, key, value, decay, beta, state = operands
            return portable.gated_delta_step(query, key, value, decay.log(), beta, state)
        return portable.gated_delta_prefill(*operands, chunk=64)


@contextlib.contextmanager
def platform() -> Iterator[None]:
    """Inside, torch-xla says that its device is Neuron's, and `import nki` works."""
    nki = types.ModuleType("nki")
    nki.jit = Kernel
    nki.isa, nki.language = types.ModuleType("nki.isa"), types.ModuleType("nki.language")
    fakes = {"nki": nki, "nki.isa": nki.isa, "nki.language": nki.language}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _concerned(name)}
    before = xla().runtime.device_type, private._xla_device_kind
    sys.modules.update(fakes)
    xla().runtime.device_type = lambda: "NEURON"
    private._xla_device_kind = lambda device: KIND
    try:
        yield
    finally:
        xla().runtime.device_type, private._xla_device_kind = before
        for name in [name for name in sys.modules if _concerned(name)]:
            del sys.modules[name]
            vars(kernels).pop(name.rpartition(".")[2], None)
        sys.modules.update(hidden)


def _concerned(name: str) -> bool:
    return name == "nki" or name.startswith(("nki.", f"{kernels.__name__}.nki_"))


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Inside, the kernels' grid has few cases, of few tokens and small heads, for the emulator;
    what is timed is timed for a moment."""
    shapes, short = grid.shapes, functools.partial(neuron.protocol, prompt=8, steps=3, repeats=2)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (grid, "AXES", {**grid.AXES, "tokens": (1, 5, 130)}),
            (grid, "shapes", lambda: (cases[4::6] for cases in shapes())),
            (delta_rule, "SIZES", (16, 32)),
            (buckets, "SIZES", (4, 16)),
            (neuron, "protocol", short),
        ):
            stack.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, value)
        yield


def main(arguments: list[str]) -> int:
    from qwen35.neuron import __main__ as process

    torch.set_num_threads(1)
    with platform(), small():
        return process.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
