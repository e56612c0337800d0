#!/usr/bin/env python
"""Worst relative errors of the three DeltaNet kernels, beside the Neumann form's.

    python scripts/kernels/errors.py            # the 49 cases of the tests, ten seconds
    python scripts/kernels/errors.py --full     # every combination, twenty minutes on one core
    python scripts/kernels/errors.py --exp-error 1.5e-5     # as if ScalarE's exp were so far off

Every kernel runs in the emulator over the grid of kernels/grid.py: rows, value heads per key
head, tokens, key cosines, beta, decay, the size of the initial state, in float32 and in 16 bits.
The reference is the token-by-token loop in float64 (kernels/oracle.py). An error is the
largest difference over the largest expected entry; each cell gives output, state. Beside them stand
the same loop in float32, and the Neumann form: the same chunked algorithm in NumPy float32, chunks
of 128, with the inverse as the doubling product (I - N)(I + N^2)(I + N^4)... instead of block
merges.
"""

import argparse
import itertools
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from qwen35.reports.tables import markdown_table

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "kernels"))
import grid
import harness

from qwen35.kernels import oracle

KEY_SIZE, VALUE_SIZE = 64, 32
NEUMANN = "Neumann form in float32"
LOOP = "token loop in float32"


def neumann(inputs, chunk=128):
    """Output and state of the chunked rule in float32 with a doubling product as the inverse."""
    repeats = inputs.value.shape[2] // inputs.key.shape[2]
    query, key = (np.repeat(x, repeats, axis=2) for x in (inputs.query, inputs.key))
    state = inputs.state.copy()
    out = np.zeros_like(inputs.value)
    for row, head in np.ndindex(*state.shape[:2]):
        for start in range(0, key.shape[1], chunk):
            here = (row, slice(start, start + chunk), head)
            q, k, v = query[here], key[here], inputs.value[here]
            log_decay, beta = inputs.log_decay[here], inputs.beta[here]
            count = len(k)
            lower = np.tril(np.ones((count, count), np.float32))
            between = lower @ (log_decay[:, None] * np.tril(lower, -1))
            decay = np.exp(between) * lower
            power = -np.tril(beta[:, None] * decay * (k @ k.T), -1)
            inverse = np.eye(count, dtype=np.float32) + power
            for _ in range(int(np.ceil(np.log2(max(count, 2)))) - 1):
                power = power @ power
                inverse = inverse + inverse @ power
            grown = np.exp(lower @ log_decay)[:, None]
            update = inverse @ (beta[:, None] * (v - grown * (k @ state[row, head])))
            out[here] = grown * (q @ state[row, head]) + (decay * (q @ k.T)) @ update
            ends = decay[-1][:, None]
            state[row, head] = grown[-1] * state[row, head] + (ends * k).T @ update
    return out, state


def loop(inputs):
    """Output and state of the definition in float32."""
    return oracle.delta_rule(*inputs, dtype=np.float32)


FORMS = {LOOP: loop, NEUMANN: neumann}


def error(results, expected):
    """Relative errors of output and state; inf where not finite."""
    return [
        oracle.relative_error(a, b) if np.isfinite(a).all() else np.inf
        for a, b in zip(results, expected, strict=True)
    ]


def worst(cases, **machine):
    """{(kernel, form, cosine): worst errors of output and state}, and the number of runs."""
    found, runs = defaultdict(lambda: np.zeros(2)), 0
    for case in cases:
        inputs = grid.inputs(case, key_size=KEY_SIZE, value_size=VALUE_SIZE)
        expected = {
            "float32": oracle.delta_rule(*inputs),
            "bfloat16": oracle.delta_rule(*harness.round_inputs(inputs)),
        }
        expected["all bfloat16"] = expected["bfloat16"]
        for name in grid.kernels(case["tokens"]):
            for dtype, options in grid.DTYPES.items():
                cell = (name, dtype, case["cosine"])
                result = error(grid.run(name, inputs, **options, **machine), expected[dtype])
                found[cell] = np.maximum(found[cell], result)
                runs += 1
            for form, function in FORMS.items():
                if (name, form) == ("step", NEUMANN):
                    continue  # one token has nothing to invert
                with np.errstate(all="ignore"):
                    result = error(function(inputs), expected["float32"])
                cell = (name, form, case["cosine"])
                found[cell] = np.maximum(found[cell], result)
    return found, runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every combination of the grid")
    parser.add_argument(
        "--exp-error", type=float, default=0.0, help="relative, of ScalarE's exp (default exact)"
    )
    options = parser.parse_args()
    cases = grid.product() if options.full else grid.pairs()
    found, runs = worst(cases, exp_error=options.exp_error)
    cosines = grid.AXES["cosine"]
    rows = []
    for name, what in itertools.product(("step", "chunk", "fused"), (*grid.DTYPES, *FORMS)):
        cells = [found[name, what, c] for c in cosines if (name, what, c) in found]
        if cells:
            rows.append((name, what, *("{:.0e}, {:.0e}".format(*cell) for cell in cells)))
    head = ("kernel", "operands", *(f"cosine {c}" for c in cosines))
    print(markdown_table(head, rows, left=range(len(head))))
    print(f"{runs} runs of the kernels")


if __name__ == "__main__":
    main()
