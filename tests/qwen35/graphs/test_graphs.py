"""The graphs that ranks run: every preset keeps every rule, and every rule can be broken."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

import qwen35
from qwen35.commands import cli
from qwen35.files.materialize import abstract_params
from qwen35.graphs import lint as rules
from qwen35.graphs.costs import count_costs
from qwen35.graphs.export import trace
from qwen35.graphs.hlo import Module
from qwen35.graphs.lint import Case, lint
from qwen35.graphs.lowering import alias_field, lower
from qwen35.graphs.manifest import manifest
from qwen35.graphs.placement import describe
from qwen35.graphs.roofline import HARDWARE, floor, render, roofline
from qwen35.kernels.loop import scan
from qwen35.sharding.mesh import Mesh

SMALL = qwen35.Config(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    linear_num_key_heads=4,
    linear_num_value_heads=8,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
)
PRESETS = [
    pytest.param(name, marks=() if name == "0.8b" else pytest.mark.slow) for name in qwen35.presets
]


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_keeps_every_rule(preset, phase, tp):
    assert trace(qwen35.presets[preset], phase, mesh=Mesh(tp=tp)).lint() == []


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_stretched_positions_keep_every_rule(phase):
    """YaRN is other constants, and two products of what they give."""
    graph = trace(SMALL.extended(10**6), phase)
    assert graph.lint() == []
    products = [one.module.histogram()["multiply"] for one in (trace(SMALL, phase), graph)]
    assert products[1] == products[0] + 2


@pytest.mark.parametrize(
    ("kind", "tp", "fp8"),
    [
        ("int8", 1, "e4m3"),
        ("fp8", 4, "e4m3"),
        ("fp8", 1, "e4m3fn"),
        ("fp8_blocks", 1, "e4m3fn"),
        ("fp8_blocks", 4, "e4m3"),
    ],
)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_quantised_graphs_keep_every_rule(phase, kind, tp, fp8):
    """And read half the bytes: scales are little beside them, 3 % of those that blocks have."""
    config, mesh = qwen35.presets["0.8b"].text_only(), Mesh(tp=tp)
    config = dataclasses.replace(config, num_hidden_layers=4, layer_types=config.layer_types[:4])
    graph = trace(config, phase, mesh=mesh, weights=kind, head=kind, fp8=fp8)
    assert graph.lint() == []
    # torch has no name for E4M3 as Trainium has it: its bits come in, and are read as that.
    stored = {"e4m3": torch.uint8, "e4m3fn": torch.float8_e4m3fn}[fp8]
    kinds = {slot.dtype for slot in graph.inputs if slot.path.endswith(".values")}
    assert kinds == {torch.int8 if kind == "int8" else stored}
    types = set(re.findall(r"f8e\w+", graph.text))
    assert types == (set() if kind == "int8" else {"f8" + fp8})
    dense, ours = (
        count_costs(one)["bytes_read"] for one in (trace(config, phase, mesh=mesh), graph)
    )
    assert 0.5 * dense < ours < (0.56 if kind == "fp8_blocks" else 0.54) * dense
    held = describe(config, mesh, weights=kind, head=kind)
    weights = count_costs(graph)["arguments"]["weights"]["bytes"]
    assert weights == held.weight_bytes + (4 if tp > 1 else 0)


def test_graphs_hold_no_weights_of_4_bits():
    known = "a graph holds weights of int8, fp8, fp8_blocks, not 'int4'"
    with pytest.raises(ValueError, match=known):
        trace(SMALL, "decode", weights="int4")
    with pytest.raises(ValueError, match="fp8 must be one of"):
        trace(SMALL, "decode", weights="fp8", fp8="e5m2")


@pytest.mark.parametrize("tp", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_prefill_with_images_keeps_every_rule(tp):
    graph = trace(qwen35.presets["0.8b"], "prefill_images", mesh=Mesh(tp=tp))
    assert graph.lint() == []
    assert {"embeds", "positions"} < set(graph.arguments)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tp", [1, 4, pytest.param(16, marks=pytest.mark.slow)])
def test_the_vision_tower_keeps_every_rule(preset, tp):
    """16 heads on up to 16 ranks; frames that are padded, and whose scores come in blocks."""
    config = qwen35.presets[preset]
    graph = trace(config, "vision", mesh=Mesh(tp=tp), tokens=1100)
    assert graph.lint() == []
    assert graph.tokens == 1280
    sums = [each["op"] for each in graph.module.collectives()]
    assert sums == ["all-reduce"] * (2 * config.vision.depth + 1 if tp > 1 else 0)


def test_all_ranks_run_one_tower():
    vision = qwen35.VisionConfig(depth=2, hidden_size=64, intermediate_size=96, num_heads=4)
    config = dataclasses.replace(
        SMALL, vision=dataclasses.replace(vision, out_hidden_size=SMALL.hidden_size)
    )
    graphs = [trace(config, "vision", mesh=Mesh(tp=4), rank=rank, tokens=9) for rank in range(4)]
    normal = {re.sub(r"[.\d]+(?=[ ,)])", "", graph.text) for graph in graphs}
    assert len(normal) == 1
    with pytest.raises(ValueError, match="no vision tower"):
        trace(SMALL, "vision")


def test_a_cache_of_a_quarter_million_tokens_embeds_nothing_large():
    graph = trace(qwen35.presets["0.8b"], "decode", capacity=262144)
    assert graph.lint() == []


def test_all_ranks_run_one_graph():
    graphs = [trace(SMALL, "decode", mesh=Mesh(tp=4), rank=rank) for rank in range(4)]
    normal = {re.sub(r"[.\d]+(?=[ ,)])", "", graph.text) for graph in graphs}
    assert len(normal) == 1
    # So one manifest serves all.
    first = manifest(graphs[0])
    for graph in graphs[1:]:
        assert manifest(graph) == first
        assert len(graph.captured) == len(graphs[0].captured)
        assert all(map(torch.equal, graph.captured, graphs[0].captured))


# Graphs made to break a rule. Weights are 2 MiB, so that a copy of one counts as weight-sized.
PARAMS = {
    "w": torch.empty(1024, 512, device="meta"),
    "gain": torch.empty(1024, device="meta"),
    "codes": torch.empty(1024, 1024, dtype=torch.int8, device="meta"),
}
STATE = {"s": torch.empty(1, 512, device="meta")}


def step(params, state, tokens):
    """A graph without fault."""
    x = tokens.float() * params["gain"]
    y = x @ params["w"] + (x @ params["codes"].float())[:, :512]
    return y, {"s": state["s"] + y}


def changed(**changes):
    """The step with its logits or state changed by functions of all that it has."""

    def broken(params, state, tokens):
        y, new = step(params, state, tokens)
        if "logits" in changes:
            y = changes["logits"](params, state, tokens, y)
        if "state" in changes:
            new = changes["state"](params, state, tokens, y)
        return y, new

    return broken


BROKEN = {
    "supported_operations": changed(logits=lambda p, s, t, y: y.sort(-1).values),
    "no_float64": changed(logits=lambda p, s, t, y: y.double().exp().float()),
    "integers_64_only_index": changed(logits=lambda p, s, t, y: y * (t.long() * t.long()).sum()),
    "weights_are_used_as_stored": changed(logits=lambda p, s, t, y: y @ p["w"].T.exp()),
    "quantised_weights_are_widened_in_products": changed(
        logits=lambda p, s, t, y: y + (p["codes"].float() * p["gain"]).sum(0)[:512]
    ),
    "weights_are_arguments_read_once": changed(logits=lambda p, s, t, y: y + (p["w"] * 2).sum()),
    "state_is_donated": changed(state=lambda p, s, t, y: {"s": (s["s"] + y).bfloat16()}),
    "collectives_as_designed": changed(
        logits=lambda p, s, t, y: qwen35.model.decoder.all_reduce(y, Mesh(tp=2))
    ),
    "reductions_as_designed": changed(  # a model of four layers has 18
        logits=lambda p, s, t, y: sum((y.sum() for _ in range(18)), y.amax())
    ),
    "instructions_as_designed": changed(
        logits=lambda p, s, t, y: functools.reduce(lambda x, _: x.exp(), range(4000), y)
    ),
    "small_constants": changed(
        logits=lambda p, s, t, y: y + torch.arange(300_000, device=y.device).sum()
    ),
}

# What torch does not produce, as text in the body of a module.
BROKEN_TEXT = {
    "static_shapes": "%b = f32[<=4] negate(f32[<=4] %p)",
    "supported_operations": "%b = f32[2,2] triangular-solve(f32[2,2] %p, f32[2,2] %p)",
    "no_host_transfers": "%b = (f32[4], token[]) infeed(token[] %p)",
    "custom_calls_as_designed": '%b = f32[4] custom-call(f32[4] %p), custom_call_target="Other"',
    "loops_have_constant_bounds": "%b = s32[] while(s32[] %p), condition=%cond, body=%body",
}
TEXT = """HloModule m

%cond (c: s32[]) -> pred[] {{
  %c = s32[] parameter(0)
  {bound}
  ROOT %less = pred[] compare(s32[] %c, s32[] %n), direction=LT
}}

ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  {line}
  ROOT %tuple = (f32[4]{{0}}) tuple(f32[4]{{0}} %p)
}}
"""


def findings(step) -> list[str]:
    tokens = torch.empty(1, 1024, dtype=torch.int32, device="meta")
    case = lower(step, PARAMS, STATE, tokens).case(SMALL, Mesh())
    return lint(case)


def text_findings(line: str, bound: str = "%n = s32[] parameter(1)") -> list[str]:
    module = Module(TEXT.format(line=line, bound=bound))
    return lint(Case(module, ("captured",), (), (), SMALL, Mesh()))


def test_the_graph_without_fault_has_no_findings():
    assert findings(step) == []
    assert text_findings("") == []


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_fires_on_a_graph_that_breaks_it(rule):
    assert any(finding.startswith(rule + ":") for finding in findings(BROKEN[rule]))


@pytest.mark.parametrize("rule", BROKEN_TEXT)
def test_each_rule_fires_on_text_that_breaks_it(rule):
    assert any(f.startswith(rule + ":") for f in text_findings(BROKEN_TEXT[rule]))


def test_forms_of_another_machine_are_found():
    """What XLA:CPU likes is more reductions and instructions than the model has."""
    runtime = qwen35.Runtime(forms="xla_cpu")
    params = abstract_params(SMALL, dtype="float32", runtime=runtime)
    tokens = torch.empty(1, dtype=torch.int32, device="meta")
    state = qwen35.init_state(params, 1, 128)
    found = lint(lower(qwen35.decode, params, state, tokens).case(SMALL, Mesh()))
    assert [finding.partition(":")[0] for finding in found] == ["reductions_as_designed"]
    plain = params.with_runtime(forms="plain")
    graph = lower(qwen35.decode, plain, state, tokens)
    assert lint(graph.case(SMALL, Mesh())) == []
    # Per layer two norms, in DeltaNet's one of queries and keys and one of the output, in
    # attention's one of queries and keys and a softmax; and the last norm.
    assert graph.module.histogram()["reduce"] == 4 * 2 + 3 * (1 + 1) + (1 + 2) + 1


@pytest.mark.parametrize(("phase", "instructions"), [("decode", 1470), ("prefill", 2880)])
def test_no_more_instructions_than_the_model_has(phase, instructions):
    config = qwen35.presets["0.8b"]
    config = dataclasses.replace(
        config, num_hidden_layers=4, layer_types=config.layer_types[:4], vision=None
    )
    graph = trace(config, phase)
    histogram = graph.module.histogram()
    assert histogram["reduce"] == 18 and sum(histogram.values()) <= instructions


def test_a_loop_with_a_constant_bound_is_allowed():
    line = BROKEN_TEXT["loops_have_constant_bounds"]
    assert text_findings(line, bound="%n = s32[] constant(5)") == []


def test_loops_count_their_rounds_and_may_do_so_in_64_bits():
    """Five rounds of [1, 512] @ [512, 512] by hand, and what a round needs at a time."""

    def looped(params, state, tokens):
        xs = params["w"].unflatten(0, (2, 512))
        carry, _ = scan(lambda s, x: (s @ x, s), state["s"], xs.repeat(3, 1, 1)[:5])
        y, _ = step(params, state, tokens)
        return y, {"s": carry}

    lowered = lower(looped, PARAMS, STATE, torch.empty(1, 1024, dtype=torch.int32, device="meta"))
    module = Module(lowered.text)
    assert module.flops() == 2 * 512 * (5 * 512 + 1024) + 2 * 1024 * 1024
    repeated, of_a_round = 4 * 6 * 512 * 512, 4 * 512 * 512
    assert repeated < module.temporary_bytes() < 2.5 * repeated + 3 * of_a_round
    found = findings(looped)
    assert not [f for f in found if f.startswith(("integers_64", "loops"))]


def test_a_loop_that_computes_with_its_64_bit_carry_is_found():
    def looped(params, state, tokens):
        y, new = step(params, state, tokens)
        total = torch.zeros((), dtype=torch.int64, device=y.device)
        total, _ = scan(lambda c, x: (c * 3 + 1, x), total, tokens[0, :4].float())
        return y + total, new

    assert any(f.startswith("integers_64_only_index") for f in findings(looped))


def test_every_rule_is_broken():
    """Above, and where an engine's graphs are (`test_engine_graphs.py`)."""
    broken = BROKEN.keys() | BROKEN_TEXT.keys() | {"logits_stay_split"}
    assert {rule.__name__ for rule in rules.RULES} == broken


def test_weights_that_are_captured_instead_of_passed_are_found():
    hidden = torch.randn(512, 512).to("xla")  # a constant of the graph as far as arguments go

    def broken(params, state, tokens):
        y = (tokens.float()[:, :512]) @ hidden
        return y, {"s": state["s"] + y}

    found = findings(broken)
    assert any("params['w'] is not an argument" in f or ".w" in f for f in found), found


def test_work_of_the_vision_tower_against_closed_forms():
    """Matrix products counted by hand; those of attention stand in loops."""
    tower = qwen35.presets["0.8b"].vision
    tower = dataclasses.replace(tower, depth=2, out_hidden_size=SMALL.hidden_size)
    config = dataclasses.replace(SMALL, vision=tower)
    width, patches = tower.hidden_size, 4 * 640
    layer = patches * width * (4 * width + 2 * tower.intermediate_size)
    layer += patches**2 * (width + width)
    merger = 640 * 4 * width * (4 * width + SMALL.hidden_size)
    products = patches * tower.patch_dim * width + 2 * layer + merger
    costs = count_costs(trace(config, "vision", tokens=600))
    assert costs["flops"] == 2 * products
    assert costs["tokens"] == 640 and costs["collectives"] == [] and costs["donated"] == []
    placed = describe(config, Mesh())
    assert costs["arguments"]["weights"]["bytes"] == placed.vision_bytes


def test_state_that_is_not_used_is_found():
    found = findings(lambda p, s, t: (step(p, s, t)[0], {"s": step(p, s, t)[0]}))
    assert any(f.startswith("state_is_donated: state") for f in found)


def test_each_way_to_keep_a_state_from_being_donated_is_found():
    tokens = torch.empty(1, 1024, dtype=torch.int32, device="meta")
    case = lower(step, PARAMS, STATE, tokens).case(SMALL, Mesh())
    [path] = [path for path in case.paths if path.startswith("state")]
    assert lint(case) == []
    undonated = dataclasses.replace(case, donated=())
    assert lint(undonated) == [f"state_is_donated: {path} is not donated"]
    more = dataclasses.replace(case, paths=(*case.paths, "state.more"))
    assert lint(more) == ["state_is_donated: state.more is not an argument of the graph"]


@pytest.mark.parametrize("tp", [1, 4])
def test_report_against_closed_forms(tp):
    """Bytes, FLOPs and collectives counted by hand from the configuration."""
    batch, capacity, mesh = 3, 64, Mesh(tp=tp)
    costs = count_costs(trace(SMALL, "decode", mesh=mesh, batch=batch, capacity=capacity))
    placed = describe(SMALL, mesh, batch=batch, capacity=capacity)
    assert costs["arguments"]["weights"]["bytes"] == placed.weight_bytes + (4 if tp > 1 else 0)
    positions = 2 * 4 * batch
    state = placed.state_bytes + placed.kv_bytes + positions
    assert costs["arguments"]["state"]["bytes"] == state
    embedding = 2 * SMALL.vocab_size * SMALL.hidden_size // tp
    looked_up = 2 * SMALL.hidden_size * batch
    read = placed.weight_bytes - embedding + looked_up
    assert costs["arguments"]["weights"]["bytes_read"] == read + (4 if tp > 1 else 0)
    matrices = 0
    for row in placed.rows:
        is_matrix = row.kind == "weights" and len(row.local) == 2 and row.name != "embed"
        if is_matrix and not row.name.endswith("conv"):
            matrices += row.count * row.local[0] * row.local[1]
    value_heads = 8 // tp
    delta = 3 * value_heads * 3 * 16 * 16  # per layer: k S, the outer product aside, and q S
    attention = 8 // tp * 2 * 16 * capacity
    low = 2 * batch * (matrices + attention)
    assert low <= costs["flops"] <= low + 2 * batch * delta
    hidden = 2 * SMALL.hidden_size * batch
    expected = (
        [] if tp == 1 else [("all-reduce", hidden)] * 9 + [("all-gather", 4 * batch * 512 // tp)]
    )
    assert sorted((c["op"], c["bytes"]) for c in costs["collectives"]) == sorted(expected)
    assert len(costs["donated"]) == 10
    assert costs["bytes_written"] < state  # the caches are written in place, not copied


def test_a_dp_row_holds_its_own_sequences():
    """Six over three rows: each rank holds what a rank of one row of two holds."""
    placed = describe(SMALL, Mesh(dp=3, tp=4), batch=6, capacity=64)
    one = describe(SMALL, Mesh(tp=4), batch=2, capacity=64)
    for name in ("weight_bytes", "state_bytes", "kv_bytes", "headroom"):
        assert getattr(placed, name) == getattr(one, name)
    with pytest.raises(ValueError, match="7 rows can't be split evenly over dp = 3"):
        describe(SMALL, Mesh(dp=3, tp=4), batch=7)


def test_placement_of_27b():
    """26.9 B parameters in bfloat16 over 8 ranks, and the state by hand."""
    placed = describe(qwen35.presets["27b"], Mesh(tp=8), capacity=4096)
    total = sum(
        row.count * torch.Size(row.full).numel() for row in placed.rows if row.kind == "weights"
    )
    assert total == sum_of_27b()
    copies = 16 * 5120 * 2 * 4 * 256  # each of 4 KV heads is on two of the 8 ranks
    replicated = 7 * (64 * 2 * 5120 + 5120 + 48 * 128 + 16 * 2 * 256)  # norms
    wider = 48 * 2 * 48 * 2  # A_log and dt_bias stay float32
    assert 8 * placed.weight_bytes == 2 * (total + copies + replicated) + wider
    assert placed.kv_bytes == 16 * 1 * 256 * 4096 * 2 * 2
    assert placed.state_bytes == 48 * (6 * 128 * 128 * 4 + 3 * 1280 * 2)
    taken = placed.weight_bytes + placed.vision_bytes + placed.kv_bytes + placed.state_bytes
    assert placed.headroom == 24 * 2**30 - taken


def sum_of_27b() -> int:
    mlp, hidden = 3 * 5120 * 17408, 5120
    deltanet = 5120 * (10240 + 6144 + 96) + 4 * 10240 + 96 + 128 + 6144 * 5120
    attention = 5120 * (2 * 24 + 8) * 256 + 2 * 256 + 24 * 256 * 5120
    layers = 48 * deltanet + 16 * attention + 64 * (mlp + 2 * hidden)
    return layers + 2 * 248320 * 5120 + hidden


def test_roofline_divides_by_the_documented_figures():
    machine = HARDWARE["trn2"]
    costs = {"bytes_read": 725e9, "bytes_written": 0, "flops": 0, "dtype": "bfloat16"}
    costs |= {"mesh": {"tp": 4}, "collectives": [{"op": "all-reduce", "bytes": 256e6}]}
    times = floor(costs, machine)
    assert times["memory"] == pytest.approx(1000) and times["links"] == pytest.approx(1.5)
    result = roofline(qwen35.presets["27b"], Mesh(tp=8))
    # neuron.md's own estimate from 51 GB of weights: 8.8 ms.
    assert 8.5 < result["tpot"]["floor"] < 9.5
    assert result["published"][0]["tpot"] == 21.58
    # An eighth of 54.7e9 bytes and a little more, of the 24 GiB of a core.
    assert 24 * 2**30 - 7.3e9 < result["headroom_bytes"] < 24 * 2**30 - 6.8e9
    assert "does not fit" not in render(result)
    over = render(result | {"headroom_bytes": -2 * 2**30})
    assert "does not fit: a rank holds 2.0 GiB more than a core has" in over


def test_alias_field_is_what_xla_writes():
    """Bytes of HloModuleProto.input_output_alias as decoded from a dump of XLA's own."""
    entry = bytes([0x0A, 1, 10, 0x10, 28, 0x20, 1])
    assert alias_field(((28, 10),)) == bytes([0x42, 2 + len(entry), 0x0A, len(entry)]) + entry
    assert alias_field(((300, 2),))[-4:] == bytes([0xAC, 0x02, 0x20, 1])


def test_the_compiler_aliases_every_donated_state_buffer(tmp_path):
    """XLA's own record of a compiled decode step: each state tensor with an output of its type."""
    code = """
import dataclasses, sys, torch, qwen35
config = qwen35.Config(**eval(sys.argv[1]))
params = qwen35.init_params(config, device="xla")
state = qwen35.init_state(params, 2, 16)
step = qwen35.jit(qwen35.decode, donate=("state",))
step(params, state, qwen35.device_put(torch.tensor([1, 2]), "xla"))
print(len(torch.utils._pytree.tree_leaves(state)))
"""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    names += ("num_attention_heads", "num_key_value_heads")
    fields = {name: getattr(SMALL, name) for name in names}
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    done = subprocess.run(
        [sys.executable, "-c", code, repr(fields)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "PJRT_DEVICE": "CPU"},
    )
    leaves = int(done.stdout)
    largest = max(tmp_path.glob("*cpu_after_optimizations.txt"), key=lambda f: f.stat().st_size)
    header = largest.read_text().splitlines()[0]
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}", header.split("input_output_alias={")[1])
    assert len(aliases) == leaves == 2 + 2 * SMALL.num_hidden_layers
    arguments, results = header.split("entry_computation_layout={(")[1].split(")->(")
    types = [re.findall(r"\w+\[[\d,]*\]", part) for part in (arguments, results)]
    for output, argument in aliases:
        assert types[0][int(argument)] == types[1][int(output)]


def test_the_export_command(tmp_path):
    command = [sys.executable, "-m", "qwen35", "export", "--phase", "decode", "--preset", "0.8b"]
    export = [*command, "--tp", "2", str(tmp_path)]
    shown = subprocess.run(export, check=True, timeout=300, capture_output=True, text=True).stdout
    content = json.loads((tmp_path / "decode.json").read_text())
    assert content["lint"] == [] and len(content["collectives"]) == 50
    assert "no rule is broken" in shown and "49 all-reduce, 1 all-gather that send" in shown
    assert f"{content['flops'] / 1e9:.2f} GFLOP" in shown
    assert f"neuronx-cc compile --framework XLA --target trn2 {tmp_path / 'decode.hlo.pb'}" in shown
    assert (tmp_path / "decode.hlo.txt").read_text().startswith("HloModule")
    assert (tmp_path / "decode.hlo.pb").stat().st_size > 100_000
    done = subprocess.run(
        [*command, "--tp", "3", str(tmp_path / "none")], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Possible: tp = 1, 2, 4, 8, 16" in done.stderr
    assert not (tmp_path / "none").exists()


HLO_TYPES = {"float32": "f32", "bfloat16": "bf16", "int32": "s32", "int64": "s64"}


@pytest.mark.parametrize("phase", ["decode", "prefill_images", "vision"])
def test_the_report_names_each_parameter_and_output(tmp_path, phase, monkeypatch):
    """In the graph's order, with the types that its text has; state takes the memory of state."""
    vision = qwen35.VisionConfig(depth=2, hidden_size=64, intermediate_size=96, num_heads=4)
    vision = dataclasses.replace(vision, out_hidden_size=SMALL.hidden_size)
    monkeypatch.setitem(qwen35.presets, "0.8b", dataclasses.replace(SMALL, vision=vision))
    command = ["export", "--preset", "0.8b", "--phase", phase, "--tokens", "8", "--tp", "2"]
    assert cli.main([*command, str(tmp_path)]) == 0
    read = {path.name.removeprefix(phase + "."): path for path in tmp_path.iterdir()}
    assert set(read) == {"hlo.pb", "hlo.txt", "stablehlo", "captured.safetensors", "json"}
    content, module = json.loads(read["json"].read_text()), Module(read["hlo.txt"].read_text())
    outputs = [module.entry[name] for name in module.root.operands]
    for described, written in (("parameters", module.parameters), ("outputs", outputs)):
        entries = content[described]
        assert [entry["index"] for entry in entries] == list(range(len(written)))
        for entry, instruction in zip(entries, written, strict=True):
            [array] = instruction.arrays
            assert (HLO_TYPES[entry["dtype"]], entry["shape"]) == (array.dtype, list(array.shape))
    paths = [entry["path"] for entry in content["parameters"]]
    assert len(set(paths)) == len(paths)
    assert phase == "vision" or "params.layers[0].in_proj" in paths
    with safe_open(read["captured.safetensors"], "pt") as file:
        assert set(file.keys()) == {path for path in paths if path.startswith("captured")}
    for entry in content["outputs"]:
        state = entry["path"].startswith("state")
        assert (paths[entry["aliases"]] == entry["path"]) if state else entry["aliases"] is None
    assert sum(entry["path"] == "logits" for entry in content["outputs"]) == 1
    assert b"StableHLO_v1." in read["stablehlo"].read_bytes()[:32]


def test_bad_arguments_are_refused(capsys):
    assert cli.main(["export", "--preset", "0.8b", "--phase", "training", "out"]) == 2
    assert "decode, vision, engine, not 'training'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="phase must be one of"):
        trace(SMALL, "training")
    with pytest.raises(ValueError, match="tokens must be from 1 to the capacity of 8, not 9"):
        trace(SMALL, "prefill", tokens=9, capacity=8)
    with pytest.raises(ValueError, match="rank 2 is outside"):
        trace(SMALL, "decode", mesh=Mesh(tp=2), rank=2)
    with pytest.raises(ValueError, match="hardware must be one of trn2, not 'gpu'"):
        roofline(SMALL, hardware="gpu")
