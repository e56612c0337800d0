#!/usr/bin/env python
"""Worst relative errors of the three DeltaNet kernels, beside the Neumann form's.

    python scripts/kernel_errors.py            # about five minutes on one core
    python scripts/kernel_errors.py --quick    # a twelfth of the cases

Every kernel runs in the emulator over lengths, key cosines, beta and decay; rows, value heads per
key head and the size of the initial state take turns. The reference is the token-by-token loop in
float64 (tests/kernels/oracle.py). An error is the largest difference over the largest expected
entry; each cell gives output, state. The Neumann form is the same chunked algorithm in NumPy
float32, chunks of 128, with the inverse as the doubling product (I - N)(I + N^2)(I + N^4)...
instead of block merges.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "kernels"))
import harness
import oracle

COSINES = (0.0, 0.5, 0.8, 0.95)
KERNELS = {
    # name: kernel, numbers of tokens
    "step": (harness.STEP, (1,)),
    "chunk": (harness.CHUNK, (1, 2, 31, 128)),
    "fused": (harness.PREFILL, (129, 256, 1000)),
}
SHAPES = ({"batch": 1, "group": 1}, {"batch": 2, "group": 2}, {"batch": 3, "group": 3})
STATES = (0.0, 1.0, 1e3)


def cases(tokens, cosine):
    """Inputs over beta and decay; shapes and states take turns."""
    for number, (beta, decay) in enumerate(itertools.product((0.0, 0.5, 1.0), oracle.DECAYS)):
        yield oracle.inputs(
            seed=number,
            tokens=tokens,
            cosine=cosine,
            beta=beta,
            decay=decay,
            key_size=64 if tokens > 128 else 128,
            value_size=64,
            state_scale=STATES[(number + 1) % 3],
            **SHAPES[(number + number // 3) % 3],
        )


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


def error(results, expected):
    """Relative errors of output and state; inf where not finite."""
    return [
        oracle.relative_error(a, b) if np.isfinite(a).all() else np.inf
        for a, b in zip(results, expected, strict=True)
    ]


def worst(kernel, lengths, cosine, quick):
    """Worst errors [float32 exact | bfloat16 inputs, fast operands | Neumann, output | state]."""
    found = np.zeros((3, 2))
    for tokens in lengths:
        for number, inputs in enumerate(cases(tokens, cosine)):
            if quick and number < 6:  # keep those with beta = 1
                continue
            padded = harness.padded(inputs, 128) if kernel is harness.PREFILL else inputs
            expected = oracle.delta_rule(*inputs)
            rounded = oracle.delta_rule(*harness.round_inputs(inputs))
            for column, (reference, options) in enumerate(
                ((expected, {}), (rounded, {"half": True, "exact": False}))
            ):
                if kernel is harness.STEP:
                    options.pop("exact", None)
                out, state = harness.run(kernel, padded, **options)
                result = error((out[:, :tokens], state), reference)
                found[column] = np.maximum(found[column], result)
            with np.errstate(all="ignore"):
                found[2] = np.maximum(found[2], error(neumann(inputs), expected))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a third of the cases, short lengths")
    options = parser.parse_args()
    print("| kernel | operands | " + " | ".join(f"cosine {c}" for c in COSINES) + " |")
    print("|---|---|" + "---|" * len(COSINES))
    for name, (kernel, lengths) in KERNELS.items():
        if options.quick:
            lengths = [tokens for tokens in lengths if tokens <= 256][-1:]
        columns = [worst(kernel, lengths, cosine, options.quick) for cosine in COSINES]
        rows = ("float32", "bfloat16", "Neumann form in float32")
        for row, what in enumerate(rows):
            if name == "step" and row == 2:
                continue  # one token has nothing to invert
            cells = " | ".join("{:.0e}, {:.0e}".format(*column[row]) for column in columns)
            print(f"| {name} | {what} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
