"""Memory of the host that becomes the device's."""

import gc
import subprocess
import sys

import pytest
import torch

import qwen35
from qwen35.xla.host_memory import written

LARGE = (3, 2**20 + 3)  # of float32: over the size from which memory lies in large pages
DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.int16, torch.int32, torch.uint8]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (4, 1, 2), (0, 3), LARGE])
@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_a_tensor_has_the_values_that_were_written(dtype, shape, device):
    values = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    def write(room):
        assert room.shape == shape and room.dtype == dtype and room.is_contiguous()
        room.copy_(values)

    made = written(shape, dtype, device, write)
    assert made.device.type == device and made.dtype == dtype
    assert torch.equal(made.cpu(), values)
    computed = qwen35.jit(lambda x: x + x)(made).cpu() if device == "xla" else made + made
    assert torch.equal(computed, values + values)


def test_the_memory_is_not_copied():
    kept = []

    def write(room):
        room.zero_()
        kept.append(room)  # what callers must not do shows whose memory it is

    made = written(LARGE, torch.float32, "xla", write)
    kept[0][2, -1] = 7
    assert made.cpu()[2, -1] == 7


def test_the_memory_can_be_donated():
    made = written(LARGE, torch.float32, "xla", lambda room: room.fill_(1))
    total = qwen35.jit(lambda x: x + 1, donate=("x",))(made)
    assert torch.equal(total.cpu(), torch.full(LARGE, 2.0))
    with pytest.raises(RuntimeError, match="donated"):
        qwen35.jit(lambda x: x + 1)(made)


def test_no_python_object_owns_the_memory():
    """A thread of XLA frees it, which must not need the interpreter: that may be ending."""

    def tensors():
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    before = tensors()
    made = written((5,), torch.float32, "xla", lambda room: room.fill_(1))
    assert tensors() == before + 1 and made.device.type == "xla"


def test_a_write_that_fails_raises_its_own_error():
    def write(room):
        raise OSError("the file has ended")

    with pytest.raises(OSError, match="has ended"):
        written(LARGE, torch.float32, "xla", write)


def test_memory_is_given_back():
    """In a process of its own: in another's, what ran before had the peak."""
    program = (
        "import resource, torch; from qwen35.xla.host_memory import written\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "make = lambda: written((2**25,), torch.int8, 'xla', lambda room: room.zero_()).cpu()\n"
        "make(); before = peak()\n"
        "for _ in range(40): make()\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stdout) < 400 * 1024, done.stderr  # KiB, where 40 tensors have 1,280 MiB


def test_a_process_ends_while_its_device_still_computes():
    """The last steps of a look-ahead hold parameters when the interpreter goes.

    With memory that a Python object owns, this process never ended, or crashed.
    """
    program = (
        "import torch, qwen35; from qwen35.xla.host_memory import written\n"
        "fill = lambda room: room.fill_(1e-3)\n"
        "make = lambda: written((1500, 1500), torch.float32, 'xla', fill)\n"
        "step = qwen35.jit(lambda x, y: (x @ y) @ (y @ x))\n"
        "x = make(); y = step(x, make())\n"
        "for _ in range(8): y = step(make(), y)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# Takes 50 MB for two matrices that exist within an execution alone, and counts the pages that the
# kernel clears for sixteen executions, after some whose memory may be freed late.
EXECUTIONS = """
import resource, torch, qwen35

step = qwen35.jit(lambda x: (x @ x.T).sin() @ x)
x = qwen35.device_put(torch.ones(2500, 8), "xla")
for _ in range(8):
    step(x).cpu()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    step(x).cpu()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages that Linux clears")
def test_executions_take_again_what_those_before_them_freed():
    done = subprocess.run(
        [sys.executable, "-c", EXECUTIONS], capture_output=True, text=True, check=True
    )
    # Each takes 12,208 pages of 4 KiB, and without the setting all of them anew.
    assert int(done.stdout) < 16 * 12208 / 2
