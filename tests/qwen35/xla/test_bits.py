"""Bits of numbers: torch's own conversion is the right one, on both devices."""

import pytest
import torch

from qwen35 import device_put
from qwen35.xla.bits import from_bits, from_e4m3, from_fp8, masked, to_bits

EVERY = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(256, 256)


@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_every_number_comes_back(device):
    numbers = EVERY.view(torch.bfloat16)
    wide = device_put(from_bits(device_put(EVERY, device)), "cpu")
    # Bit for bit: -0 is not 0, and NaN is NaN.
    assert torch.equal(wide.view(torch.int32), numbers.float().view(torch.int32))
    finite = numbers[~numbers.isnan()]
    for given in (finite, finite.float()):
        bits = device_put(to_bits(device_put(given, device)), "cpu")
        assert torch.equal(bits, finite.view(torch.int16))


@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_rounds_to_the_nearest_and_ties_to_even(device):
    one = 2.0**-7  # the last place of a number from 1 to 2
    numbers = torch.tensor([1 + one / 2, 1 + 3 * one / 2, 1 + one / 2 + 2**-20, 3e38, float("nan")])
    bits = device_put(to_bits(device_put(numbers, device)), "cpu")
    rounded = bits.view(torch.bfloat16).float()
    assert rounded[:3].tolist() == [1.0, 1 + 2 * one, 1 + one]
    assert torch.equal(rounded[3], numbers[3].bfloat16().float()) and rounded[4].isnan()


@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_every_byte_is_the_fp8_number_and_has_the_masked_bits_that_it_is(device):
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(16, 16)
    placed = device_put(every, device)
    numbers = device_put(from_fp8(placed), "cpu")
    exact = every.view(torch.float8_e4m3fn).float()
    finite = ~exact.isnan()
    assert finite.sum() == 254
    assert torch.equal(numbers.view(torch.int32)[finite], exact.view(torch.int32)[finite])
    low = masked(placed, device_put(torch.tensor(15, dtype=torch.int32), device))
    assert torch.equal(device_put(low, "cpu"), (every % 16).float())


@pytest.mark.parametrize("device", ["cpu", "xla"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_byte_up_to_240_is_the_e4m3_number_that_it_is(device, dtype):
    """Written out: a sign, four bits of exponent less 7, three of what follows the 1."""
    every = torch.arange(256, dtype=torch.int32)
    numbers = device_put(from_e4m3(device_put(every.to(torch.uint8), device), dtype), "cpu")
    assert numbers.dtype == dtype
    for bits in every.tolist():
        sign, exponent, rest = -1.0 if bits > 127 else 1.0, bits >> 3 & 15, bits & 7
        if exponent < 15:
            value = (8 + rest) * 2.0 ** (exponent - 10) if exponent else rest * 2.0**-9
            assert float(numbers[bits]) == sign * value
