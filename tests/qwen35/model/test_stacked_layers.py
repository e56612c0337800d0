"""Layers with stacked fields are the layers that went in, for one rank and for several."""

from typing import NamedTuple

import pytest
import torch
from torch.utils import _pytree

import qwen35
from qwen35.model.stacked_layers import StackedLayers, like
from qwen35.xla import trees


class A(NamedTuple):
    norm: torch.Tensor
    weight: torch.Tensor


class B(NamedTuple):
    weight: torch.Tensor
    norm: torch.Tensor
    bias: torch.Tensor


KINDS = (A, B, B, A)


def layers_of(rank: int) -> list:
    """One rank's layers: every value of every tensor, and of every rank, is another."""
    numbers = iter(range(1000 * rank, 1000 * rank + 1000, 10))

    def tensor(name: str) -> torch.Tensor:
        shape = {"norm": (3,), "weight": (2, 4), "bias": (1, 2)}[name]
        return next(numbers) + torch.arange(float(torch.Size(shape).numel())).reshape(shape)

    return [kind(*map(tensor, kind._fields)) for kind in KINDS]


def joined(ranks: int) -> list:
    """Layers of several ranks, one after the other along dimension 0."""
    trees = [layers_of(rank) for rank in range(ranks)]
    return _pytree.tree_map(lambda *shards: torch.cat(shards), *trees)


def assert_same_layers(actual, expected) -> None:
    assert [type(layer) for layer in actual] == [type(layer) for layer in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("stacked", [(), ("norm",), ("norm", "bias"), ("norm", "weight", "bias")])
@pytest.mark.parametrize("ranks", [1, 3])
def test_what_goes_in_comes_out(stacked, ranks):
    layers = joined(ranks)
    kept = StackedLayers.of(layers, stacked, ranks)
    assert_same_layers(kept, layers)
    assert_same_layers([kept[-1], kept[-4]], [layers[3], layers[0]])
    assert len(kept) == 4
    with pytest.raises(IndexError):
        kept[4]
    fields = {"norm": 4, "weight": 4, "bias": 2}
    assert len(trees.tensors(kept)) == sum(1 if n in stacked else fields[n] for n in fields)


def test_ranks_stack_and_split_along_dimension_0():
    """What `spmd.stack` and a rank's view of the result do, here on the CPU."""
    trees = [StackedLayers.of(layers_of(rank), ("norm", "bias")) for rank in range(3)]
    whole = _pytree.tree_map(lambda *shards: torch.cat(shards), *trees)
    assert_same_layers(whole, joined(3))
    for rank in range(3):
        share = _pytree.tree_map(lambda tensor, rank=rank: tensor.chunk(3)[rank], whole)
        assert_same_layers(share, layers_of(rank))


def test_it_is_a_tree_in_one_order():
    kept = StackedLayers.of(joined(2), ("norm", "bias"), 2)
    leaves, key, _ = [], [], []
    trees.flatten(kept, leaves, key, [])
    expected, spec = _pytree.tree_flatten(kept)
    assert list(map(id, leaves)) == list(map(id, expected))
    named = list(trees.named_leaves(kept, "layers"))
    assert list(map(id, expected)) == [id(leaf) for _, leaf in named]
    assert [path for path, _ in named[:3]] == [
        "layers.norm",
        "layers.weight[0]",
        "layers.weight[1]",
    ]
    assert_same_layers(_pytree.tree_unflatten(expected, spec), joined(2))
    first, second, *rest = joined(2)
    other: list = []
    trees.flatten(StackedLayers.of([first, *rest, second], ("norm", "bias"), 2), [], other, [])
    assert tuple(key) != tuple(other)  # layers in another order are another signature of jit


def test_other_layers_are_kept_alike_and_the_old_ones_stay():
    old = joined(2)
    kept = StackedLayers.of(old, ("norm",), 2)
    doubled = _pytree.tree_map(lambda tensor: 2 * tensor, old)
    new = like(kept, doubled)
    assert isinstance(new, StackedLayers)
    assert _pytree.tree_structure(new) == _pytree.tree_structure(kept)
    assert_same_layers(new, doubled)
    assert_same_layers(kept, old)
    assert type(like(tuple(old), doubled)) is tuple


def test_one_rank_alone_has_plain_tuples():
    config = qwen35.Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        mrope_section=(1, 1, 0),
        partial_rotary_factor=0.5,
        layer_types=("linear_attention", "full_attention"),
    )
    params = qwen35.init_params(config)
    state = qwen35.init_state(params, 1, 4)
    _, after = qwen35.prefill(params, state, torch.zeros(1, 2, dtype=torch.int64))
    trees = (params, state, after, qwen35.grow(state, 8))
    assert [type(tree.layers) for tree in trees] == [tuple] * 4
