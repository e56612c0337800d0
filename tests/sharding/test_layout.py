"""The layout table: who holds what, that nothing is lost, and what is refused."""

import dataclasses
import functools
import itertools
import math

import joining
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import qwen35
from qwen35.files.materialize import materialize
from qwen35.model.declarations import axis_sizes, declarations, declare
from qwen35.sharding.layout import RULES, local_units, possible_tp
from qwen35.sharding.mesh import Mesh

SIZES_27B = axis_sizes(qwen35.presets["27b"])


def held(axis: str, tp: int) -> list[tuple]:
    return [local_units(axis, SIZES_27B, Mesh(tp=tp), rank) for rank in range(tp)]


def test_27b_at_tp_8_by_hand():
    """3 of 6 queries of a KV head on each of the two ranks that hold it; 2 key heads, 6 values."""
    assert held("query_heads", 8) == [tuple(range(3 * r, 3 * r + 3)) for r in range(8)]
    assert held("kv_heads", 8) == [(0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,)]
    assert held("key_heads", 8) == [(2 * r, 2 * r + 1) for r in range(8)]
    assert held("value_heads", 8) == [tuple(range(6 * r, 6 * r + 6)) for r in range(8)]
    assert [len(units) for units in held("mlp", 8)] == [17408 // 8] * 8
    assert held("vocab", 8)[3] == tuple(range(3 * 31040, 4 * 31040))


def test_27b_at_tp_16_pads_two_query_slots_per_kv_head():
    expected = []
    for kv in range(4):
        queries = [*range(6 * kv, 6 * kv + 6), None, None]
        expected += [tuple(queries[i : i + 2]) for i in range(0, 8, 2)]
    assert held("query_heads", 16) == expected
    assert held("kv_heads", 16) == [(kv,) for kv in range(4) for _ in range(4)]


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("preset", list(qwen35.presets))
def test_heads_stay_with_what_they_read(preset, tp):
    """A rank's queries read its KV heads, and its value heads its key heads, in their order."""
    config = qwen35.presets[preset]
    sizes = axis_sizes(config)
    group = config.num_attention_heads // config.num_key_value_heads
    repeats = config.linear_num_value_heads // config.linear_num_key_heads
    seen = {axis: set() for axis in RULES}
    for rank in range(tp):
        units = {axis: local_units(axis, sizes, Mesh(tp=tp), rank) for axis in RULES}
        local_group = len(units["query_heads"]) // len(units["kv_heads"])
        for slot, head in enumerate(units["query_heads"]):
            assert head is None or head // group == units["kv_heads"][slot // local_group]
        for slot, head in enumerate(units["value_heads"]):
            assert head // repeats == units["key_heads"][slot // repeats]
        for axis, held in units.items():
            seen[axis] |= set(held) - {None}
    assert all(seen[axis] == set(range(sizes[axis])) for axis in RULES)


def test_ranks_of_one_place_in_different_dp_rows_hold_the_same():
    mesh = Mesh(dp=3, tp=4)
    for axis, rank in itertools.product(RULES, range(4)):
        for other in (rank + 4, rank + 8):
            assert local_units(axis, SIZES_27B, mesh, rank) == local_units(
                axis, SIZES_27B, mesh, other
            )


@pytest.mark.parametrize("preset", list(qwen35.presets))
def test_published_sizes_split_1_2_4_8_16_ways(preset):
    assert possible_tp(axis_sizes(qwen35.presets[preset])) == [1, 2, 4, 8, 16]


def test_an_impossible_tp_is_refused_with_numbers_and_what_would_work():
    runtime = qwen35.Runtime(mesh=Mesh(tp=6))
    with pytest.raises(ValueError) as error:
        declare(qwen35.presets["27b"], runtime)
    text = str(error.value)
    assert "tp = 6" in text and "tp = 1, 2, 4, 8, 16" in text
    for fact in ("vocab 248320", "mlp 17408", "kv_heads 4", "key_heads 16"):
        assert fact in text
    with pytest.raises(ValueError, match="key_heads 16 is not a multiple of 32"):
        declare(qwen35.presets["27b"], qwen35.Runtime(mesh=Mesh(tp=32)))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="no sharding rule for axis 'experts'"):
        local_units("experts", SIZES_27B, Mesh(tp=2), 0)
    with pytest.raises(ValueError, match=r"rank 4 is outside the mesh of dp 2 x tp 2 = 4 ranks"):
        local_units("mlp", SIZES_27B, Mesh(dp=2, tp=2), 4)
    with pytest.raises(ValueError, match="tp must be a positive integer, not 0"):
        Mesh(tp=0)
    with pytest.raises(ValueError, match="reduce must be one of"):
        Mesh(tp=2, reduce="float16")


def test_mesh_coordinates_and_groups():
    mesh = Mesh(dp=2, tp=3)
    assert [mesh.coordinates(rank) for rank in range(6)] == list(
        itertools.product(range(2), range(3))
    )
    assert [mesh.rank(*mesh.coordinates(rank)) for rank in range(6)] == list(range(6))
    assert mesh.tp_groups == [[0, 1, 2], [3, 4, 5]]
    assert mesh.dp_groups == [[0, 3], [1, 4], [2, 5]]


@st.composite
def configs_and_tp(draw):
    """Any heads, groups and widths that tp divides, or replicates and pads."""
    tp = draw(st.integers(1, 6))
    times = functools.partial(st.integers, 1)
    kv_heads = draw(st.sampled_from([n for n in range(1, 13) if n % tp == 0 or tp % n == 0]))
    key_heads = tp * draw(times(3))
    config = qwen35.Config(
        vocab_size=tp * draw(times(7)),
        hidden_size=draw(st.integers(1, 9)),
        intermediate_size=tp * draw(times(5)),
        num_hidden_layers=2,
        num_attention_heads=kv_heads * draw(times(7)),
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(times(3)),
        linear_conv_kernel_dim=draw(st.integers(2, 4)),
        linear_key_head_dim=draw(times(4)),
        linear_value_head_dim=draw(times(4)),
        linear_num_key_heads=key_heads,
        linear_num_value_heads=key_heads * draw(times(3)),
        layer_types=("linear_attention", "full_attention"),
        partial_rotary_factor=1.0,
        tie_word_embeddings=draw(st.booleans()),
    )
    return config, tp


@settings(max_examples=150)
@given(configs_and_tp(), st.integers(1, 3))
def test_slicing_then_joining_is_the_identity(config_and_tp, dp):
    config, tp = config_and_tp
    sizes, mesh = axis_sizes(config), Mesh(dp=dp, tp=tp)
    assert tp in possible_tp(sizes)

    @functools.cache
    def read(source):  # every value differs, and none is the padding's zero
        return torch.arange(1.0, 1 + math.prod(source.shape)).view(source.shape)

    for parameter in declarations(declare(config, qwen35.Runtime(mesh=mesh))):
        whole = materialize(parameter, read, torch.float32, sizes, qwen35.Runtime())
        shares = [
            materialize(parameter, read, torch.float32, sizes, qwen35.Runtime(mesh=mesh, rank=rank))
            for rank in range(mesh.size)
        ]
        assert len({share.shape for share in shares}) == 1, "every rank runs one graph"
        for row in range(dp):
            mine = shares[row * tp : (row + 1) * tp]
            assert torch.equal(joining.join_parameter(parameter, mine, sizes, mesh), whole)


@settings(max_examples=40)
@given(configs_and_tp(), st.integers(1, 3))
def test_state_shapes_follow_the_layout(config_and_tp, batch):
    config, tp = config_and_tp
    mesh = Mesh(tp=tp)
    whole = qwen35.init_state(qwen35.init_params(config), batch, capacity=5)
    states = []
    for rank in range(tp):
        runtime = qwen35.Runtime(mesh=mesh, rank=rank)
        states.append(qwen35.init_state(qwen35.init_params(config, runtime=runtime), batch, 5))
    joined = joining.join_state(config, states, mesh)
    for ours, theirs in zip(joined, pytree.tree_leaves(whole), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype


def test_a_rank_of_init_params_is_a_slice_of_the_whole_model():
    config = dataclasses.replace(
        qwen35.presets["0.8b"],
        vocab_size=32,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=4,
        layer_types=(),
        vision=None,
    )
    mesh, sizes = Mesh(tp=4), axis_sizes(config)
    whole = qwen35.init_params(config, seed=3)
    ranks = [
        qwen35.init_params(config, seed=3, runtime=qwen35.Runtime(mesh=mesh, rank=rank))
        for rank in range(4)
    ]
    assert whole.tp_index is None
    assert [rank.tp_index.tolist() for rank in ranks] == [[0], [1], [2], [3]]
    for parameter, leaf, *shares in zip(
        declarations(declare(config)),
        pytree.tree_leaves(whole),
        *(pytree.tree_leaves(dataclasses.replace(rank, tp_index=None)) for rank in ranks),
        strict=True,
    ):
        assert torch.equal(joining.join_parameter(parameter, shares, sizes, mesh), leaf)
