"""The NKI kernels on Neuron: all that needs AWS's packages.

Written from AWS's documentation (Neuron SDK 2.32, "NKI kernel as a framework custom operator");
it has not run on a device. There, a function under `@nki.jit` takes torch-xla's lazy tensors and
returns such: the call becomes one node of the graph that is being traced, in HLO a custom call to
`AwsNeuronCustomNativeKernel`, which neuronx-cc links with the code of the rest. The results are
new tensors; that the new state takes the old one's memory is up to the graph's donated arguments.

On TorchNeuron's device "neuron" a kernel is an operator, made by its `nki_op` (SDK 2.33).
"""

from __future__ import annotations

import functools
import importlib
import os

import torch
from torch import Tensor

from .binding import KERNELS, Kernel
from .operators import define

# Physical cores of a logical one, by the kind of device that the runtime reports: Trainium2 with
# NEURON_LOGICAL_NC_CONFIG=1, and with 2.
CORES = {"NC_v3": 1, "NC_v3d": 2}


def missing(device: torch.device) -> str | None:
    """What NKI kernels lack to run on tensors of `device`, or None if nothing."""
    if device.type not in ("xla", "neuron"):
        return f"tensors on a Neuron device, not on {device.type!r}"
    if device.type == "xla":
        import torch_xla.runtime

        platform = torch_xla.runtime.device_type()
        if platform != "NEURON":
            return f"tensors on a Neuron device, not on torch-xla's {platform!r}"
    try:
        # The public package index has a placeholder of the name `nki`, which lacks this.
        import nki.language  # noqa: F401 - only whether it imports matters
    except ImportError as error:
        return f"AWS's package nki, which could not be imported: {error}"
    return None


def launch(kernel: Kernel, *operands: Tensor, **static: bool) -> tuple[Tensor, Tensor]:
    """A `binding.Launcher` for tensors on a Neuron device: adds the kernel to the traced graph.

    Raises:
        ValueError: the device is not a Trainium2.
    """
    if operands[0].device.type == "neuron":
        if not torch.compiler.is_compiling():  # before a graph is captured, jit comes by without
            define_operators()
        return getattr(torch.ops.qwen35, kernel.function)(*operands, **static)
    return _run(kernel, *operands, cores=_cores(operands[0].device), **static)


def _run(kernel: Kernel, *operands: Tensor, cores: int, **static: bool) -> tuple[Tensor, Tensor]:
    function = getattr(importlib.import_module(f".{kernel.module}", __package__), kernel.function)
    return function[cores](*operands, **static)


@functools.cache
def define_operators() -> None:
    """Define an operator for each kernel by TorchNeuron's `nki_op`, once in a process.

    As many cores run a kernel together as the runtime and the compiler are told to: two of
    Trainium2's are a logical one, unless NEURON_LOGICAL_NC_CONFIG says otherwise.
    """
    from torch_neuronx import nki_op

    cores = int(os.environ.get("NEURON_LOGICAL_NC_CONFIG", "2"))
    for kernel in KERNELS:
        define(nki_op, kernel.function, kernel, functools.partial(_run, cores=cores))


def _cores(device: torch.device) -> int:
    """The bracket of a kernel: cores that run it together, as the compiler is told, too."""
    # Imported here: in the repository's folder transformers takes this package for another of the
    # name `kernels`, and imports it without a parent.
    from ..xla import private

    kind = private._xla_device_kind(str(device))
    if kind not in CORES:
        raise ValueError(
            f"the NKI kernels are for Trainium2, devices of kind {' or '.join(CORES)}, not "
            f"{kind!r}; kernels='portable' runs anywhere"
        )
    return CORES[kind]
