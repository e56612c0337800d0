"""The grid that the kernels must hold on: its whole product, and a part of it with every pair.

A case is a dictionary of options of `oracle.inputs`, all drawn with one seed per case.
"""

import itertools

import harness
import oracle

AXES = {
    "tokens": (1, 2, 31, 128, 129, 256, 1000),
    "batch": (1, 2, 3),
    "group": (1, 2, 3),
    "cosine": (0.0, 0.5, 0.8, 0.95),
    "beta": (0.0, 0.5, 1.0),
    "decay": tuple(oracle.DECAYS),
    "state_scale": (0.0, 1.0, 1e4),
}
DTYPES = {
    # name: options of `harness.run`: float32 inputs and operands, or 16 bits for both
    "float32": {"half": False, "exact": True},
    "bfloat16": {"half": True, "exact": False},
}


def product(**fixed):
    """Every case, or every one with some options fixed."""
    axes = {**AXES, **{name: (value,) for name, value in fixed.items()}}
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def pairs():
    """49 cases that have any two values of any two axes together.

    Lines of the plane over the integers mod 7: axis n of case (a, b) has the value a + n b, and any
    two axes determine a and b, whence every pair of values occurs exactly once. Axes of less than
    seven values take them modulo their number.
    """
    for a, b in itertools.product(range(7), repeat=2):
        yield {
            name: values[(a + number * b) % 7 % len(values)]
            for number, (name, values) in enumerate(AXES.items())
        }


def kernels(tokens):
    """Names of the kernels that take this number of tokens (the prefill: padded)."""
    if tokens == 1:
        return ("step", "chunk")
    return ("chunk",) if tokens <= 128 else ("fused",)


def bound(name, dtype):
    """As in test_nki_chunk and test_nki_recurrent, where the step's output cancels."""
    if dtype == "bfloat16":
        return 1e-2
    return 5e-6 if name == "step" else 1e-5


def label(case):
    """A case's name in pytest's list."""
    return "-".join(map(str, case.values()))


def inputs(case, **sizes):
    """`oracle.Inputs` of a case."""
    seed = sum(i * axis.index(case[name]) for i, (name, axis) in enumerate(AXES.items(), 1))
    return oracle.inputs(seed=seed, **case, **sizes)


def run(name, arrays, half, exact):
    """Output and state of a kernel; the prefill gets padding, and its output is cut."""
    kernel = {"step": harness.STEP, "chunk": harness.CHUNK, "fused": harness.PREFILL}[name]
    tokens = arrays.key.shape[1]
    padded = harness.padded(arrays, 128) if name == "fused" else arrays
    out, state = harness.run(kernel, padded, half=half, exact=exact)
    return out[:, :tokens], state
