"""The engine on several ranks, held to the engine on one device."""

import pytest
import serving

import qwen35
from qwen35.sharding.mesh import Mesh

slow = pytest.mark.slow

# Bytes of the prefix cache that hold a dozen snapshots.
CACHE_BYTES = {"two_layers": 60_000, "even": 500_000, "heads_of_27b": 1_500_000}


@pytest.mark.parametrize(
    ("name", "tp", "count"),
    [
        ("two_layers", 2, 16),
        pytest.param("even", 2, 40, marks=slow),
        pytest.param("even", 4, 40, marks=slow),
        pytest.param("heads_of_27b", 8, 40, marks=slow),
        pytest.param("heads_of_27b", 16, 40, marks=slow),
    ],
)
def test_an_engine_on_virtual_devices(name, tp, count, checkpoint, run_ranks):
    """Every request ends as on one device, and after the warm-up nothing is compiled."""
    path = checkpoint(name)
    arguments = {"path": str(path), "count": count, "cache_bytes": CACHE_BYTES[name]}
    [said] = run_ranks(
        "serve_on_virtual_devices", Mesh(tp=tp), processes=1, timeout=900, **arguments
    )
    engine = serving.engine_for(qwen35.load(path), cache_bytes=CACHE_BYTES[name])
    expected = serving.serve(engine, count)
    assert said.ends == expected.ends
    assert said.compiled == (0, 0)
    for ours, theirs in zip(said.logprobs, expected.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert said.stats["evictions"] and expected.stats["evictions"]
    assert said.stats["hits"] and {reason for _, reason in said.ends} > {"length", "cancelled"}
    if name == "even":  # no rank holds a copy, so that the caches hold as much
        assert said.cached == expected.cached and said.stats == expected.stats


@slow
@pytest.mark.parametrize("name", ["two_layers", "even"])
def test_slots_of_all_ranks_grow(name, checkpoint, run_ranks):
    """To the tokens of one device; a step is compiled once for each capacity."""
    path = checkpoint(name)
    [(grown, compiled)] = run_ranks(
        "grow_engine_on_virtual_devices", Mesh(tp=2), path=str(path), processes=1
    )
    engine = serving.engine_for(qwen35.load(path), max_capacity=serving.LARGEST)
    assert grown == serving.grow(engine)
    assert {name: len(compiled[name]) for name in ("prefill", "decode")} == {
        "prefill": 2,
        "decode": 2,
    }, compiled


def test_what_an_engine_does_not_run_on(checkpoint):
    params = qwen35.load(checkpoint("two_layers"))
    with pytest.raises(ValueError, match="one dp row, not on dp = 2"):
        serving.engine_for(params.with_runtime(mesh=Mesh(dp=2), rank=None))
