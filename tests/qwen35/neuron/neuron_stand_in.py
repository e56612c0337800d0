"""A stand-in for a Neuron device: torch-xla's CPU under Neuron's names, kernels on the emulator.

`import nki` finds a `jit` whose kernels take torch-xla's tensors. On their own they run on the
emulator; in a graph that is being traced the portable form stands for them, since XLA:CPU can call
nothing of Python. As a program it is the process of a step, with the arguments of
`python -m qwen35.neuron`; torchrun's processes are ranks on CPU tensors, since XLA:CPU has no
collectives between processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import torch

from qwen35 import kernels
from qwen35.bench import neuron
from qwen35.kernels import binding, grid, host, portable
from qwen35.model.presets import presets
from qwen35.neuron import buckets, delta_rule, ranks, segments, speed
from qwen35.xla import private
from qwen35.xla.devices import device_put
from qwen35.xla.environment import xla
from qwen35.xla.turns import tracing_here

KIND = "NC_v3d"  # what the runtime calls a logical core of two on Trainium2
# A preset of two narrow layers of each kind in turn, there inside `small`.
NARROW = "narrow"
_NARROW = dataclasses.replace(
    presets["0.8b"].text_only(),
    num_hidden_layers=4,
    layer_types=("linear_attention", "full_attention") * 2,
    hidden_size=96,
    intermediate_size=112,
    vocab_size=272,
)


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
    what is timed is timed for a moment, and `NARROW` is a preset."""
    shapes, short = grid.shapes, functools.partial(neuron.protocol, prompt=8, steps=3, repeats=2)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (grid, "AXES", {**grid.AXES, "tokens": (1, 5, 130)}),
            (grid, "shapes", lambda: (cases[4::6] for cases in shapes())),
            (delta_rule, "SIZES", (16, 32)),
            (buckets, "SIZES", (4, 16)),
            (neuron, "protocol", short),
            (segments, "protocol", short),
        ):
            _set(stack, target, name, value)
        presets[NARROW] = _NARROW
        stack.callback(presets.pop, NARROW)
        yield


@contextlib.contextmanager
def on_cpu_tensors() -> Iterator[None]:
    """Inside, the steps that run in a process for each rank have their tensors on the CPU."""

    def as_it_is(value, *_, **__):
        return value

    with contextlib.ExitStack() as stack:
        for module in (ranks, speed, segments, buckets, neuron):
            for name, value in (("jit", as_it_is), ("device_put", as_it_is)):
                if hasattr(module, name):
                    _set(stack, module, name, value)
            for name in ("start_ranks", "init_params", "load"):
                if hasattr(module, name):
                    _set(stack, module, name, _on_cpu(getattr(module, name)))
        yield


def _on_cpu(function):
    """The function, which takes a device by its name, with the CPU in an accelerator's place."""
    takes = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        bound = takes.bind(*args, **kwargs)
        if "device" in bound.arguments:
            bound.arguments["device"] = "cpu"
        return function(*bound.args, **bound.kwargs)

    return call


def _set(stack, target, name, value):
    stack.callback(setattr, target, name, getattr(target, name))
    setattr(target, name, value)


def main(arguments: list[str]) -> int:
    from qwen35.neuron import __main__ as process

    torch.set_num_threads(1)
    one_of_many = "RANK" in os.environ
    with platform(), small(), on_cpu_tensors() if one_of_many else contextlib.nullcontext():
        return process.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
