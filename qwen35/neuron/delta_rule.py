"""The delta rule over the kernels' grid, on the device, against the float64 loop over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..kernels import DEFAULT_PLAN, Plan, gated_delta_rule, grid, oracle
from ..xla.devices import device_put
from .outcomes import Tests

Rule = Callable[..., tuple[torch.Tensor, torch.Tensor]]

HALF = 2e-2  # of outputs whose inputs have 16 bits: 1e-2 where sums are exact, and as much again


def compare(
    tests: Tests,
    rule: Rule,
    bound: Callable[[int], float],
    *,
    half: float = HALF,
    lengths: Sequence[int] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    how: str = "",
) -> None:
    """Adds a test for each shape and dtype: the largest error of its 12 cases.

    Args:
        tests: get them.
        rule: takes the tensors of a call on the device, and `exact`.
        bound: of the error in float32, for so many tokens.
        half: of the error where inputs have 16 bits.
        lengths: numbers of tokens, each of which is a shape of the grid; all by default.
        dtypes: of the inputs.
        how: ends the tests' names, where there is more than one way.
    """
    for cases in grid.shapes():
        tokens, batch, group = (cases[0][name] for name in ("tokens", "batch", "group"))
        if lengths is not None and tokens not in lengths:
            continue
        for dtype in dtypes:
            exact = dtype == torch.float32
            name = f"{tokens} tokens, {batch} rows, {group} heads a key head, {dtype}{how}"
            tests.within(
                name.replace("torch.", ""),
                bound(tokens) if exact else half,
                lambda cases=cases, dtype=dtype: max(_error(rule, case, dtype) for case in cases),
            )


def _error(rule: Rule, case: dict[str, Any], dtype: torch.dtype) -> float:
    """Returns the larger error of output and state, relative to the largest that is right."""
    arrays = grid.inputs(case, key_size=SIZES[0], value_size=SIZES[1])
    tensors = [torch.from_numpy(array) for array in arrays]
    tensors[:3] = [tensor.to(dtype) for tensor in tensors[:3]]
    rounded = [tensor.float().numpy() for tensor in tensors]
    expected = oracle.delta_rule(*rounded)
    found = rule(*device_put(tensors, "xla"), exact=dtype == torch.float32)
    return max(
        oracle.relative_error(mine.float().numpy(), truth)
        for mine, truth in zip(device_put(list(found), "cpu"), expected, strict=True)
    )


SIZES = (128, 128)  # of a key and a value, as in every published model


def call(implementation: str, plan: Plan = DEFAULT_PLAN) -> Rule:
    """Returns the delta rule in one implementation, of the NKI kernels by a plan."""

    def rule(*tensors: torch.Tensor, exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
        how = {"implementation": implementation, "exact": exact, "plan": plan}
        return gated_delta_rule(*tensors, chunk=64, **how)

    return rule
