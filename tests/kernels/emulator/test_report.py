"""Costs against the published formulas, the schedule against cases worked out by hand."""

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest

from qwen35.kernels import emulator

PREPARE = """
    a = sbuf((128, 128))
    b = sbuf((128, 128))
    h = sbuf((128, 128), nl.bfloat16)
    g = sbuf((128, 128), nl.bfloat16)
    w = sbuf((128, 512))
    v = sbuf((128, 512), nl.bfloat16)
    p = psum((128, 512))
    q = psum((128, 128), nl.bfloat16)
    m = sbuf((128, 128), nl.uint8)
    c = sbuf((128, 1))
    for tile in (a, b, h, g, w, v, p, q, c):
        nisa.memset(tile, 1.0)
    nisa.memset(m, 1)
"""
# instruction -> (engine, cycles), N = 128 unless it says otherwise.
COSTS = {
    "nisa.nc_matmul(p, h, v, accumulate=False)": ("tensor", 512),
    "nisa.nc_matmul(p, a, w, accumulate=False)": ("tensor", 4 * 512),
    "nisa.nc_matmul(p[:, 0:2], h, v[:, 0:2], accumulate=False)": ("tensor", 64),
    "nisa.nc_matmul(p[0:32, 0:2], h[:, 0:32], v[:, 0:2], accumulate=False)": ("tensor", 32),
    "nisa.nc_matmul(p[:, 0:2], a, w[:, 0:2], accumulate=False)": ("tensor", 4 * 64),
    "nisa.nc_transpose(q, h)": ("tensor", 128),
    "nisa.nc_transpose(p[:, 0:128], a)": ("tensor", 2 * 128),
    "nisa.nc_transpose(p[0:32, 0:32], a[0:32, 0:32], engine=nisa.engine.vector)": ("vector", 64),
    "nisa.tensor_tensor(a, a, b, nl.add)": ("vector", 256),
    "nisa.tensor_tensor(a, p[:, 0:128], b, nl.add)": ("vector", 128),
    "nisa.tensor_tensor(h, h, g, nl.add)": ("vector", 128),
    "nisa.tensor_tensor(a, h, g, nl.add)": ("vector", 256),
    "nisa.tensor_tensor(a, a, b, nl.add, engine=nisa.engine.gpsimd)": ("gpsimd", 256),
    "nisa.tensor_copy(a, b)": ("vector", 128),
    "nisa.tensor_copy(v, v)": ("vector", 512 / 4),
    "nisa.tensor_copy(v[:, ::2], v[:, ::2])": ("vector", 256 / 2),
    "nisa.tensor_copy(q, h)": ("vector", 64),
    "nisa.tensor_copy(a, p[:, 0:128], engine=nisa.engine.scalar)": ("scalar", 128),
    "nisa.tensor_copy(a[:, 0:8], b[:, 0:8], engine=nisa.engine.gpsimd)": ("gpsimd", 64),
    "nisa.tensor_scalar(a, b, nl.add, 1.0, op1=nl.multiply, operand1=c)": ("vector", 128),
    "nisa.tensor_scalar(a, b, nl.add, 1.0, engine=nisa.engine.scalar)": ("scalar", 128),
    "nisa.tensor_scalar(a, b, nl.rsqrt, 0.0, engine=nisa.engine.gpsimd)": ("gpsimd", 4 * 128),
    "nisa.scalar_tensor_tensor(a, a, nl.add, c, nl.add, b)": ("vector", 256),
    "nisa.scalar_tensor_tensor(a, a, nl.add, c, nl.add, p[:, 0:128])": ("vector", 256),
    "nisa.scalar_tensor_tensor(a, h, nl.subtract, c, nl.multiply, g)": ("vector", 128),
    "nisa.tensor_tensor_scan(a, a, b, 0.0, nl.multiply, nl.add)": ("vector", 256),
    "nisa.tensor_scalar_cumulative(a, b, nl.add, nl.add, 0.0)": ("vector", 128),
    "nisa.tensor_reduce(c, nl.add, w, axis=1)": ("vector", 512),
    "nisa.reciprocal(a, b)": ("vector", 8 * 128),
    "nisa.memset(a, 0.0)": ("vector", 128),
    "nisa.memset(v, 0.0)": ("vector", 256),
    "nisa.select_reduce(a, m, b, 0.0)": ("vector", 128),
    "nisa.nc_stream_shuffle(a, b, [0] * 32)": ("vector", 128),
    "nisa.activation(a, nl.exp, b)": ("scalar", 128),
    "nisa.activation(a[:, 0:8], nl.exp, b[:, 0:8])": ("scalar", 64),
    "nisa.activation_reduce(a, nl.exp, b, nl.add, c)": ("scalar", 128 + 64),
    "nisa.iota(a, [[1, 128]])": ("gpsimd", 150 + 128),
    "nisa.affine_select(a, [[1, 128]], -1, b, 0.0)": ("gpsimd", 150 + 128),
}


def body(*calls):
    return PREPARE + "".join(f"    {call}\n" for call in calls) + "    return output(c)"


@pytest.mark.parametrize("call", COSTS)
def test_cycles_by_the_published_formulas(run, call):
    engine, cycles = COSTS[call]
    before, after = run(body()).report, run(body(call)).report
    for name in after.cycles:
        assert after.cycles[name] - before.cycles[name] == (cycles if name == engine else 0)
        assert after.instructions[name] - before.instructions[name] == (name == engine)


# The last of the preparations on VectorE: what depends on it starts at one time on every engine.
READY = "ready = nisa.memset(m, 1)"


def spans(report):
    return [s for s in report.timeline if s.op not in ("memset", "dma_copy")]


def test_independent_instructions_overlap_and_dependent_ones_wait(run):
    calls = (
        READY,
        "nisa.activation(a, nl.exp, a).depends_on(ready)",
        "nisa.tensor_copy(b, b).depends_on(ready)",
        "nisa.tensor_copy(a, a)",
    )
    first, second, third = spans(run(body(*calls)).report)
    assert first.start == second.start
    # 60 cycles of the producer's 1.2 GHz clock until ScalarE's result is seen.
    assert third.start == pytest.approx(first.end + 60 / 1.2)
    assert third.end - third.start == pytest.approx(128 / 0.96)


def test_parts_of_a_tensor_depend_apart(run):
    calls = (
        READY,
        "nisa.activation(a[:, 0:64], nl.exp, a[:, 0:64]).depends_on(ready)",
        "nisa.tensor_copy(b[:, 0:64], a[:, 64:128]).depends_on(ready)",
        "nisa.tensor_copy(b[:, 64:128], a[:, 0:64])",
    )
    first, second, third = spans(run(body(*calls)).report)
    assert second.start == first.start
    assert third.start == pytest.approx(first.end + 60 / 1.2)


def test_partitions_of_a_tensor_depend_apart(run):
    calls = (
        READY,
        "nisa.activation(a[0:64, :], nl.exp, a[0:64, :]).depends_on(ready)",
        "nisa.tensor_copy(b[64:128, :], a[64:128, :]).depends_on(ready)",
        "nisa.tensor_copy(b[0:64, :], a[0:64, :])",
    )
    first, second, third = spans(run(body(*calls)).report)
    assert second.start == first.start
    assert third.start == pytest.approx(first.end + 60 / 1.2)


def test_overwriting_waits_for_readers(run):
    calls = ("nisa.activation(w, nl.exp, w)", "nisa.tensor_copy(w[:, 0:1], c)")
    first, second = spans(run(body(*calls)).report)
    assert second.start >= first.end


def test_depends_on_adds_an_edge(run):
    calls = (
        "first = nisa.activation(w, nl.exp, w)",
        "nisa.tensor_copy(b, b).depends_on(first)",
    )
    first, second = spans(run(body(*calls)).report)
    assert second.start >= first.end


LOOP = """
    x = sbuf((128, 128), nl.bfloat16)
    nisa.memset(x, 1.0)
    result = sbuf((128, 512))
    for i in range(12):
        p = psum((128, {columns}))
        nisa.nc_matmul(p[:, 0:128], x, x)
        nisa.reciprocal(result[:, 0:128], p[:, 0:128])
    return output(result[:, 0:128])
"""


def test_psum_banks_bound_how_far_the_tensor_engine_runs_ahead(run):
    one = run(LOOP.format(columns=128)).report
    eight = run(LOOP.format(columns=4096)).report
    matmuls = [[s for s in r.timeline if s.op == "nc_matmul"] for r in (one, eight)]
    readers = [[s for s in r.timeline if s.op == "reciprocal"] for r in (one, eight)]
    # With one bank each, matmul 8 is the first that waits for a bank (the reader of matmul 0).
    assert matmuls[0][7].start < readers[0][0].end
    assert matmuls[0][8].start >= readers[0][0].end
    # With all eight banks in one tensor, each matmul waits for the reader before it.
    assert all(m.start >= c.end for m, c in zip(matmuls[1][1:], readers[1], strict=False))
    assert eight.critical_path_ns > one.critical_path_ns
    assert (one.psum_peak, eight.psum_peak) == (1, 8)


def test_dma_moves_bytes_at_the_cores_bandwidth(run):
    x = np.zeros((128, 4096), np.float32)
    report = run("t = load(x)\nreturn output(t)", x=x).report
    assert report.dma_bytes == 2 * x.nbytes
    assert report.dma_runs == 2 * 128  # a row per partition each way
    assert report.instructions["dma"] == 2
    load, store = report.timeline
    # 368 GB/s, and 1.3 µs of latency before each.
    assert load.end == pytest.approx(1300 + x.nbytes / 368)
    assert store.start == pytest.approx(load.end + 1300)
    assert report.critical_path_ns == store.end
    assert report.sbuf_peak == 4096 * 4


def test_sbuf_bounds_how_far_loads_run_ahead(run):
    """Nearly a quarter of SBUF per tile: the fifth load waits for the use of the first."""
    x = np.zeros((5, 1, 14300), np.float32)
    text = """
        total = sbuf((1, 5))
        for i in range(5):
            tile = sbuf((1, 14300))
            nisa.dma_copy(dst=tile, src=x[i, :, 0 : 14300])
            nisa.reciprocal(tile, tile)
            nisa.tensor_reduce(total[:, i : i + 1], nl.add, tile, axis=1)
        return output(total)
    """
    report = run(text, x=x).report
    loads = [s for s in report.timeline if s.op == "dma_copy"][:5]
    sums = [s for s in report.timeline if s.op == "tensor_reduce"]
    assert loads[3].start < sums[0].end
    assert loads[4].start >= sums[0].end


def test_short_runs_of_a_dma_are_counted(run):
    x = np.zeros((64, 128), np.float32)
    body = "t = sbuf((128, 64))\nnisa.dma_copy(dst=t, src=x.ap([[1, 128], [128, 64]]))"
    report = run(body + "\nreturn output(t)", x=x).report
    assert report.dma_runs == 128 * 64 + 128  # every element apart, then rows


def test_placed_tensors_count_by_their_addresses_and_share_hazards(run):
    text = """
        first = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf, address=(0, 0))
        second = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf, address=(0, 4096))
        third = nl.ndarray((128, 32), dtype=nl.float32, buffer=nl.sbuf, address=(0, 128))
        nisa.memset(first, 1.0)
        nisa.activation(second, nl.exp, first)
        nisa.memset(third, 2.0)
        return output(second)
    """
    report = run(text).report
    assert report.sbuf_peak == 4096 + 256
    activation = next(s for s in report.timeline if s.op == "activation")
    last = [s for s in report.timeline if s.op == "memset"][-1]
    assert last.start >= activation.end  # the third tensor takes bytes that the first is read from


def test_table_names_every_engine(run):
    report = run(body("nisa.activation(a, nl.exp, a)")).report
    text = report.table()
    for engine in ("tensor", "vector", "scalar", "gpsimd", "dma"):
        assert engine in text
    assert "modelled, not measured" in text


ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("kernel", ["step", "chunk", "fused"])
def test_the_report_script_prints_and_draws(kernel, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(
        "kernel_report", ROOT / "scripts/kernels/report.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    picture = tmp_path / "out.png"
    script.main(["--kernel", kernel, "--tokens", "128", "--tp", "16", "--plot", str(picture)])
    text = capsys.readouterr().out
    title = text.splitlines()[0]
    assert title.startswith("gated_delta_") and "tp 16 (3 value and 1 key heads), float32" in title
    assert ("128 tokens" in title) == (kernel != "step")
    assert "critical path" in text
    assert "cycles per" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_chunk_head_of_the_27b_model_emulates_in_under_two_seconds():
    """Processor time, so that a busy machine does not fail it: so long may a developer wait."""
    rng = np.random.default_rng(0)
    kernel = emulator.load("nki_fused", "gated_delta_prefill")
    query, key, value = rng.standard_normal((3, 1, 128, 1, 128)).astype(np.float32) / 11
    decay, beta = -np.ones((1, 128, 1), np.float32), np.full((1, 128, 1), 0.5, np.float32)
    state = np.zeros((1, 1, 128, 128), np.float32)
    start = time.process_time()
    emulator.simulate(kernel, query, key, value, decay, beta, state)
    assert time.process_time() - start < 2
