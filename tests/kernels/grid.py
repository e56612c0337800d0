"""The kernels' runs over the grid (`qwen35.kernels.grid`), and what they must hold."""

import harness

from qwen35.kernels.grid import AXES, inputs, pairs, product

__all__ = ["AXES", "DTYPES", "bound", "inputs", "kernels", "label", "pairs", "product", "run"]

DTYPES = {
    # name: options of `harness.run`: float32 inputs and operands, or 16 bits for both, where the
    # operands that are bounded by 1 are float16, or bfloat16 like the others
    "float32": {"half": False, "exact": True},
    "bfloat16": {"half": True, "exact": False},
    "all bfloat16": {"half": True, "exact": False, "float16": False},
}


def kernels(tokens):
    """Names of the kernels that take this number of tokens (the prefill: padded)."""
    if tokens == 1:
        return ("step", "chunk")
    return ("chunk",) if tokens <= 128 else ("fused",)


def bound(name, dtype):
    """As in test_nki_chunk and test_nki_recurrent, where the step's output cancels."""
    if dtype != "float32":
        return 1e-2 if dtype == "bfloat16" or name == "step" else 3e-2
    return 5e-6 if name == "step" else 1e-5


def label(case):
    """A case's name in pytest's list."""
    return "-".join(map(str, case.values()))


def run(name, arrays, **options):
    """Output and state of a kernel; the prefill gets padding, and its output is cut.

    Options are those of `harness.run`.
    """
    kernel = {"step": harness.STEP, "chunk": harness.CHUNK, "fused": harness.PREFILL}[name]
    tokens = arrays.key.shape[1]
    padded = harness.padded(arrays, 128) if name == "fused" else arrays
    out, state = harness.run(kernel, padded, **options)
    return out[:, :tokens], state
