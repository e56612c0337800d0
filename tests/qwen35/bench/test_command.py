"""The benchmark's command, end to end on small models with tiny settings.

Times are not judged: what a run must have, and what has to be positive, is.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35.bench import neuron, sampling, suite, text
from qwen35.bench.neuron import protocol
from qwen35.bench.settings import Settings
from qwen35.commands.cli import main

DEMO = Path(__file__).resolve().parents[3] / "demo"
ONCE = ["--rounds", "1", "--threads", "1", "--json"]


@pytest.mark.slow
def test_text_against_transformers(small, tmp_path, capfd):
    pytest.importorskip("matplotlib")
    options = ["--lengths", "8", "24", "--contexts", "8", "64", "--batches", "2", "--steps", "2"]
    output = ["--preset", small, "--output", str(tmp_path / "report")]
    assert main(["bench", "ttft", "tpot", *options, *output, *ONCE]) == 0
    printed, said = capfd.readouterr()
    result = json.loads(printed)
    assert json.loads((tmp_path / "report/bench.json").read_text()) == result
    assert result["machine"]["read_gbps"] > 0 and result["machine"]["gemm_gflops"] > 0
    assert set(result["versions"]) == {"qwen35", "torch", "transformers", "python"}
    ttft, tpot = result["parts"]["ttft"], result["parts"]["tpot"]
    assert [row["prompt"] for row in ttft] == [8, 24]
    assert [(row["context"], row["batch"]) for row in tpot] == [(8, 1), (64, 1), (8, 2)]
    for row in (*ttft, *tpot):
        assert 0 < row["ours"] < 60 and 0 < row["reference"] < 60
        # One round: the ratio is that of the two medians.
        assert row["ratio"] == pytest.approx(row["reference"] / row["ours"])
        assert row["spread"] is None  # of one round, nobody knows
    for row in tpot:
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["ours"])
        assert 0 < row["host"] <= row["ours"]
    assert result["runs"]["text"][0]["recompilations"] == 0
    page = (tmp_path / "report/bench.md").read_text()
    assert "One round" in page and "0%" not in page.partition("## Time per output")[0]
    for name in ("time-to-first-token", "time-per-token-by-context", "time-per-step-by-batch"):
        assert f"(bench-{name}.png)" in page
        assert (tmp_path / f"report/bench-{name}.png").stat().st_size > 1000
    assert "round 1 of 1: text, transformers" in said


@pytest.mark.slow
def test_pictures_and_compilation(capfd):
    model = ["--model", str(DEMO.parent / "demo_vision")]
    options = ["--sides", "64", "96", "--large-side", "96", "--layers", "1", "4"]
    assert main(["bench", "images", "compile", *model, *options, *ONCE]) == 0
    parts = json.loads(capfd.readouterr().out)["parts"]
    images, narrow = parts["images"], parts["compile"]
    steps = [(side, step) for side in (64, 96) for step in ("processor", "tower", "ttft")]
    assert [(row["side"], row["step"]) for row in images["rows"]] == steps
    for row in images["rows"]:
        assert 0 < row["ours"] < 60
        assert row["ratio"] == pytest.approx(row["reference"] / row["ours"])
    # What the tower sees of a picture is the same; the processors may resize by rounding apart.
    assert all("same_token" in row for row in images["rows"] if row["step"] == "ttft")
    sizes = [size["patches"] for size in images["compilation"]]
    assert sizes == sorted(set(sizes)) and sizes[-1] >= (96 // 16) ** 2
    assert [row["layers"] for row in narrow] == [1, 4]
    assert all(row["compile_prefill"] > 0 and 0 < row["host"] < 60 for row in narrow)


@pytest.mark.parametrize(
    ("parts", "segments", "message"),
    [
        (("ttft",), 5, "the model .* segments = 5: its 4 layers make no 5 equal .*; 2 would do"),
        (("ttft", "images"), 2, "images: the vision tower .* its 3 layers make no 2 equal"),
        (("compile",), 7, "a model of 24 layers .* no 7 equal segments; 2, 3, 6 would do"),
    ],
)
def test_segments_are_of_all_that_is_measured(parts, segments, message):
    """What measures one graph in spite of them is refused; the others' jobs are cut."""
    config = qwen35.Config.from_pretrained(DEMO.parent / "demo_vision")
    small = {"lengths": (8,), "layers": (24,), "parts": parts}
    with pytest.raises(ValueError, match=message):
        suite.check(config, Settings(segments=segments, **small))
    suite.check(config, Settings(segments="auto", **small))
    for name, job in suite._jobs("DIR", Settings(segments="auto", **small)).items():
        if name != "machine" and "transformers" not in name:
            given = job.arguments.get("place", job.arguments)
            assert given["segments"] == "auto", name


def test_segments_of_what_is_not_compiled_are_refused():
    config = qwen35.Config.from_pretrained(DEMO)
    with pytest.raises(ValueError, match="device cpu compiles nothing"):
        suite.check(config, Settings(("ttft",), lengths=(8,), device="cpu", segments="auto"))


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_that_a_step_reads(tied):
    """All leaves but an embedding apart from the head; of 40 slots the 30 that are filled."""
    narrow = {"hidden_size": 96, "intermediate_size": 112, "vocab_size": 208, "vision": None}
    config = dataclasses.replace(qwen35.presets["0.8b"], tie_word_embeddings=tied, **narrow)
    params = qwen35.init_params(config, seed=0)
    assert (params.embed is None) == tied
    weights = [leaf for leaf in pytree.tree_leaves(params) if leaf is not params.embed]
    state = qwen35.init_state(params, 3, 40)
    caches = sum(leaf.nbytes for leaf in pytree.tree_leaves(state) if 40 in leaf.shape)
    read = sum(leaf.nbytes for leaf in weights) + caches * 30 // 40
    assert text.step_bytes(config, context=30, batch=3) == read


@pytest.mark.slow
def test_a_steps_share_of_the_read_bandwidth(monkeypatch):
    """On a machine that reads 10 GB/s: what a step reads, over its time, as a share of that."""
    reads = []
    monkeypatch.setattr(text, "read_gbps", lambda buffer: reads.append(buffer.nbytes) or 10.0)
    threads = torch.get_num_threads()
    try:
        result = text.measure_ours(str(DEMO), lengths=(), contexts=[(40, 3)], steps=1)
    finally:
        torch.set_num_threads(threads)
    [one] = result.decode
    assert reads == [2**30] and one.read_gbps == 10.0
    config = qwen35.Config.from_pretrained(DEMO)
    rate = text.step_bytes(config, 40, 3) / one.seconds / 1e9
    assert one.read_share == pytest.approx(rate / 10.0)


@pytest.mark.slow
def test_the_engine_alone(small, capfd):
    requests = ["--requests", "3", "--request-tokens", "12", "4", "--loads", "0.8"]
    options = ["--slots", "1", "2", "--steps", "2", "--prefix-tokens", "64", "8", "--lengths", "16"]
    parts = ["throughput", "prefix", "memory"]
    model = ["--preset", small, "--alone"]
    assert main(["bench", *parts, *model, *requests, *options, *ONCE]) == 0
    parts = json.loads(capfd.readouterr().out)["parts"]
    slots, arrivals = parts["throughput"]["slots"], parts["throughput"]["arrivals"]
    assert [row["slots"] for row in slots] == [1, 2]
    assert slots[0]["speedup"] == 1 and all(row["tokens_per_second"] > 0 for row in slots)
    assert [row["load"] for row in arrivals] == ["saturated", "0.8"]
    for row in arrivals:
        assert row["compilations"] == 0
        for name in ("ttft", "tpot"):
            assert 0 < row[f"{name}_p50"] <= row[f"{name}_p95"]
    ideal = parts["throughput"]["ideal"]
    assert ideal["prefill_rate"] > 0 and ideal["decode_rate"] > 0
    assert 0 < ideal["share_of_ideal"] < 2
    # All that two prompts share is saved, and no more than that.
    assert parts["prefix"]["saved_tokens"] == 64
    assert parts["memory"]["reference"] is None
    assert parts["memory"]["weights_and_state"] > 0


@pytest.mark.slow
def test_what_drawing_costs(small, capfd):
    """Every kind for the fewest and the most rows, each beside a greedy step."""
    options = ["--preset", small, "--slots", "1", "2", "--steps", "3", "--alone"]
    assert main(["bench", "sampling", *options, *ONCE]) == 0
    rows = json.loads(capfd.readouterr().out)["parts"]["sampling"]
    kinds = list(sampling.KINDS)
    assert [(row["slots"], row["kind"]) for row in rows] == [(n, k) for n in (1, 2) for k in kinds]
    for row in rows:
        assert 0 < row["seconds"] < 60
        assert (row["over_greedy"] == 1) == (row["kind"] == sampling.GREEDY)
    assert "top-k 20" in sampling.render(rows)


@pytest.mark.slow
def test_ranks_on_virtual_devices(small, capfd):
    """The host's work at tp 2 and at tp 1 in turn; the other parts at tp 2 alone."""
    options = ["--tp", "2", "--lengths", "8", "--contexts", "8", "--batches", "1", "--steps", "4"]
    options += ["--preset", small, "--slots", "2", "--alone", *ONCE]
    assert main(["bench", "host", "ttft", "tpot", *options]) == 0
    printed, said = capfd.readouterr()
    result = json.loads(printed)
    assert result["device"] == "xla:cpu, 2 virtual devices" and result["settings"]["tp"] == 2
    one, two = result["parts"]["host"]
    assert (one["tp"], two["tp"], one["over_one"]) == (1, 2, 1)
    assert two["over_one"] == pytest.approx(two["work"] / one["work"])
    for row in (one, two):
        assert 0 < row["work"] <= row["seconds"] < 60 and row["ahead"] > 0
    for part in ("ttft", "tpot"):
        assert all(0 < row["ours"] < 60 for row in result["parts"][part])
    assert result["runs"]["text"][0]["recompilations"] == 0
    assert "round 1 of 1: host, ranks" in said


@pytest.mark.slow
def test_the_protocol_for_neuron():
    """The function, on the CPU's XLA; no device has run it."""
    params = qwen35.load(DEMO, dtype="bfloat16", device="xla")
    result = protocol(params, prompt=8, steps=3, repeats=2)
    assert (result["prompt"], result["steps"], result["repeats"]) == (8, 3, 2)
    assert result["ttft"] > 0 and result["tpot"] > 0 and result["compile"] > 0
    assert result["tokens_per_second"] == pytest.approx(1 / result["tpot"])


@pytest.fixture
def neuron_stand_in(monkeypatch):
    """A machine that passes for one with a Neuron device; what runs is XLA:CPU, for a moment."""
    monkeypatch.setattr("qwen35.commands.launch.check_neuron", lambda: None)
    short = functools.partial(neuron.protocol, prompt=8, steps=3, repeats=2)
    monkeypatch.setattr(neuron, "protocol", short)


def test_neuron_from_the_command_line_to_the_report(neuron_stand_in, tmp_path, capfd):
    """All of the path but the device: loading, timing, what is printed, what is written."""
    output = ["--json", "--output", str(tmp_path / "report")]
    assert main(["bench", "--device", "neuron", "--model", str(DEMO), *output]) == 0
    result = json.loads(capfd.readouterr().out)
    assert json.loads((tmp_path / "report/bench.json").read_text()) == result
    assert (result["model"], result["dtype"], result["tp"]) == (str(DEMO), "bfloat16", 1)
    assert result["device"] == "xla:cpu"  # whatever it was asked to be
    assert (result["prompt"], result["steps"], result["repeats"]) == (8, 3, 2)
    assert set(result["versions"]) == {"qwen35", "torch", "python"}
    assert 0 < result["ttft"] < 60 and 0 < result["tpot"] < 60
    page = (tmp_path / "report/bench.md").read_text()
    assert page.startswith("# Benchmark on Neuron\n") and f"{DEMO}, bfloat16, tp 1" in page
    assert "published by others: 27b, tp 8" in page


@pytest.fixture
def small(monkeypatch):
    """The name of a preset of two narrow layers."""
    narrow = {"hidden_size": 96, "intermediate_size": 112, "vocab_size": 272}
    kinds = ("linear_attention", "full_attention")
    config = dataclasses.replace(
        qwen35.presets["0.8b"].text_only(), num_hidden_layers=2, layer_types=kinds, **narrow
    )
    monkeypatch.setitem(qwen35.presets, "small", config)
    return "small"


def test_neuron_with_random_weights(neuron_stand_in, small, capfd):
    """As the help says: --model can be left out."""
    assert main(["bench", "--device", "neuron", "--preset", small]) == 0
    printed = capfd.readouterr().out
    assert "| small, random weights, bfloat16, tp 1 " in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "1b"], "no preset '1b'; presets: 0.8b"),
        (["--model", "/nowhere"], "/nowhere"),
        (["speed", "--model", str(DEMO)], "parts are ttft, tpot"),
        (["images", "--preset", "0.8b", "--sides", "0"], "--sides: must be a positive integer"),
        (["ttft", "--rounds", "0"], "--rounds: must be a positive integer, not '0'"),
        (["throughput", "--loads", "-1"], "loads must be shares above 0"),
        (["tpot", "--model", str(DEMO), "--contexts", "5000"], "over the model's max_position"),
        (["--device", "neuron", "--model", str(DEMO)], "needs a Neuron device"),
        (["ttft", "--device", "neuron"], "--device neuron has no parts, such as ttft"),
        (["memory", "host", "--tp", "2"], "memory: measured on one XLA device only, not on ranks"),
        (["host", "--tp", "3"], "tp = 3 can't split this model: "),
    ],
)
def test_bad_input_is_one_line(arguments, said, capfd):
    """Before any measurement starts."""
    assert main(["bench", *arguments]) == 2
    out, error = capfd.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith("qwen35: error: ") and said in error
