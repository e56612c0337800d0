"""gated_delta_prefill on the emulator: the definition, its equalities, and the 27B geometry.

Bounds as in test_nki_chunk: of the largest entry, float32 chains of up to eight chunks.
"""

import itertools

import harness
import numpy as np
import pytest
from harness import CHUNK, PREFILL, STEP

from qwen35.kernels import emulator, oracle
from qwen35.kernels.emulator import cost, machine, registry

EXACT = 1e-5
FAST = 1e-2


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("decay", sorted(oracle.DECAYS))
def test_matches_the_definition(cosine, decay):
    inputs = oracle.inputs(seed=1, tokens=256, group=2, cosine=cosine, decay=decay)
    assert max(harness.errors(PREFILL, inputs)) < EXACT
    assert max(harness.errors(PREFILL, inputs, half=True, exact=False)) < FAST


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_every_cosine_beta_decay_and_state(cosine, beta, group):
    for decay in oracle.DECAYS:
        for scale in (0.0, 1.0, 1e4):
            inputs = oracle.inputs(
                seed=group,
                batch=group,
                tokens=256,
                group=group,
                cosine=cosine,
                beta=beta,
                decay=decay,
                state_scale=scale,
            )
            case = (decay, scale)
            assert max(harness.errors(PREFILL, inputs)) < EXACT, case
            assert max(harness.errors(PREFILL, inputs, half=True, exact=False)) < FAST, case


@pytest.mark.parametrize(("batch", "key_heads", "group"), [(3, 1, 1), (2, 2, 2), (1, 3, 3)])
def test_rows_heads_and_groups(batch, key_heads, group):
    inputs = oracle.inputs(
        seed=5,
        batch=batch,
        tokens=256,
        key_heads=key_heads,
        group=group,
        cosine=0.8,
        decay="mixed",
        key_size=32,
        value_size=64,
    )
    assert max(harness.errors(PREFILL, inputs)) < EXACT


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("tokens", [129, 1000])
def test_padded_lengths(tokens, exact):
    inputs = oracle.inputs(
        seed=6, tokens=tokens, group=2, cosine=0.8, key_size=64, value_size=64, decay="mixed"
    )
    out, state = harness.run(PREFILL, harness.padded(inputs, 128), exact=exact)
    expected, expected_state = oracle.delta_rule(*inputs)
    bound = EXACT if exact else FAST
    assert oracle.relative_error(out[:, :tokens], expected) < bound
    assert oracle.relative_error(state, expected_state) < bound


@pytest.mark.parametrize("exact", [True, False])
def test_is_the_chunk_kernel_repeated_and_any_split_between_chunks(exact):
    """Bit for bit: the same instructions on the same numbers."""
    inputs = oracle.inputs(
        seed=7, batch=2, tokens=384, group=2, cosine=0.8, key_size=32, value_size=32
    )
    whole = harness.run(PREFILL, inputs, exact=exact)
    for kernel, cuts in (
        (CHUNK, (0, 128, 256, 384)),
        (PREFILL, (0, 128, 384)),
        (PREFILL, (0, 256, 384)),
    ):
        pieces, state = [], inputs.state
        for start, stop in itertools.pairwise(cuts):
            out, state = harness.run(
                kernel, harness.tokens(inputs, start, stop, state), exact=exact
            )
            pieces.append(out)
        np.testing.assert_array_equal(np.concatenate(pieces, 1), whole[0])
        np.testing.assert_array_equal(state, whole[1])


def test_is_the_step_kernel_repeated():
    inputs = oracle.inputs(
        seed=8, tokens=128, group=2, cosine=0.8, key_size=32, value_size=32, decay="mixed"
    )
    out, state = harness.run(PREFILL, inputs)
    pieces, stepped = [], inputs.state
    for t in range(128):
        piece, stepped = harness.run(STEP, harness.tokens(inputs, t, t + 1, stepped))
        pieces.append(piece)
    assert oracle.relative_error(np.concatenate(pieces, 1), out) < EXACT
    assert oracle.relative_error(stepped, state) < EXACT


@pytest.mark.parametrize("version", ["0.3", "0.4", "0.5", "0.6", "0.7"])
def test_every_language_version(version):
    inputs = oracle.inputs(tokens=128, key_heads=2, group=3, cosine=0.8, key_size=16, value_size=16)
    for exact in (True, False):
        assert max(harness.errors(PREFILL, inputs, exact=exact, version=version)) < FAST


@pytest.mark.parametrize(
    ("batch", "key_heads"), [(1, 2), (2, 1), (1, 1)], ids=["heads", "rows", "columns"]
)
def test_two_cores_split_heads_rows_or_columns(batch, key_heads):
    inputs = oracle.inputs(
        batch=batch,
        tokens=256,
        key_heads=key_heads,
        group=3,
        cosine=0.8,
        key_size=32,
        value_size=32,
    )
    one, two = harness.run(PREFILL, inputs, lnc=1), harness.run(PREFILL, inputs, lnc=2)
    for a, b in zip(one, two, strict=True):
        assert oracle.relative_error(a, b) < 2e-6


def test_a_length_off_the_chunk_is_refused():
    with pytest.raises(AssertionError, match="multiple of 128"):
        harness.run(PREFILL, oracle.inputs(tokens=130, key_size=16, value_size=16))


def test_more_work_than_one_call_may_unroll_is_refused():
    inputs = oracle.inputs(batch=43, tokens=256, key_heads=4, group=3, key_size=16, value_size=16)
    with pytest.raises(AssertionError, match="at most 1024 chunks x value heads"):
        harness.run(PREFILL, inputs)


# The machine: 27B has 48 value and 16 key heads of 128 x 128, split over 4 or 8 cores.


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("key_heads", [4, 2], ids=["tp4", "tp8"])
def test_a_27b_layer_fits_on_chip(key_heads, exact, lnc):
    """The emulator refuses what does not fit SBUF or PSUM; the state must not fill the rest."""
    inputs = oracle.inputs(tokens=384, key_heads=key_heads, group=3, cosine=0.5)
    simulation = harness.simulate(PREFILL, inputs, exact=exact, lnc=lnc)
    assert simulation.report.sbuf_peak < 192 * 1024
    assert simulation.report.psum_peak <= 8
    expected, expected_state = oracle.delta_rule(*inputs)
    assert oracle.relative_error(simulation.outputs[0], expected) < (EXACT if exact else FAST)
    assert oracle.relative_error(simulation.outputs[1], expected_state) < (EXACT if exact else FAST)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("key_heads", "group"), [(12, 1), (8, 2), (4, 4), (2, 8)])
def test_other_groups_fit_on_chip(key_heads, group, exact):
    """Four chunks are in flight at 512 tokens; more tokens need no more memory."""
    inputs = oracle.inputs(tokens=512, key_heads=key_heads, group=group)
    assert harness.simulate(PREFILL, inputs, exact=exact).report.sbuf_peak < 200 * 1024


@pytest.mark.parametrize("exact", [True, False])
def test_vector_cycles_per_chunk_head(exact):
    """AWS's kernel takes about 4,900 (by the same cost model); ours at most
    3,400 was asked for. The growth from 4 to 8 chunks leaves the start-up out."""
    cycles = [
        harness.simulate(
            PREFILL, oracle.inputs(tokens=tokens, key_heads=2, group=3), exact=exact
        ).report.cycles["vector"]
        for tokens in (512, 1024)
    ]
    assert (cycles[1] - cycles[0]) / (4 * 6) < 1200


def test_inputs_and_outputs_pass_memory_once():
    inputs = oracle.inputs(tokens=256, key_heads=2, group=3)
    report = harness.simulate(PREFILL, inputs).report
    assert report.dma_bytes == sum(x.nbytes for x in inputs) + inputs.value.nbytes + (
        inputs.state.nbytes
    )


# The plan's switches.


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("kernel", "tokens"), [(STEP, 1), (CHUNK, 31), (CHUNK, 128), (PREFILL, 384)]
)
def test_elementwise_work_on_either_engine_gives_the_same_bits(kernel, tokens, exact):
    inputs = oracle.inputs(
        batch=2, tokens=tokens, key_heads=2, group=3, cosine=0.8, decay="mixed", key_size=64
    )
    with_gpsimd, without = (
        harness.simulate(kernel, inputs, exact=exact, gpsimd=gpsimd) for gpsimd in (True, False)
    )
    for a, b in zip(with_gpsimd.outputs, without.outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    work = [
        {op for op in run.report.operations if op.startswith("gpsimd.")}
        for run in (with_gpsimd, without)
    ]
    assert work == [work[0] | {"gpsimd.tensor_tensor"}, {"gpsimd.affine_select"}]


def test_a_slower_gpsimd_costs_less_than_doing_without_it_up_to_twice_its_time():
    """Why GpSimd is the default; scripts/kernels/sensitivity.py has the table."""
    inputs = oracle.inputs(tokens=512, key_heads=4, group=3)
    runs = {
        gpsimd: harness.simulate(PREFILL, inputs, exact=False, gpsimd=gpsimd).report
        for gpsimd in (True, False)
    }
    twice, four_times = (runs[True].estimate_ns(emulator.Costs(gpsimd=n)) for n in (2.0, 4.0))
    without = runs[False].estimate_ns(emulator.Costs())
    assert runs[True].critical_path_ns < twice < without < four_times
    assert runs[True].estimate_ns(emulator.Costs()) == runs[True].critical_path_ns


def test_a_fixed_time_per_instruction_counts_once_for_each():
    report = harness.simulate(PREFILL, oracle.inputs(tokens=256, key_heads=2, group=3)).report
    fixed = emulator.Costs(fixed_ns={"tensor": 1e6})
    assert report.estimate_ns(fixed) >= 1e6 * report.instructions["tensor"]
    assert report.estimate_ns(fixed) < 1e6 * (report.instructions["tensor"] + 1)


@pytest.mark.parametrize(("kernel", "tokens"), [(STEP, 1), (CHUNK, 31), (PREFILL, 384)])
@pytest.mark.parametrize("float16", [True, False])
def test_the_all_bfloat16_plan_has_one_kind_of_16_bit_operands(
    kernel, tokens, float16, monkeypatch
):
    """The other mixes two in a product, which a device may not take."""
    pairs, allocated = set(), set()
    matmul, allocate = cost.matmul, machine.Core.allocate

    def record_operands(stationary, moving):
        pairs.add((str(stationary.dtype), str(moving.dtype)))
        return matmul(stationary, moving)

    def record_dtype(self, shape, dtype, *args, **kwargs):
        allocated.add(str(dtype))
        return allocate(self, shape, dtype, *args, **kwargs)

    monkeypatch.setattr(cost, "matmul", record_operands)
    monkeypatch.setattr(machine.Core, "allocate", record_dtype)
    inputs = oracle.inputs(tokens=tokens, key_heads=2, group=3, key_size=32, value_size=32)
    harness.run(kernel, inputs, half=True, exact=False, float16=float16)
    assert allocated == {"float32", "bfloat16"} | ({"float16"} if float16 else set())
    mixed = {frozenset(pair) for pair in pairs if len(set(pair)) > 1}
    assert mixed == ({frozenset(("float16", "bfloat16"))} if float16 else set())


def test_masks_are_made_in_float32_by_equal_and_greater_equal(monkeypatch):
    """Only these have a published kernel behind them; 16 bits come by a copy. A's diagonal is no
    mask: it is set in place, by not_equal."""
    seen = []
    select = registry.INSTRUCTIONS["affine_select"]

    def record(core, dst, pattern, channel_multiplier, on_true_tile, on_false_value, cmp_op, *rest):
        seen.append((cmp_op.name, str(dst.dtype), str(on_true_tile.dtype)))
        return select(
            core, dst, pattern, channel_multiplier, on_true_tile, on_false_value, cmp_op, *rest
        )

    monkeypatch.setitem(
        registry.INSTRUCTIONS, "affine_select", lambda core, **x: record(core, *x.values())
    )
    for kernel, tokens, diagonals in ((STEP, 1, 0), (PREFILL, 256, 2)):
        seen.clear()
        inputs = oracle.inputs(tokens=tokens, key_heads=2, group=2, key_size=32, value_size=32)
        harness.run(kernel, inputs, exact=False)
        masks = [entry for entry in seen if entry[0] != "not_equal"]
        assert masks and all(entry[1:] == ("float32", "float32") for entry in masks)
        assert {entry[0] for entry in masks} <= {"equal", "greater_equal"}
        assert len(seen) - len(masks) == 2 * diagonals, "one for each chunk of a block"
