"""The NKI kernels as operators of torch: to TorchDynamo, a call is one node of the graph.

TorchDynamo can't look into a kernel, and need not: an operator says what it gives for tensors
without values. Operators are functional, they modify nothing: the new state is a result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .binding import Kernel, Launcher


def define(make: Callable[..., Any], name: str, kernel: Kernel, launch: Launcher) -> Any:
    """Define the operator `qwen35::NAME`, which launches a kernel.

    Args:
        make: makes an operator of a name, a function with types and the arguments that it
            modifies: `torch.library.custom_op`, or another one with its parameters.
        launch: runs the kernel on the operator's operands.
    """

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        decay: Tensor,
        beta: Tensor,
        state: Tensor,
        exact: bool = True,
        gpsimd: bool = True,
        float16: bool = True,
    ) -> tuple[Tensor, Tensor]:
        operands = (query, key, value, decay, beta, state)
        out, new = launch(kernel, *operands, exact=exact, gpsimd=gpsimd, float16=float16)
        return out.to(value.dtype), new

    made = make(f"qwen35::{name}", run, mutates_args=())
    made.register_fake(_results)
    return made


def _results(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    exact: bool = True,
    gpsimd: bool = True,
    float16: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return an output of the value's shape and dtype and a float32 state, both contiguous."""
    out = value.new_empty(value.shape)
    return out, state.new_empty(state.shape, dtype=torch.float32)
