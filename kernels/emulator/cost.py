"""Cycles per instruction, by the published cost model.

The formulas are those of the archived NKI 2.26 instruction pages (later releases dropped most
numbers), with the trn2 performance modes of the trainium2 architecture guide; the DMA figures are
those of the DMA bandwidth guide. Nothing here was measured by us. N is elements per partition.
"""

from .tensor import Tensor

MIN_II = 64  # least cycles between two instructions of an engine ("MIN_II ≈ 64")
GPSIMD_OVERHEAD = 150  # iota and affine_select
DMA_BYTES_PER_NS = 368.0  # 16 engines x 23 GB/s achievable, per core
DMA_LATENCY_NS = 1300.0  # semaphore to data, prebuilt descriptors
DMA_HWDGE_LATENCY_NS = 600.0  # per hardware-DGE instruction
ACCESS_LATENCY_CYCLES = 60  # SBUF/PSUM access latency, seen by a dependent instruction


def _half(*tensors: Tensor):
    return all(t.dtype in ("bfloat16", "float16") for t in tensors)


def _in_sbuf(*tensors: Tensor):
    return all(t.space == "sbuf" for t in tensors)


def _unit_stride(*tensors: Tensor):
    return all(t.strides[-1] == 1 or t.shape[-1] == 1 for t in tensors)


def matmul(stationary: Tensor, moving: Tensor) -> float:
    """PE cycles: max(min(64, N_stationary), N_moving), four passes for float32 operands."""
    cycles = max(min(64, stationary.elements), moving.elements)
    return cycles * (4 if "float32" in (stationary.dtype, moving.dtype) else 1)


def pe_transpose(data: Tensor) -> float:
    """PE cycles: max(P, min(64, F)); float32 takes two passes in transpose mode."""
    return max(data.shape[0], min(64, data.elements)) * (2 if data.dtype.itemsize == 4 else 1)


def elementwise(n: float) -> float:
    """The common form: one element per lane and cycle, at least MIN_II."""
    return max(MIN_II, n)


def tensor_tensor(dst: Tensor, data1: Tensor, data2: Tensor) -> float:
    """N with one operand in PSUM or all 16-bit in SBUF (2x mode), else 2N.

    The page gives VectorE only; GpSimd is taken to be alike.
    """
    n = dst.elements
    if _in_sbuf(data1, data2) and not _half(dst, data1, data2):
        n *= 2
    return elementwise(n)


def scalar_tensor_tensor(data: Tensor, op0: str, operand1: Tensor, op1: str) -> float:
    """2N, wherever the operands are; N for bfloat16 subtract-then-multiply of even N."""
    n = data.elements
    fast = data.dtype == operand1.dtype == "bfloat16" and n % 2 == 0
    if fast and (op0, op1) == ("subtract", "multiply"):
        return elementwise(n)
    return elementwise(2 * n)


def copy_like(dst: Tensor, src: Tensor) -> float:
    """tensor_copy and tensor_scalar on VectorE: N, with trn2's 4x and 2x modes for 16 bits."""
    n = dst.elements
    if _half(dst, src):
        packed, near = _unit_stride(dst, src), _in_sbuf(dst, src)
        n /= 4 if packed and near else 2 if packed or near else 1
    return elementwise(n)


def memset(dst: Tensor, value) -> float:
    """N; N/2 for zeros of 16 bits."""
    return elementwise(dst.elements / (2 if value == 0 and _half(dst) else 1))


def gpsimd_pattern(dst: Tensor) -> float:
    """iota and affine_select: 150 + N."""
    return GPSIMD_OVERHEAD + dst.elements


def dma_nanoseconds(moved: int, hwdge: bool) -> float:
    """Fixed latency plus the bytes at a core's achievable rate."""
    latency = DMA_HWDGE_LATENCY_NS if hwdge else DMA_LATENCY_NS
    return latency + moved / DMA_BYTES_PER_NS


def reduce(data: Tensor, op: str) -> float:
    """tensor_reduce: N of the input; N/2 for 16-bit add and maximum."""
    return elementwise(data.elements / (2 if _half(data) and op in ("add", "maximum") else 1))
