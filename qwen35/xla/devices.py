"""Move trees of tensors between the host and the XLA device, and run what is pending there."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from . import private, trees
from .environment import xla
from .turns import begin, check_process, tracing_here, turn
from .unusable import Unusable

Result = TypeVar("Result")

# What `mallopt` of glibc calls them.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

_LOST = (
    "an argument has no value: it shares memory with a tensor that was donated, its computation "
    "failed, or it was made to compile for"
)


def device_put(tree: Any, device: str) -> Any:
    """Return `tree`, any pytree, with every tensor on `device`: "cpu", "xla", or TorchNeuron's
    "neuron"; or "meta", which keeps of a tensor its shape and dtype.

    Tensors that are there already are not copied, and where all are, `tree` itself is returned.
    The result does not track gradients. Leaves other than tensors stay as they are. Raises
    ValueError for another device, RuntimeError if the XLA device can't be had, as in a process
    that was forked from one that uses it.
    """
    if str(device) not in ("cpu", "xla", "neuron", "meta"):
        raise ValueError(f'device must be "cpu", "xla", "neuron" or "meta", got {device!r}')
    target = str(device)
    tensors = trees.tensors(tree)
    if all(tensor.device.type == target for tensor in tensors):
        return tree
    if target == "xla" or any(tensor.device.type == "xla" for tensor in tensors):
        check_process()
    with torch.no_grad():
        if target in ("meta", "neuron"):
            moved = iter([tensor.to(target) for tensor in tensors])
        elif target == "xla":
            moved = iter([_upload(tensor) for tensor in tensors])
        else:
            moved = iter(_download(tensors))
    return trees.map_tensors(lambda _: next(moved), tree)


def _upload(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "xla":
        return tensor
    # tensor.to("xla") keeps the host copy until the next sync; this uploads at once.
    return private._xla_tensors_from_aten([tensor.detach()], [device_name()], None)[0]


def _download(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    remote = [tensor for tensor in tensors if tensor.device.type == "xla"]
    with turn:
        fetched = iter(private._xla_get_cpu_tensors(remote))  # one sync for all pending work
    return [next(fetched) if t.device.type == "xla" else t.to("cpu") for t in tensors]


def platform() -> str:
    """Return torch-xla's name for the XLA device's kind: "CPU", "NEURON", …"""
    return xla().runtime.device_type()


def on_xla_cpu() -> bool:
    """Tell whether the XLA device is the CPU."""
    return platform() == "CPU"


def release_host_memory() -> None:
    """Return freed host memory to the operating system, where the C library can (glibc).

    After uploads of many tensors of less than 32 MB each, its heap keeps half as much again as
    the tensors take. Results do not depend on it.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@functools.cache
def reuse_host_memory() -> None:
    """Let executions on the host take again the memory that those before them freed (glibc).

    XLA:CPU takes memory for its temporaries in each execution: some 50 MB for four layers of 0.8B
    that read 512 tokens. glibc returns what is larger than 32 MB to the operating system at once,
    which clears it anew page by page: a twentieth of a prefill in runs of layers. Now 64 MiB of
    free memory stay, until `release_host_memory`. What is larger than 64 MB is returned as before
    where a thread of XLA's takes it. Results do not depend on it.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**26)


def matmul_float32(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply x [..., K] by weight [K, N] of its dtype; accumulate and return [..., N] in float32.

    Or x [G, R, K] by weight [G, K, N], one by one: [G, R, N].

    torch has no product of bfloat16 tensors with a float32 result. XLA has, and needs no float32
    copy of the weight for it; on the CPU the weight is widened a block of columns at a time.
    """
    if x.dtype == torch.float32:
        return x @ weight
    if x.device.type == "xla":
        batch = list(range(weight.dim() - 2))
        dimensions = (([x.dim() - 1], [weight.dim() - 2]), (batch, batch))
        return private._xla_dot_general(x, weight, dimensions, preferred_element_type=torch.float32)
    x = x.float()
    return torch.cat([x @ block.float() for block in weight.split(16384, dim=-1)], dim=-1)


def indices(length: int, device: torch.device) -> torch.Tensor:
    """Return 0, 1, … length-1 [length] as int32.

    torch-xla embeds an `arange` in the graph as a literal. Long ones are added up from two short
    ones: a literal for every slot of a long KV cache would make megabytes.
    """
    block = 1024
    low = torch.arange(min(length, block), dtype=torch.int32, device=device)
    if length <= block:
        return low
    high = torch.arange(-(-length // block), dtype=torch.int32, device=device) * block
    return (high[:, None] + low).flatten()[:length]


def run_pending_of(tensors: Sequence[torch.Tensor]) -> None:
    """Run the pending computations of `tensors`: a compiled graph takes data only."""
    needed = private._check_tensor_need_materialization(tensors)
    if True in needed:
        pending = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
        private._xla_sync_multi(pending, devices=[], wait=True, sync_xla_data=True)


def at_once(device: torch.device, make: Callable[[], Result]) -> Result:
    """Return what `make` returns, a tree of tensors on a device, with values: on XLA no other
    thread comes in between. Inside a traced function it is part of that."""
    if device.type != "xla" or tracing_here.active:
        return make()
    check_process()
    with turn:
        result = make()
        run_pending_of([leaf for leaf in trees.tensors(result) if leaf.device.type == "xla"])
    return result


def anything_pending() -> bool:
    """Tell whether any tensor of the process is a computation that has not run."""
    try:
        return True in private._check_device_tensor_need_materialization(device_name())
    except RuntimeError:  # some tensor has lost its value in an operation that failed
        return True


def run_pending() -> None:
    """Run every pending computation of the process."""
    if not anything_pending():
        return
    try:
        private._xla_sync_live_tensors(device_name(), devices=[], wait=True)
    except RuntimeError:
        # Some tensor has lost its value in an operation that failed: run what others wait for.
        run_pending_of(all_pending())


def all_pending() -> list[torch.Tensor]:
    """Return every tensor of the process that is a computation which has not run."""
    return [tensor for tensor in _all_tensors() if _is_pending(tensor)]


def _all_tensors() -> list[torch.Tensor]:
    """Return every tensor of this process that the collector knows, each kept alive by the list.

    What only autograd holds belongs to C++, which would free it under our reference to it
    whenever a graph goes, and leave an object behind that fails on everything.
    """
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    for tensor in tensors:
        tensor._fix_weakref()  # the reference is ours to count now, as of one that was weak
    return tensors


def _is_pending(tensor: torch.Tensor) -> bool:
    try:
        if isinstance(tensor, Unusable) or tensor.device.type != "xla":
            return False
        return private._check_tensor_need_materialization([tensor])[0]
    except RuntimeError:  # it lost its value in an operation that failed, or C++ has freed it
        return False


@contextlib.contextmanager
def numbers_as_constants() -> Iterator[None]:
    """Trace Python numbers as constants of the graph; by default most would be inputs of it."""
    before = private._get_xla_all_numbers_special_scalars()
    private._set_xla_all_numbers_special_scalars(True)
    try:
        yield
    finally:
        private._set_xla_all_numbers_special_scalars(before)


def wait_for_device() -> None:
    """Wait until every graph that was started has run."""
    private._xla_wait_device_ops([])


def check_alive(name: str, tensors: Sequence[torch.Tensor]) -> None:
    """Raise RuntimeError if a tensor has no value.

    Those of a graph in flight have theirs, or have lost it, from when the device has been given the
    graph: that is waited for, and not that it has run.
    """
    # Running a graph waits for that as well, but unlike this keeps the interpreter's lock.
    private._xla_sync_multi(tensors[:1], devices=[], wait=False, sync_xla_data=False)
    if True in map(private._is_placecholder, tensors):
        raise RuntimeError(f"{name}: {_LOST}")


def explained(name: str, error: RuntimeError) -> RuntimeError:
    """Return what to raise where a call failed: of XLA's words for memory that is gone, ours.

    A copy that shares a donated tensor's memory has data of its own, of which XLA alone knows.
    """
    words = ("IsDeleted()", "deleted or donated", "Check failed: data()->tensor_data")
    gone = any(phrase in str(error) for phrase in words)
    return RuntimeError(f"{name}: {_LOST}") if gone else error


def next_seed() -> torch.Tensor:
    """Return the device's random seed and advance it, as a sync of torch-xla does."""
    device = device_name()
    seed = private._get_base_seed_as_tensor(device)
    following = (1012031 + private._xla_get_rng_seed(device) * 7012063) % 2**64
    private._xla_set_rng_seed(following, device)
    return seed


@functools.cache
def device_name() -> str:
    """Return the process's XLA device. Every step needs it, and torch-xla takes 0.1 ms to tell."""
    begin()
    return str(xla().device())
