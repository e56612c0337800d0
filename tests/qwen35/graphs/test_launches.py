"""A step as the graphs that it is cut into: what passes between them, what they cost, and that
JAX's XLA gives what the model gives when it launches them as the manifest says."""

import dataclasses
import json
from collections import Counter

import pytest

import qwen35
from qwen35.commands import cli
from qwen35.graphs.engine_graphs import trace_engine, trace_engine_launches
from qwen35.graphs.export import trace, trace_launches
from qwen35.graphs.launch_costs import count_launches, distinct, render, with_known_names
from qwen35.sharding.mesh import Mesh

SMALL = dataclasses.replace(
    qwen35.presets["0.8b"].text_only(),
    num_hidden_layers=8,
    layer_types=qwen35.presets["0.8b"].layer_types[:8],
    hidden_size=256,
    intermediate_size=512,
    vocab_size=1024,
)
TOWER = dataclasses.replace(qwen35.presets["0.8b"].vision, depth=3, out_hidden_size=256)
SEEING = dataclasses.replace(SMALL, vision=TOWER)
KINDS = ("linear_attention", "full_attention")
ENGINE = ("--phase", "engine", "--chunks", "8")
BOUND = 5e-6  # as in test_export_check


def export(model, out, phases, *more) -> int:
    """Runs `qwen35 export` of a checkpoint in float32; returns its exit code."""
    command = ["export", "--model", str(model), "--dtype", "float32", "--phase", phases]
    sizes = ["--tokens", "12", "--batch", "2", "--capacity", "64"]
    return cli.main([*command, *sizes, *more, str(out)])


def check_launches(whole, launches) -> None:
    """Each graph by itself; together they take what one graph takes, and give what it gives."""
    for graph in distinct(launches).values():
        assert graph.lint() == []
    made, taken = Counter(), set()
    for graph in launches:
        for slot in graph.inputs:
            between = slot.path.startswith(("carry", "around"))
            assert not between or made[slot.path], f"{graph.phase} takes {slot.path} from nobody"
            taken |= {slot} - ({slot} if between or slot.path.startswith("captured") else set())
        made.update(slot.path for slot in graph.outputs)
    assert taken == {slot for slot in whole.inputs if not slot.path.startswith("captured")}
    given = {path for path in made if not path.startswith(("carry", "around"))}
    assert given == {slot.path for slot in whole.outputs}
    assert all(made[path] == 1 for path in given)
    donated = {graph.arguments[number] for graph in launches for number, _ in graph.donated}
    assert donated == {whole.arguments[number] for number, _ in whole.donated}


@pytest.mark.parametrize(
    ("phase", "runs"),
    [
        ("decode", ["run_0"] * 2),
        ("prefill", ["run_0", "run_1", "run_0", "run_2"]),
        ("prefill_images", ["run_0", "run_1", "run_0", "run_2"]),
        ("vision", ["run_0"] * 3),
    ],
)
@pytest.mark.parametrize("tp", [1, 4])
def test_launches_keep_the_rules_and_pass_on_what_others_take(phase, runs, tp):
    settings = {"mesh": Mesh(tp=tp), "tokens": 70, "capacity": 128, "batch": 2}
    launches = trace_launches(SEEING, phase, segments="auto", **settings)
    assert [g.phase for g in launches] == [f"{phase}_{n}" for n in ("first", *runs, "last")]
    check_launches(trace(SEEING, phase, **settings), launches)


@pytest.mark.parametrize(("tp", "slots"), [(1, 1), (4, 3)])
def test_the_steps_of_an_engine_are_cut_likewise(tp, slots):
    """Prefills of one slot, and of several, which they decode besides. Graphs without layers stay
    as they are."""
    config = dataclasses.replace(SEEING, num_hidden_layers=4, layer_types=KINDS * 2)
    shapes = {"mesh": Mesh(tp=tp), "slots": slots, "capacity": 64, "chunks": (16,)}
    cut = {
        whole.phase.removeprefix("engine_"): (whole, launches)
        for whole, launches in trace_engine_launches(config, segments="auto", **shapes)
    }
    usual = [graph.phase for graph in trace_engine(config, **shapes)]
    assert [f"engine_{name}" for name in cut] == usual
    reading = ["run_0", "run_1", "run_0", "run_2"]
    runs = {"decode": ["run_0"] * 2, "prefill_16": reading, "prefill_images": reading}
    for name, (whole, launches) in cut.items():
        if name in runs:
            names = [f"engine_{name}_{part}" for part in ("first", *runs[name], "last")]
            assert [graph.phase for graph in launches] == names
            check_launches(whole, launches)
        else:
            assert launches == []


def test_a_graph_that_is_known_keeps_its_name():
    """Layers are the same behind embeddings that were given; what comes before is not."""
    settings = {"tokens": 12, "capacity": 64, "segments": "auto"}
    known = distinct(trace_launches(SEEING, "prefill", **settings))
    launches = trace_launches(SEEING, "prefill_images", **settings)
    named = with_known_names(launches, known)
    runs = ("run_0", "run_1", "run_0", "run_2")
    assert [graph.phase for graph in named] == [
        *("prefill_images_first", *(f"prefill_{name}" for name in runs), "prefill_images_last")
    ]
    for before, after in zip(launches, named, strict=True):
        assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    longer = trace_launches(SEEING, "prefill", **settings | {"tokens": 13})
    assert with_known_names(longer[1:-1], known) == longer[1:-1]


def test_what_passes_between_launches_is_counted():
    """By hand: x is written by all but the last launch and read by all but the first, cosines and
    sines are written once and read by each run."""
    batch, settings = 3, {"capacity": 128, "batch": 3}
    whole = trace(SMALL, "decode", **settings)
    counted = count_launches(trace_launches(SMALL, "decode", segments=2, **settings), whole)
    x = batch * SMALL.hidden_size * 2
    rope = 2 * batch * SMALL.rotary_dim // 2 * 4
    assert counted["passed_bytes"] == 2 * 3 * x + (1 + 2) * rope
    assert (counted["launches"], counted["executables"]) == (4, 3)
    assert counted["graphs"]["decode_run_0"]["launches"] == 2
    assert counted["instructions"] < 0.75 * counted["whole"]["instructions"]
    assert 0 < counted["passed_share"] < 0.01
    table = render({"decode": counted})
    assert "one graph" in table and f"{counted['instructions']:,}" in table


@pytest.mark.slow
@pytest.mark.parametrize("tp", [4, 8])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_of_27b_a_sixteenth_is_compiled(phase, tp):
    """Sixteen blocks are launched one by one, or eight times as many of a kind in a prompt."""
    config, settings = qwen35.presets["27b"], {"mesh": Mesh(tp=tp)}
    launches = trace_launches(config, phase, segments="auto", **settings)
    assert all(graph.lint() == [] for graph in distinct(launches).values())
    counted = count_launches(launches, trace(config, phase, **settings))
    assert counted["launches"] == {"decode": 18, "prefill": 34}[phase]
    assert counted["executables"] == {"decode": 3, "prefill": 5}[phase]
    assert counted["instructions"] < counted["whole"]["instructions"] / 8
    assert counted["passed_share"] < {"decode": 0.001, "prefill": 0.02}[phase]


def test_the_command_writes_each_graph_once_and_the_launches(reference, tmp_path, capsys):
    model = reference("conv2_interval2_gqa6").directory
    assert export(model, tmp_path, "decode") == 0
    assert export(model, tmp_path, "decode", "--segments", "auto", "--json") == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = {"decode_first", "decode_run_0", "decode_last"}
    assert said["graphs"].keys() == names | {"decode"}
    files = {path.name for path in tmp_path.iterdir()}
    listed = [file for graph in said["graphs"].values() for file in graph["files"]]
    assert sorted(listed) == sorted(str(tmp_path / name) for name in files)
    endings = ("hlo.pb", "hlo.txt", "stablehlo", "captured.safetensors", "json")
    assert files == {f"{name}.{ending}" for name in names for ending in endings} | {"decode.json"}
    content = json.loads((tmp_path / "decode.json").read_text())
    assert [entry["graph"] for entry in content["launches"]] == [
        *("decode_first", "decode_run_0", "decode_run_0", "decode_last")
    ]
    runs = content["launches"][1:3]
    for first, second in zip(*(entry["parameters"] for entry in runs), strict=True):
        assert (first["shape"], first["dtype"]) == (second["shape"], second["dtype"])
        if first["path"].startswith("params"):
            assert first["path"] != second["path"] and first["checkpoint"] != second["checkpoint"]
    assert content["counts"]["passed_bytes"] == said["segments"]["decode"]["passed_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("segments", ["2", "auto"])
def test_jax_launches_them_as_the_manifest_says(segments, reference, tmp_path, capsys):
    model = reference("conv2_interval2_gqa6").directory
    more = ("--segments", segments, "--run", "--json")
    assert export(model, tmp_path, "prefill,decode", *more) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["run"]) == 4
    for one in said["run"]:
        assert one["faults"] == [] and 0 < one["difference"] < BOUND
        assert one["calls"] > 0 and one["agreed"] == one["tokens"] > 0


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("equal_heads", ["--segments", "auto"], "the kinds of its 4 layers don't repeat"),
        ("equal_heads", ["--segments", "3"], "its 4 layers make no 3 equal segments"),
        ("equal_heads", [*ENGINE, "--segments", "3"], "its 4 layers make no 3 equal segments"),
        ("equal_heads", ["--segments", "0"], "must be a positive integer or auto, not '0'"),
    ],
)
def test_what_can_not_be_cut_is_refused(name, more, said, reference, tmp_path, capsys):
    assert export(reference(name).directory, tmp_path / "out", "decode", *more) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_writes_what_an_engine_is_cut_into(multimodal, tmp_path, capsys):
    more = (*ENGINE, "--slots", "2", "--segments", "auto")
    assert export(multimodal.directory, tmp_path, "engine", *more) == 0
    report = json.loads((tmp_path / "engine.json").read_text())
    steps = ("engine_prefill_8", "engine_prefill_images", "engine_decode")
    assert tuple(report["segments"]) == steps
    assert all(name.removeprefix("engine_") in report["graphs"] for name in steps)
    launched = {
        step: [entry["graph"] for entry in json.loads((tmp_path / f"{step}.json").read_text())
               ["launches"]]
        for step in steps
    }  # fmt: skip
    reads, sees, decodes = launched.values()
    assert reads[1:-1] == sees[1:-1] and {reads[0], reads[-1]}.isdisjoint({sees[0], sees[-1]})
    assert {*reads, *sees}.isdisjoint(decodes)
    written = {path.name.removesuffix(".hlo.pb") for path in tmp_path.glob("*.hlo.pb")}
    uncut = {f"engine_{name}" for name in report["graphs"]} - {*steps}
    assert written == uncut | {*reads, *sees, *decodes}
    assert "engine_decode, cut" in capsys.readouterr().out


@pytest.mark.slow
def test_jax_launches_an_engine_as_the_manifest_says(multimodal, tmp_path, capsys):
    """Each step of slots that hold sampled rows gives what the step gives that nobody cut."""
    more = (*ENGINE, "--slots", "3", "--segments", "auto", "--run", "--json")
    assert export(multimodal.directory, tmp_path, "engine", *more) == 0
    said = json.loads(capsys.readouterr().out)
    assert {"engine_prefill_8", "engine_prefill_images", "engine_decode"} == set(said["segments"])
    assert len(said["run"]) == 32
    for one in said["run"]:
        assert one["faults"] == [] and one["difference"] < BOUND and one["calls"] == 1
