"""What the machine can do, and what this process takes of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_READ_BYTES = 2**30
_GEMM_SIZE = 2048
_SPIN = 0.02  # seconds: for less than that torch's threads wait for more work in a loop


@dataclass(frozen=True)
class MachineRates:
    """What the machine can do with torch's operations, the best of several tries.

    read_gbps: the read bandwidth, of sums over 1 GiB. gemm_gflops: the rate of float32 products of
    2048 x 2048 matrices.
    """

    read_gbps: float
    gemm_gflops: float


def measure_rates() -> MachineRates:
    """Measures what the machine can do."""
    data = read_buffer()
    read = max(read_gbps(data) for _ in range(10))
    square = torch.rand(_GEMM_SIZE, _GEMM_SIZE)
    multiply = min(timed(lambda: square @ square) for _ in range(5))
    return MachineRates(read, 2 * _GEMM_SIZE**3 / multiply / 1e9)


def read_buffer() -> torch.Tensor:
    """Makes what `read_gbps` reads: 1 GiB, far more than caches can keep."""
    return torch.ones(_READ_BYTES // 4)


def read_gbps(data: torch.Tensor) -> float:
    """Measures the rate, in GB/s, at which all cores of this process read a buffer, to sum it.

    Returns when torch's threads sleep, so that the cores are free for what is timed next.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    seconds = timed(lambda: data.sum().item())
    torch.set_num_threads(threads)
    time.sleep(_SPIN)
    return data.nbytes / seconds / 1e9


def timed(function: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_memory() -> int:
    """Returns the most bytes that this process ever had in memory, files' pages among them."""
    return _status("VmHWM")


def anonymous_memory() -> int:
    """Returns the bytes of this process that are no file's pages."""
    return _status("RssAnon")


def added_memory(function: Callable[[], Any]) -> int:
    """Returns the bytes that the process has at most during a call, above what it had before."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    function()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field} line")
