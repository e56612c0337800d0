"""A kernel that touches every engine runs and gives NumPy's numbers."""

import numpy as np
from qwen35.kernels import emulator

SOURCE = """
import nki
import nki.isa as nisa
import nki.language as nl


@nki.jit
def kernel(a, b):
    out = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.shared_hbm)
    left = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
    right = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.sbuf)
    nisa.dma_copy(dst=left, src=a)
    nisa.dma_copy(dst=right, src=b)
    product = nl.ndarray((128, 128), dtype=nl.float32, buffer=nl.psum)
    for i in nl.affine_range(2):
        nisa.nc_matmul(product, left, right)
    result = nl.ndarray((128, 128), dtype=nl.float32)
    nisa.activation(result, nl.exp, product, scale=0.01)
    row = nl.ndarray((128, 1), dtype=nl.float32)
    nisa.tensor_reduce(row, nl.add, result, axis=1)
    nisa.tensor_scalar(result, result, nl.multiply, row, op1=nl.add, operand1=1.0)
    nisa.dma_copy(dst=out, src=result)
    return out
"""


def test_a_kernel_gives_numpys_numbers():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 128, 128)).astype(np.float32)
    kernel = emulator.load(SOURCE, "kernel")
    outputs, report = emulator.simulate(kernel, a, b)
    expected = np.exp(2 * a.T.astype(np.float64) @ b * 0.01)
    expected = expected * expected.sum(1, keepdims=True) + 1
    np.testing.assert_allclose(outputs[0], expected, rtol=2e-6)
    assert report.instructions == {"tensor": 2, "vector": 2, "scalar": 1, "gpsimd": 0, "dma": 3}
