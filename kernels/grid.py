"""The grid that every form of the delta rule must hold on; a case is options of `oracle.inputs`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from . import oracle

AXES: dict[str, tuple[Any, ...]] = {
    "tokens": (1, 2, 31, 128, 129, 256, 1000),
    "batch": (1, 2, 3),
    "group": (1, 2, 3),
    "cosine": (0.0, 0.5, 0.8, 0.95),
    "beta": (0.0, 0.5, 1.0),
    "decay": tuple(oracle.DECAYS),
    "state_scale": (0.0, 1.0, 1e4),
}


def product(**fixed: Any) -> Iterator[dict[str, Any]]:
    """Yields every case, or every one with some options fixed."""
    axes = {**AXES, **{name: (value,) for name, value in fixed.items()}}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def pairs() -> Iterator[dict[str, Any]]:
    """Yields 49 cases that have any two values of any two axes together.

    Lines of the plane over the integers mod 7: axis n of case (a, b) has the value a + n b, and any
    two axes determine a and b, whence every pair of values occurs exactly once. Axes of less than
    seven values take them modulo their number.
    """
    for a, b in itertools.product(range(7), repeat=2):
        yield {
            name: values[(a + number * b) % 7 % len(values)]
            for number, (name, values) in enumerate(AXES.items())
        }


def shapes() -> Iterator[list[dict[str, Any]]]:
    """Yields 7 groups of 12 cases, each of one shape, for where every shape is a compilation.

    Each number of tokens comes once. Within a group any two values of cosine, beta, decay and
    state_scale come together: the last two are i + j and i + 2 j mod 3 for the first two, i and j.
    """
    free = [AXES[name] for name in ("cosine", "beta", "decay", "state_scale")]
    for number, tokens in enumerate(AXES["tokens"]):
        shape = {
            "tokens": tokens,
            "batch": AXES["batch"][number % 3],
            "group": AXES["group"][(number + number // 3) % 3],
        }
        yield [
            {
                **shape,
                "cosine": free[0][i],
                "beta": free[1][j],
                "decay": free[2][(i + j) % 3],
                "state_scale": free[3][(i + 2 * j) % 3],
            }
            for i, j in itertools.product(range(4), range(3))
        ]


def inputs(case: dict[str, Any], **sizes: int) -> oracle.Inputs:
    """Draws the `oracle.Inputs` of a case, with a seed of its own."""
    seed = sum(i * axis.index(case[name]) for i, (name, axis) in enumerate(AXES.items(), 1))
    return oracle.inputs(seed=seed, **case, **sizes)
