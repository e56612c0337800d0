"""The graphs that an engine runs: every one keeps every rule, and what they exchange is counted."""

import dataclasses
import json
import re

import pytest

import qwen35
from qwen35.commands import cli
from qwen35.files.materialize import abstract_params
from qwen35.generation import steps
from qwen35.generation.batch import Batch
from qwen35.graphs.engine_graphs import describe_engine, render_engine, trace_engine
from qwen35.graphs.export import trace
from qwen35.graphs.lowering import lower_call
from qwen35.sharding.collectives import all_gather, all_reduce
from qwen35.sharding.mesh import Mesh

PRESETS = [
    pytest.param(name, marks=() if name == "0.8b" else pytest.mark.slow) for name in qwen35.presets
]
TPS = [1, 2, 4, 8, 16]
SLOTS, CHUNKS = 8, (32, 64)
NAMES = [
    *("prefill_32", "prefill_64", "prefill_images", "decode"),
    *("choose_greedy", "choose_short", "choose_short_allowed"),
    *("choose_any", "choose_any_allowed", "force"),
    *("put", "put_per_token", "put_settings", "put_ends", "take", "recurrent", "window"),
]


def cut(preset: str) -> qwen35.Config:
    """A preset's geometry with one layer of each kind."""
    config = qwen35.presets[preset]
    kinds = ("linear_attention", "full_attention")
    return dataclasses.replace(config, num_hidden_layers=2, layer_types=kinds)


def traced(config, tp, **changes):
    usual = {"slots": SLOTS, "chunks": CHUNKS, "top_logprobs": 2, "capacity": 256}
    return list(trace_engine(config, mesh=Mesh(tp=tp), **usual | changes))


@pytest.mark.parametrize("tp", TPS)
@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=() if name == "0.8b" else pytest.mark.slow)
        for name in qwen35.presets
    ],
)
def test_every_graph_of_an_engine_keeps_every_rule(preset, tp):
    graphs = traced(cut(preset), tp)
    assert [graph.phase for graph in graphs] == [f"engine_{name}" for name in NAMES]
    for graph in graphs:
        assert graph.lint() == [], graph.phase


@pytest.mark.slow
@pytest.mark.parametrize("preset", qwen35.presets)
@pytest.mark.parametrize("tp", TPS)
def test_every_preset_keeps_every_rule_in_an_engine(preset, tp):
    """The published geometry, all layers."""
    for graph in traced(qwen35.presets[preset], tp, chunks=(64,)):
        assert graph.lint() == [], graph.phase


@pytest.mark.parametrize("tp", [4, 8])
def test_what_a_step_sends(tp):
    """By hand: of the decode two all-reduces a layer and one more, [8, H] in bfloat16, each sent
    2 (tp - 1) / tp times; greedy, a value and an id of each slot go to tp - 1 others."""
    config = cut("27b")
    described = describe_engine(traced(config, tp))
    reduces = 5
    sent = reduces * SLOTS * 5120 * 2 * 2 * (tp - 1) // tp
    greedy = described["steps"]["greedy"]
    assert greedy["collectives"] == reduces + 1 == greedy["gathering_collectives"]
    assert greedy["bytes_sent"] == sent + SLOTS * 2 * 4 * (tp - 1)
    assert greedy["gather_bytes_sent"] == SLOTS * 248_320 // tp * 4 * (tp - 1)
    assert greedy["gathering_bytes_sent"] == sent + greedy["gather_bytes_sent"]
    # 64 candidates of a value and an id; a peak, a mass, the chosen logit, 2 values and ids.
    short = described["steps"]["short"]
    assert short["choice_bytes_sent"] == SLOTS * (128 + 7) * 4 * (tp - 1)
    assert short["choice_collectives"] == 2
    # A peak, a mass, a value and an id, log probabilities, and the sums of two thresholds.
    thresholds = 2 * (16 + 7 + 5 * 15 + 7)
    anything = described["steps"]["any"]
    assert anything["choice_bytes_sent"] == SLOTS * (1 + 1 + 2 + 7 + thresholds) * 4 * (tp - 1)
    assert anything["choice_collectives"] == 20
    assert anything["choice_bytes_sent"] < greedy["gather_bytes_sent"] / 100
    for chunk in CHUNKS:
        row = described["graphs"][f"prefill_{chunk}"]
        assert row["tokens"] == chunk and row["collectives"] == reduces
    # Of 64 and 32 tokens of a prompt, and one of each slot.
    assert row["flops"] > 1.4 * described["graphs"]["prefill_32"]["flops"]
    # A row that is put into a slot is read, the slots are not.
    put, take = (described["graphs"][name]["bytes_read"] for name in ("put", "take"))
    assert take <= put <= take + 100
    text = render_engine(described)
    assert re.search(r"\| prefill_64 +\| +1 \| +64 \|", text)
    assert "| greedy" in text and "6 (6 with the gather)" in text


def test_alone_nothing_is_exchanged():
    described = describe_engine(traced(cut("0.8b"), 1))
    assert not any(row["collectives"] for row in described["graphs"].values())
    assert "gather" not in render_engine(described)


def gathers(params, rows, token, active, ends):
    """A decode that gathers the logits after all."""
    rows = steps.decode.__wrapped__(params, rows, token, active, ends)
    whole = all_gather(rows.logits, params.runtime.mesh)
    return rows._replace(logits=rows.logits + whole.amax(-1, keepdim=True))


def adds_up(params, rows, token, active, ends):
    """A decode that lets the ranks' logits go round as a sum."""
    rows = steps.decode.__wrapped__(params, rows, token, active, ends)
    return rows._replace(logits=all_reduce(rows.logits, params.runtime.mesh))


@pytest.mark.parametrize("fault", [gathers, adds_up])
def test_logits_that_cross_ranks_are_found(fault):
    """In the engine's decode; in `decode`, whose logits are whole, they may."""
    [graph] = [graph for graph in traced(cut("0.8b"), 4) if graph.phase == "engine_decode"]
    assert rule_findings(graph) == []
    config = cut("0.8b").text_only()
    runtime = qwen35.Runtime(mesh=Mesh(tp=4), forms="plain")
    params = abstract_params(config, dtype="bfloat16", runtime=runtime)
    settings = {"slots": SLOTS, "capacity": 256, "sizes": CHUNKS, "top_logprobs": 2}
    graphs = Batch(params, **settings, ends=frozenset()).graphs(pictures=False, limited=False)
    [values] = [values for name, _, values in graphs if name == "decode"]
    names = ("params", "rows", "token", "active", "ends")
    lowered = lower_call(fault, dict(zip(names, values, strict=True)), ("rows",))
    found = rule_findings(dataclasses.replace(graph, **vars(lowered)))
    assert len(found) == 1 and "[8, 62080]; a rank has 62080 logits" in found[0], found
    assert rule_findings(trace(config, "decode", mesh=Mesh(tp=4))) == []


def rule_findings(graph) -> list[str]:
    return [finding for finding in graph.lint() if finding.startswith("logits_stay_split")]


def test_the_export_command_writes_every_graph(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(qwen35.presets, "0.8b", cut("0.8b"))
    command = ["export", "--preset", "0.8b", "--phase", "engine", "--tp", "2", "--slots", "3"]
    assert cli.main([*command, "--chunks", "16", "32", "--capacity", "64", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "engine.json").read_text())
    assert report["slots"] == 3 and {"prefill_16", "prefill_32"} < report["graphs"].keys()
    for name in report["graphs"]:
        content = json.loads((tmp_path / f"engine_{name}.json").read_text())
        assert content["lint"] == []
        assert (tmp_path / f"engine_{name}.hlo.txt").read_text().startswith("HloModule")
    shown = capsys.readouterr().out
    assert "an engine of 3 slots at tp 2" in shown and "| choose_any" in shown
    assert cli.main([*command, "--chunks", "128", "--capacity", "64", str(tmp_path)]) == 2
    assert "a chunk of 128 is over the capacity of 64" in capsys.readouterr().err
