"""The engine on several ranks, held to the engine on one device."""

import time

import models
import pytest
import serving

import qwen35
from qwen35.sharding.mesh import Mesh

slow = pytest.mark.slow

# Bytes of the prefix cache that hold a dozen snapshots.
CACHE_BYTES = {"two_layers": 60_000, "even": 500_000, "heads_of_27b": 1_500_000}


def check_alike(said, expected, copies):
    """Every request ended alike; with `copies`, a cancelled one as far as both had come.

    Ranks that hold copies of a KV head keep fewer snapshots in the same bytes, and what is read
    again takes steps, before which a request may be cancelled that had begun to answer.
    """
    both = zip(said.ends, expected.ends, said.logprobs, expected.logprobs, strict=True)
    for (tokens, reason), (wanted, end), ours, theirs in both:
        cut = copies and reason == "cancelled"
        size = min(len(tokens), len(wanted)) if cut else None
        assert (tokens[:size], reason) == (wanted[:size], end)
        assert ours[:size] == pytest.approx(theirs[:size], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "dp", "tp", "count"),
    [
        ("two_layers", 1, 2, 16),
        pytest.param("even", 1, 2, 40, marks=slow),
        pytest.param("even", 1, 4, 40, marks=slow),
        pytest.param("even", 2, 2, 40, marks=slow),
        pytest.param("heads_of_27b", 1, 8, 40, marks=slow),
        pytest.param("heads_of_27b", 1, 16, 40, marks=slow),
    ],
)
def test_an_engine_on_virtual_devices(name, dp, tp, count, checkpoint, run_ranks):
    """Every request ends as on one device, and after the warm-up nothing is compiled."""
    path, slots = checkpoint(name), 3 if dp == 1 else 4
    arguments = {"count": count, "cache_bytes": CACHE_BYTES[name], "slots": slots}
    [said] = run_ranks(
        *("serve_on_virtual_devices", Mesh(dp=dp, tp=tp)),
        **{"path": str(path), "processes": 1, "timeout": 900, **arguments},
    )
    engine = serving.engine_for(qwen35.load(path), cache_bytes=CACHE_BYTES[name], slots=slots)
    expected = serving.serve(engine, count)
    check_alike(said, expected, copies=name == "heads_of_27b")
    serving.check_likeliest(path, count, said)
    assert said.compiled == (0, 0)
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
    steps = ("prefill_and_decode", "decode")
    assert [len(compiled[name]) for name in steps] == [2, 2], compiled


@pytest.mark.parametrize(
    ("name", "dp", "tp", "count"),
    [
        ("two_layers", 1, 2, 16),
        ("even", 2, 2, 16),
        pytest.param("even", 1, 4, 40, marks=slow),
        pytest.param("heads_of_27b", 1, 8, 40, marks=slow),
        pytest.param("heads_of_27b", 1, 16, 16, marks=slow),
    ],
)
def test_an_engine_in_processes(name, dp, tp, count, checkpoint, run_ranks):
    """Every dp row is a replica; all ranks of one keep and drop the same prefixes."""
    path, mesh = checkpoint(name), Mesh(dp=dp, tp=tp)
    # A rank holds its share, and a copy of the few numbers that are not split.
    size = CACHE_BYTES[name] // tp + 1_000
    ranks = run_ranks("serve_in_processes", mesh, path=str(path), count=count, cache_bytes=size)
    engine = serving.engine_for(qwen35.load(path), cache_bytes=CACHE_BYTES[name])
    expected = serving.serve(engine, count)
    for rank, (said, stats) in enumerate(ranks):
        first = ranks[rank - rank % tp]
        assert stats == first[1] and stats["bytes"] <= size
        if said is None:
            continue
        assert rank % tp == 0
        check_alike(said, expected, copies=name == "heads_of_27b")
        serving.check_likeliest(path, count, said)
        assert said.stats["evictions"] and said.stats["hits"]


@slow
@pytest.mark.parametrize(("name", "segments"), [("two_layers", 1), ("two_blocks", "auto")])
def test_an_engine_of_processes_with_an_xla_device_each(name, segments, checkpoint, run_ranks):
    """All but the collectives: calls, steps that run ahead, snapshots of a rank's share."""
    asked = {"path": str(checkpoint(name)), "count": 12, "segments": segments}
    [(eager, compiled), _] = run_ranks("serve_on_a_device_each", Mesh(tp=2), **asked)
    check_alike(compiled, eager, copies=False)
    assert compiled.stats == eager.stats and compiled.cached == eager.cached
    assert compiled.stats["hits"]


def test_slots_grow_in_processes(checkpoint, run_ranks):
    path = checkpoint("two_layers")
    grown, _ = run_ranks("grow_in_processes", Mesh(tp=2), path=str(path))
    engine = serving.engine_for(qwen35.load(path), max_capacity=serving.LARGEST)
    assert grown == serving.grow(engine)


@pytest.mark.parametrize("place", ["prefill", "decode", "fetch"])
@pytest.mark.parametrize("how", ["raises", "killed"])
def test_a_rank_that_fails_ends_the_engine_everywhere(place, how, checkpoint, fail_ranks):
    """At once, each rank with a sentence, and none waits for the timeout of 30 s."""
    start = time.monotonic()
    path = str(checkpoint("two_layers"))
    text = fail_ranks("engine_fails", Mesh(tp=2), path=path, place=place, how=how, keep_going=True)
    assert time.monotonic() - start < 28
    assert "[rank 0] RuntimeError: rank 0 ends in step: " in text
    if how == "raises":
        assert "no room on this rank" in text and "[rank 1] RuntimeError: rank 1 ends in" in text


def test_ranks_whose_caches_differ_end_with_what_differs(checkpoint, fail_ranks):
    path = str(checkpoint("two_layers"))
    arguments = {"path": path, "place": "decode", "how": "forgets", "keep_going": True}
    text = fail_ranks("engine_fails", Mesh(tp=2), **arguments)
    for rank in (0, 1):
        assert f"[rank {rank}] RuntimeError: rank {rank} ends in" in text
    assert text.count("the ranks disagree: ") >= 2 and "snapshots=0" in text


def test_a_request_that_ends_alike_ends_nothing_else(checkpoint, run_ranks):
    """A text that can't be decoded, a deadline: all ranks see them, and go on."""
    ends, _ = run_ranks("bad_text_in_processes", Mesh(tp=2), path=str(checkpoint("two_layers")))
    assert [reason for reason, _ in ends] == ["error", "timeout", "length"]
    assert len(ends[2][1]) == 3


def test_a_request_that_fails_on_one_rank_only_ends_the_engine(checkpoint, fail_ranks):
    """The ranks would go on with different requests: they say which one, and end."""
    path = str(checkpoint("two_layers"))
    text = fail_ranks("bad_text_in_processes", Mesh(tp=2), path=path, failing=1, keep_going=True)
    for rank in (0, 1):
        assert f"[rank {rank}] RuntimeError: rank {rank} ends in" in text
    assert text.count("the ranks disagree: ") >= 2 and "request 0: " in text


def test_ranks_of_different_weights_are_refused_everywhere(checkpoint, fail_ranks, tmp_path):
    """Of one geometry, where nothing else would tell: all ranks compute the same wrong tokens."""
    qwen35.save(models.wide_params(models.CONFIGS["two_layers"], seed=1), tmp_path / "other")
    paths = [str(checkpoint("two_layers")), str(tmp_path / "other")]
    text = fail_ranks("other_weights", Mesh(tp=2), paths=paths, keep_going=True)
    for rank in (0, 1):
        assert f"[rank {rank}] ValueError: the ranks disagree: weights" in text


def test_engines_that_differ_are_refused_everywhere(checkpoint, fail_ranks):
    path = str(checkpoint("two_layers"))
    text = fail_ranks("engines_disagree", Mesh(tp=2), path=path, keep_going=True)
    for rank in (0, 1):
        assert f"[rank {rank}] ValueError: the ranks disagree: settings" in text


def test_what_an_engine_does_not_run_on(checkpoint):
    params = qwen35.load(checkpoint("two_layers")).with_runtime(mesh=Mesh(dp=2), rank=None)
    with pytest.raises(ValueError, match="slots = 3 can't be split evenly over dp = 2"):
        serving.engine_for(params)
