"""Step: arithmetic that the model relies on, each operation against its definition.

Some of them went wrong on devices for others (a split of a tensor along its last dimension, rows
chosen by indices that are data, a permutation of five dimensions). What is expected is worked out
by NumPy, in float64, or by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.oracle import bfloat16, relative_error
from ..xla.devices import device_put, matmul_float32
from ..xla.jit import jit
from .outcomes import Tests
from .steps import Settings

_RNG = np.random.default_rng(7)
_X = _RNG.standard_normal((3, 5, 48)).astype(np.float32)
_IDS = np.array([4, 0, 2, 2, 1], np.int32)
_WIDE = np.arange(2**24 - 2, 2**24 + 6, dtype=np.int32)  # float32 has not all of them
_FIVE = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.float32).reshape(2, 3, 4, 5, 6)
# Halves between two neighbours in bfloat16, both parities, and their neighbours.
_TIES = (np.arange(0x3F80_0000, 0x3F88_0000, 0x4000, dtype=np.uint32)).view(np.float32)

Case = tuple[Callable[..., Any], tuple[np.ndarray, ...], Callable[..., Any]]

# What must come out to the bit: a function of tensors, its arguments, the same in NumPy.
EXACT: dict[str, Case] = {
    "split along the last dimension": (
        lambda x: x.split((16, 24, 8), dim=-1),
        (_X,),
        lambda x: (x[..., :16], x[..., 16:40], x[..., 40:]),
    ),
    "slices": (
        lambda x: (x[..., 7:31], x[:, 1:4], x[:, ::2], x[..., -3:]),
        (_X,),
        lambda x: (x[..., 7:31], x[:, 1:4], x[:, ::2], x[..., -3:]),
    ),
    "rows by indices": (
        lambda x, i: x.index_select(1, i),
        (_X, _IDS),
        lambda x, i: x[:, i],
    ),
    "gather along the last dimension": (
        lambda x, i: x.gather(-1, i.long().expand(3, 5, 5)),
        (_X, _IDS),
        lambda x, i: x[..., i],
    ),
    "rows written at indices": (
        lambda x, i: x.flatten(0, 1).index_copy(0, i.long()[:3] * 2, x[0, :3]),
        (_X, _IDS),
        lambda x, i: _written(x.reshape(15, 48), i[:3] * 2, x[0, :3]),
    ),
    "transposed and flattened": (
        lambda x: x.transpose(1, 2).flatten(1),
        (_X,),
        lambda x: x.transpose(0, 2, 1).reshape(3, -1),
    ),
    "five dimensions permuted": (
        lambda x: x.permute(3, 0, 4, 2, 1).flatten(2),
        (_FIVE,),
        lambda x: x.transpose(3, 0, 4, 2, 1).reshape(5, 2, -1),
    ),
    "padding": (
        lambda x: F.pad(x, (0, 0, 2, 1)),
        (_X,),
        lambda x: np.pad(x, ((0, 0), (2, 1), (0, 0))),
    ),
    "int32 beyond 2**24": (
        lambda i: (i + 1, i * 2 - 1, (i == i.flip(0)).int()),
        (_WIDE,),
        lambda i: (i + 1, i * 2 - 1, (i == i[::-1]).astype(np.int32)),
    ),
    "exp(0) is 1": (torch.exp, (np.zeros(130, np.float32),), np.exp),
    "exp(-1e9) is 0": (torch.exp, (np.full(130, -1e9, np.float32),), np.exp),
    "a chosen value hides NaN": (
        lambda x: torch.where(x > 0, torch.full_like(x, torch.nan), x * 0 + 1),
        (-np.abs(_X),),
        np.ones_like,
    ),
    "a chosen value keeps the sign of zero": (
        lambda x: torch.where(x == 0, x, x - x),
        (np.array([-0.0, 0.0, -0.0], np.float32),),
        np.copy,
    ),
    "float32 to bfloat16 rounds to even": (
        lambda x: x.to(torch.bfloat16).float(),
        (_TIES,),
        bfloat16,
    ),
    "the largest of equal values is the first": (
        lambda x: x.argmax(-1).int(),
        (np.tile(np.array([0, 3, 1, 3, 2], np.float32), (2, 100)),),
        lambda x: x.argmax(-1).astype(np.int32),
    ),
}

_A = _RNG.standard_normal((64, 512)).astype(np.float32)
_B = _RNG.standard_normal((512, 96)).astype(np.float32)
_DECAYS = -np.exp(_RNG.uniform(-9, 3, 4096)).astype(np.float32)

# What must come near: bounds of the error relative to the largest value. A product of float32 that
# the compiler casts to bfloat16 is off by 3e-3.
NEAR: dict[str, tuple[Callable[..., Tensor], tuple[np.ndarray, ...], Callable[..., Any], float]] = {
    "product in float32": (torch.matmul, (_A, _B), np.matmul, 1e-5),
    "product of bfloat16, added up in float32": (
        lambda a, b: matmul_float32(a.to(torch.bfloat16), b.to(torch.bfloat16)),
        (_A, _B),
        lambda a, b: _rounded(a) @ _rounded(b),
        1e-5,
    ),
    "sum of 4096": (lambda x: x.sum(-1), (np.abs(_DECAYS),), lambda x: x.sum(-1), 1e-5),
    "cumulative sum": (lambda x: x.cumsum(-1), (_DECAYS,), lambda x: x.cumsum(-1), 1e-5),
    "exp of decays": (torch.exp, (_DECAYS,), np.exp, 5e-5),
    "sigmoid": (torch.sigmoid, (_X,), lambda x: 1 / (1 + np.exp(-x)), 5e-5),
    "softplus": (F.softplus, (_X,), lambda x: np.log1p(np.exp(x)), 5e-5),
    "rsqrt": (lambda x: torch.rsqrt(x * x + 1e-6), (_X,), lambda x: (x * x + 1e-6) ** -0.5, 5e-5),
    "softmax": (lambda x: x.softmax(-1), (4 * _X,), lambda x: _softmax(x), 5e-5),
}


def measure(settings: Settings) -> dict:
    """Runs the step."""
    tests = Tests()
    for name, (function, arrays, definition) in EXACT.items():

        def differs(function=function, arrays=arrays, definition=definition) -> str:
            found, truth = _run(function, arrays), _tuple(definition(*arrays))
            wrong = [n for n, pair in enumerate(zip(found, truth, strict=True)) if not _same(*pair)]
            return f"wrong: result {', '.join(map(str, wrong))}" if wrong else ""

        tests.equal(name, differs)
    for name, (function, arrays, definition, bound) in NEAR.items():

        def error(function=function, arrays=arrays, definition=definition) -> float:
            truth = definition(*(array.astype(np.float64) for array in arrays))
            return relative_error(_run(function, arrays)[0], truth)

        tests.within(name, bound, error)
    return tests.outcome()


def _run(function: Callable[..., Any], arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Runs a function, compiled, on the device."""
    tensors = device_put([torch.from_numpy(array) for array in arrays], "xla")
    results = device_put(list(_tuple(jit(function)(*tensors))), "cpu")
    return tuple(result.numpy() for result in results)


def _tuple(results: Any) -> tuple[Any, ...]:
    return tuple(results) if isinstance(results, tuple | list) else (results,)


def _same(found: np.ndarray, truth: np.ndarray) -> bool:
    """Compares bits: zeros of two signs differ."""
    one, other = (np.ascontiguousarray(x).view(np.int32) for x in (found, truth))
    return found.dtype == truth.dtype and np.array_equal(one, other)


def _written(rows: np.ndarray, places: np.ndarray, new: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[places] = new
    return rows


def _rounded(x: np.ndarray) -> np.ndarray:
    return bfloat16(x.astype(np.float32)).astype(np.float64)


def _softmax(x: np.ndarray) -> np.ndarray:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)
