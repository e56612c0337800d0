"""The loop that XLA compiles, against the same rounds in Python."""

import pytest
import torch

import qwen35
from qwen35.kernels.loop import loop_map, scan


def round_of(carry, x):
    total, decay = carry
    value, weight = x
    total = decay * total + value @ weight
    return (total, decay * 0.5), (total.exp(), total.sum(-1))


def case(rounds: int):
    generator = torch.Generator().manual_seed(rounds)
    carry = (torch.randn(2, 3, generator=generator), torch.tensor(0.9))
    values = torch.randn(rounds, 2, 4, generator=generator)
    return carry, (values, torch.randn(rounds, 4, 3, generator=generator))


def by_hand(carry, xs):
    ys = []
    for value, weight in zip(*xs, strict=True):
        carry, y = round_of(carry, (value, weight))
        ys.append(y)
    return carry, tuple(torch.stack(column) for column in zip(*ys, strict=True))


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_scan_is_the_rounds_one_after_the_other(rounds, device):
    carry, xs = case(rounds)
    run = (lambda c, x: scan(round_of, c, x)) if device == "cpu" else None
    run = run or qwen35.jit(lambda carry, xs: scan(round_of, carry, xs))
    got = qwen35.device_put(run(*qwen35.device_put((carry, xs), device)), "cpu")
    torch.testing.assert_close(got, by_hand(carry, xs), rtol=1e-6, atol=1e-6)


def test_gradients_through_the_loop():
    carry, xs = case(4)
    xs = tuple(x.requires_grad_() for x in xs)

    def loss(run):
        (total, _), (first, second) = run(carry, xs)
        return torch.autograd.grad(total.sum() + first.sum() + second.square().sum(), xs)

    mine = loss(lambda c, x: scan(round_of, c, x))
    torch.testing.assert_close(mine, loss(by_hand), rtol=1e-6, atol=1e-6)


def test_loop_map_stacks_what_each_round_gives():
    shared, (values, _) = torch.randn(4, 3), case(3)[1]
    got = loop_map(lambda s, x: x @ s, shared, values)
    torch.testing.assert_close(got, values @ shared)
