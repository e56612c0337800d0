"""Import torch-xla, in the environment that suits this machine."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from types import ModuleType

from .importing import collection_paused


@functools.cache
def xla() -> ModuleType:
    """Import torch-xla on first use and return it.

    torch-xla chooses its device from the environment variable PJRT_DEVICE. Where that is unset
    and neither a Neuron nor a TPU runtime is installed, it is set to "CPU" here: the choice that
    torch-xla would make itself, without its warning. On the CPU, XLA_FLAGS gets
    --xla_cpu_use_xnnpack=false unless it says something on that: XLA 2.9's cost model gives
    XNNPACK small products that its Eigen path does four times faster (34 against 125 GFLOP/s for
    128 x 2048 x 1024 on two AVX2 cores). Raises RuntimeError if torch-xla is missing.
    """
    set_cpu_flag("xla_cpu_use_xnnpack", "false")
    try:
        with collection_paused():
            import torch_xla
            import torch_xla.runtime
    except ImportError as error:
        raise RuntimeError(
            f"the XLA device needs torch-xla, which could not be imported: {error}"
        ) from error
    return torch_xla


def set_cpu_flag(name: str, value: str) -> None:
    """Add a flag to XLA_FLAGS, which torch-xla reads when it is imported, unless that already has
    it or the XLA device is not the CPU; set PJRT_DEVICE as `xla` does."""
    accelerators = ("libneuronxla", "libtpu")
    if not any(importlib.util.find_spec(name) for name in accelerators):
        os.environ.setdefault("PJRT_DEVICE", "CPU")
    flags = os.environ.get("XLA_FLAGS", "")
    there = {word.partition("=")[0].lstrip("-") for word in flags.split()}
    if os.environ.get("PJRT_DEVICE") == "CPU" and name not in there:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()


def check_neuron() -> None:
    """Raise ValueError unless this machine has a Neuron device and its runtime, free to use."""
    if importlib.util.find_spec("libneuronxla") is None or not any(Path("/dev").glob("neuron*")):
        raise ValueError(
            "--device neuron needs a Neuron device and torch-neuronx's libneuronxla, and this "
            "machine does not have both"
        )
    chosen = os.environ.get("PJRT_DEVICE", "NEURON")
    if chosen != "NEURON":
        raise ValueError(f"--device neuron, but PJRT_DEVICE is {chosen}: unset it, or NEURON")
