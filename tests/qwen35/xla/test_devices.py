"""Moving tensors to the XLA device of the processor."""

import pytest
import torch

import qwen35
from qwen35.xla import devices

LARGE = (3, 2**20 + 3)  # of float32: over the size from which memory lies in large pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.int32])
@pytest.mark.parametrize("shape", [(), (5,), (3, 7), LARGE])
@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_a_tensor_that_is_handed_over_keeps_its_values(dtype, shape, device):
    tensor = devices.host_memory(shape, dtype)
    assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
    values = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(0))
    tensor.copy_(values)
    moved = devices.hand_over(tensor, device)
    assert moved.device.type == device and moved.dtype == dtype
    del tensor
    assert torch.equal(moved.cpu(), values.to(dtype))
    doubled = qwen35.jit(lambda x: x + x)(moved).cpu() if device == "xla" else moved + moved
    assert torch.equal(doubled, (values + values).to(dtype))


def test_memory_that_is_handed_over_is_not_copied():
    tensor = devices.host_memory(LARGE, torch.float32)
    tensor.zero_()
    moved = devices.hand_over(tensor, "xla")
    tensor[2, -1] = 7  # what callers must not do shows whose memory it is
    assert moved.cpu()[2, -1] == 7


def test_memory_that_was_handed_over_can_be_donated():
    tensor = devices.host_memory(LARGE, torch.float32)
    tensor.fill_(1)
    moved = devices.hand_over(tensor, "xla")
    del tensor
    total = qwen35.jit(lambda x: x + 1, donate=("x",))(moved)
    assert torch.equal(total.cpu(), torch.full(LARGE, 2.0))
    with pytest.raises(RuntimeError, match="donated"):
        qwen35.jit(lambda x: x + 1)(moved)
