"""The NKI kernels on the host, run by the emulator: slow, to check kernels and their binding."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from . import emulator
from .binding import KERNELS, Kernel
from .operators import define


def _simulate(kernel: Kernel, *operands: Tensor, **static: bool) -> tuple[Tensor, Tensor]:
    """Run a kernel on the emulator; a bfloat16 output comes in float32, exactly."""
    arrays = [_host_array(x) for x in operands]
    out, state = emulator.simulate(_load(kernel), *arrays, **static).outputs
    return torch.from_numpy(out), torch.from_numpy(state)


@functools.cache
def _load(kernel: Kernel):
    return emulator.load(*kernel)


def _host_array(x: Tensor):
    x = x.detach()
    if x.dtype == torch.bfloat16:
        bits = x.view(torch.int16).numpy().view(np.uint16)
        return emulator.HostTensor.from_bits(bits, "bfloat16")
    return x.numpy()


for _kernel in KERNELS:
    define(torch.library.custom_op, f"emulated_{_kernel.function}", _kernel, _simulate)


def launch(kernel: Kernel, *operands: Tensor, **static: bool) -> tuple[Tensor, Tensor]:
    """A `binding.Launcher` for CPU tensors, by an operator: `emulated_` and the kernel's name."""
    return getattr(torch.ops.qwen35, f"emulated_{kernel.function}")(*operands, **static)
