"""Every step on a stand-in for the device, once as it should be and with faults that it must find.

XLA:CPU runs underneath, under Neuron's names; kernels run on the emulator (see neuron_stand_in).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from pathlib import Path

import neuron_stand_in
import pytest
import torch

from qwen35.bench import neuron as protocol
from qwen35.kernels import host, portable
from qwen35.kernels.oracle import bfloat16
from qwen35.neuron import (
    __main__,
    arithmetic,
    buckets,
    donation,
    engine,
    model,
    nki_kernels,
    occupancy,
    profile,
    ranks,
    segments,
    speed,
    vision,
)
from qwen35.neuron import portable as portable_step
from qwen35.neuron.machine import Machine
from qwen35.neuron.steps import STEPS, AbsentError, Settings
from qwen35.sharding.launch import Ranks
from qwen35.xla import trees

ROOT = Path(__file__).resolve().parents[3]
DEMO = Settings(demo=str(ROOT / "demo"), demo_vision=str(ROOT / "demo_vision"))

pytestmark = pytest.mark.usefixtures("device")


def failed(outcome) -> dict[str, str]:
    """Names of the tests that failed, with their texts; a whole outcome goes through JSON."""
    assert json.loads(json.dumps(outcome)) == outcome or outcome["figures"]
    assert outcome["tests"]
    return {test["name"]: test["text"] for test in outcome["tests"] if not test["passed"]}


def on_device(function, change):
    """The function, its result changed where it runs on the device."""

    @functools.wraps(function)
    def wrong(*args, **kwargs):
        result = function(*args, **kwargs)
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        return change(result) if any(x.device.type == "xla" for x in tensors) else result

    return wrong


def wrong_weights(load):
    """`load` with weights of zero on the device."""

    def load_wrong(*args, device, **options):
        params = load(*args, device=device, **options)
        return params if device == "cpu" else trees.map_tensors(torch.zeros_like, params)

    return load_wrong


# Arithmetic.


def test_arithmetic():
    outcome = arithmetic.measure(DEMO)
    assert failed(outcome) == {}
    assert len(outcome["tests"]) == len(arithmetic.EXACT) + len(arithmetic.NEAR)


def test_arithmetic_finds_a_split_that_takes_wrong_columns(monkeypatch):
    split = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda x, *a, **k: split(x.flip(-1), *a, **k))
    [(name, text)] = failed(arithmetic.measure(DEMO)).items()
    assert name == "split along the last dimension" and text == "wrong: result 0, 1, 2"


def test_arithmetic_finds_rounding_and_what_does_not_compile(monkeypatch):
    true = arithmetic._run

    def rounded(function, arrays):
        if function is torch.softmax:
            raise RuntimeError("NCC_EVRF001")
        return tuple(bfloat16(x) if x.dtype == "float32" else x for x in true(function, arrays))

    monkeypatch.setattr(arithmetic, "_run", rounded)
    monkeypatch.setitem(arithmetic.EXACT, "softmax of one", (torch.softmax, (), None))
    found = failed(arithmetic.measure(DEMO))
    assert {"product in float32", "exp of decays", "slices"} <= set(found)
    assert found["softmax of one"] == "RuntimeError: NCC_EVRF001"
    assert "int32 beyond 2**24" not in found and "exp(0) is 1" not in found


# The delta rule.


def test_the_kernels_on_the_emulator():
    outcome = nki_kernels.measure(DEMO)
    assert failed(outcome) == {}
    # One, few and many tokens, in two dtypes; again without GpSimd, and two without float16.
    names = [test["name"] for test in outcome["tests"]]
    assert len(names) == 14
    assert sum(name.endswith("bfloat16, without float16") for name in names) == 2
    assert sum(name.endswith(", without GpSimd") for name in names) == 6
    assert {test["bound"] for test in outcome["tests"]} == {3e-5, 1.2e-4, 1.7e-4, 2e-2, 6e-2}
    assert all(0 < test["error"] for test in outcome["tests"])


def test_a_kernel_whose_state_is_a_thousandth_off(monkeypatch):
    def launch(kernel, *operands, **static):
        out, state = true(kernel, *operands, **static)
        return out, state * 1.001

    true = host.launch
    monkeypatch.setattr(host, "launch", launch)
    found = failed(nki_kernels.measure(DEMO))
    assert len(found) == 6 and all("float32" in name for name in found)


def test_one_kernel_that_does_not_compile_takes_no_other_with_it(monkeypatch):
    def launch(kernel, *operands, **static):
        if kernel.module == "nki_chunk":
            raise RuntimeError("NCC_EVRF065")
        return true(kernel, *operands, **static)

    true = host.launch
    monkeypatch.setattr(host, "launch", launch)
    found = failed(nki_kernels.measure(DEMO))
    assert len(found) == 5 and set(found.values()) == {"RuntimeError: NCC_EVRF065"}


def test_a_device_that_refuses_gpsimd_runs_without_it(monkeypatch):
    def launch(kernel, *operands, gpsimd, **static):
        if gpsimd:
            raise RuntimeError("NCC_IINAR001")
        return true(kernel, *operands, gpsimd=gpsimd, **static)

    true = host.launch
    monkeypatch.setattr(host, "launch", launch)
    found = failed(nki_kernels.measure(DEMO))
    assert len(found) == 8 and not any("without GpSimd" in name for name in found)


def test_without_nki_the_kernels_are_absent(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nki.language", None)
    with pytest.raises(AbsentError, match="AWS's package nki, which could not be imported"):
        nki_kernels.measure(DEMO)


@pytest.mark.slow
def test_the_portable_form():
    assert failed(portable_step.measure(DEMO)) == {}


@pytest.mark.slow
def test_a_portable_form_that_is_off(monkeypatch):
    wrong = on_device(portable.gated_delta_prefill, lambda result: (result[0] * 1.001, result[1]))
    monkeypatch.setattr(portable, "gated_delta_prefill", wrong)
    found = failed(portable_step.measure(DEMO))
    assert len(found) == 2 and all("float32" in name and name[0] != "1 " for name in found)


# Models.


@pytest.mark.slow
def test_the_whole_model():
    outcome = model.measure(DEMO)
    assert failed(outcome) == {} and len(outcome["tests"]) == 4
    assert all(seconds > 0 for seconds in outcome["figures"]["compile_seconds"].values())


@pytest.mark.slow
def test_a_model_that_answers_something_else(monkeypatch):
    monkeypatch.setattr(model, "load", wrong_weights(model.load))
    found = failed(model.measure(DEMO))
    assert len(found) == 4
    tokens = [text for name, text in found.items() if "greedy tokens" in name]
    assert len(tokens) == 2 and all("from token" in text for text in tokens)


def test_without_the_clone_there_is_no_demo():
    for step in (model, occupancy, donation, vision, engine):
        with pytest.raises(AbsentError, match="run this in the repository's clone"):
            step.measure(Settings())


@pytest.fixture(scope="module")
def moments():
    with neuron_stand_in.platform():
        return occupancy.record(DEMO)


@pytest.mark.slow
def test_what_the_state_holds(moments, monkeypatch):
    monkeypatch.setattr(occupancy, "record", lambda settings: moments)
    outcome = occupancy.measure(DEMO)
    assert failed(outcome) == {} and len(outcome["tests"]) == 5
    assert outcome["figures"] == {"steps": 10, "rows": 3}


def changed(moment, layer, field, change):
    """The moment with a tensor of the state after it changed."""
    layers = list(moment.after.layers)
    tensor = getattr(layers[layer], field).clone()
    change(tensor)
    layers[layer] = layers[layer]._replace(**{field: tensor})
    return moment._replace(after=moment.after._replace(layers=layers))


NEAR, IDLE = "every value is the CPU's", "an idle row keeps every bit"
OLD, BEYOND = "earlier keys and values stay", "nothing behind a row's position"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "field", "change", "names", "said"),
    [
        (0, "recurrent", lambda x: x[1].mul_(1.01), {NEAR}, "step 4: layer 0, recurrent: off by"),
        (1, "conv", lambda x: x[[0, 2]].copy_(x[[2, 0]]), set(), ""),  # no view: nothing is changed
        (1, "conv", lambda x: x[0].copy_(x[2].clone()), {NEAR, IDLE}, "row 0 was idle"),
        (0, "recurrent", lambda x: x[0, 0, 0, 0].neg_(), {NEAR, IDLE}, "row 0 was idle"),
        (3, "key", lambda x: x[2, :, :, 1].zero_(), {NEAR, OLD}, "row 2 lost of its first"),
        (3, "value", lambda x: x[2, :, 0].zero_(), {NEAR, OLD}, "row 2 lost of its first"),
        (7, "value", lambda x: x[1, 0, 40].fill_(1), {NEAR, BEYOND}, "something behind its"),
    ],
)
def test_a_state_that_lost_crossed_or_aliased_something(
    layer, field, change, names, said, moments, monkeypatch
):
    """In step 4, in which row 0 is idle."""
    planted = [*moments[:4], changed(moments[4], layer, field, change), *moments[5:]]
    assert not planted[4].active[0] and planted[4].active[1:].all()
    monkeypatch.setattr(occupancy, "record", lambda settings: planted)
    found = failed(occupancy.measure(DEMO))
    assert set(found) == names and (not said or any(said in text for text in found.values()))


@pytest.mark.slow
def test_a_position_that_stands_still(moments, monkeypatch):
    stuck = moments[5]._replace(
        after=moments[5].after._replace(position=moments[5].before.position)
    )
    monkeypatch.setattr(occupancy, "record", lambda settings: [*moments[:5], stuck])
    assert "positions" in failed(occupancy.measure(DEMO))


@pytest.mark.slow
def test_memory_over_donated_steps(monkeypatch):
    outcome = donation.measure(DEMO)
    assert failed(outcome) == {}
    assert len(outcome["figures"]["host_bytes"]) == donation.STEPS // donation.EVERY
    assert outcome["figures"]["device_bytes"] == []  # no driver counts here


@pytest.mark.slow
def test_growth_on_the_device_is_seen(monkeypatch):
    used = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(donation, "device_memory_used", lambda: next(used))
    monkeypatch.setattr(donation, "STEPS", 500)
    found = failed(donation.measure(DEMO))
    assert set(found) == {"growth of the device's memory, bytes"}


@pytest.mark.slow
def test_pictures(monkeypatch):
    outcome = vision.measure(DEMO)
    assert failed(outcome) == {} and len(outcome["figures"]["answers"]) == 2
    monkeypatch.setattr(vision, "load", wrong_weights(vision.load))
    assert len(failed(vision.measure(DEMO))) == 1


@pytest.mark.slow
def test_the_engine(monkeypatch):
    outcome = engine.measure(DEMO)
    assert failed(outcome) == {} and outcome["figures"]["graphs"] > 1
    monkeypatch.setattr(engine.Engine, "warm_up", lambda self: None)
    with monkeypatch.context() as context:
        context.setattr(engine, "load", wrong_weights(engine.load))
        found = failed(engine.measure(DEMO))
    assert {name.partition(" of ")[0] for name in found} >= {"tokens"}


@pytest.fixture
def small():
    """Settings of a preset of four narrow layers."""
    return Settings(preset=neuron_stand_in.NARROW, tp=2)


def alone(monkeypatch, *modules):
    """Has the modules take one rank for those that are asked for."""
    one = contextlib.nullcontext(Ranks(None, 0, "xla", 1))
    for module in modules:
        monkeypatch.setattr(module, "start_ranks", lambda tp, device: one)


@pytest.mark.slow
def test_ranks(small, monkeypatch):
    alone(monkeypatch, ranks)
    outcome = ranks.measure(small)
    assert failed(outcome) == {} and outcome["figures"] == {"layers": 4}
    with pytest.raises(AbsentError, match="splits nothing"):
        ranks.measure(dataclasses.replace(small, tp=1))
    with pytest.raises(ValueError, match="no preset '1b'"):
        ranks.measure(Settings(preset="1b", tp=2))


@pytest.mark.slow
def test_ranks_that_add_up_wrongly(small, monkeypatch):
    alone(monkeypatch, ranks)

    def init(config, **options):
        return true(config, seed=len(options), **options)

    true = ranks.init_params
    monkeypatch.setattr(ranks, "init_params", init)
    assert "logits of 17 steps at tp 2" in failed(ranks.measure(small))


@pytest.mark.slow
def test_speed(small, monkeypatch):
    alone(monkeypatch, speed)
    short = functools.partial(protocol.protocol, prompt=8, steps=3, repeats=2)
    monkeypatch.setattr(protocol, "protocol", short)
    outcome = speed.measure(small)
    assert failed(outcome) == {}
    figures = outcome["figures"]
    assert 0 < figures["ttft"] < 60 and 0 < figures["tpot"] < 60 and figures["compile"] > 0
    assert figures["device"] == "xla:neuron" and figures["published_by_others"] == []
    monkeypatch.setattr(protocol, "protocol", lambda params: short(params) | {"tpot": 0.0})
    assert failed(speed.measure(small)) == {"tpot is a time": "0.0 s"}


@pytest.mark.slow
def test_segments(small, monkeypatch):
    alone(monkeypatch, segments)
    short = functools.partial(protocol.protocol, prompt=8, steps=3, repeats=2)
    monkeypatch.setattr(segments, "protocol", short)
    outcome = segments.measure(small)
    assert failed(outcome) == {} and outcome["figures"]["runs"] == 2
    one, cut = outcome["figures"]["rows"]
    assert (one["segments"], cut["segments"]) == ("1", "auto")
    # Two prompts and a step, as a graph each, or a run's graphs and one for what follows.
    assert one["graphs"] == 3 and cut["graphs"] > 2 * one["graphs"]
    assert all(row[name] > 0 for row in (one, cut) for name in ("ttft", "tpot"))

    def wrong(params, state, tokens):
        logits, state = true(params, state, tokens)
        return logits * (0.5 if params.runtime.segments == "auto" else 1), state

    true = segments.prefill
    monkeypatch.setattr(segments, "prefill", wrong)
    assert failed(segments.measure(small)).keys() == {"logits of both"}
    monkeypatch.setattr(segments, "sizes_of", lambda kinds, segments: ([4], "they differ"))
    with pytest.raises(AbsentError, match="nothing to cut: they differ"):
        segments.measure(small)


@pytest.mark.slow
def test_buckets(small, monkeypatch):
    alone(monkeypatch, buckets)
    monkeypatch.setattr(buckets, "SIZES", (4, 8, 16))
    outcome = buckets.measure(small)
    assert failed(outcome) == {}
    assert [row["size"] for row in outcome["figures"]["rows"]] == [4, 8, 16]

    def prefill(params, state, tokens):
        if tokens.shape[1] == 8:
            raise RuntimeError("NCC_EOOM001")
        logits, state = true(params, state, tokens)
        return logits / 0 if tokens.shape[1] == 16 else logits, state

    true = buckets.prefill
    monkeypatch.setattr(buckets, "prefill", prefill)
    outcome = buckets.measure(small)
    assert failed(outcome) == {
        "8 tokens": "RuntimeError: NCC_EOOM001",
        "16 tokens": "logits are not finite",
    }
    assert [row["size"] for row in outcome["figures"]["rows"]] == [4, 16]


def test_a_profile(tmp_path, monkeypatch):
    settings = dataclasses.replace(DEMO, output=str(tmp_path))
    with pytest.raises(AbsentError, match="no program for profiles"):
        profile.measure(settings)
    found = Machine(python=(3, 12), profilers=("neuron-explorer",))
    monkeypatch.setattr(profile, "read", lambda: found)
    monkeypatch.setattr(profile.os, "environ", {})
    monkeypatch.setattr(profile, "generate", lambda *a, **k: None)
    assert set(failed(profile.measure(settings))) == {"the runtime wrote profiles"}

    def generate(*args, **options):
        folder = Path(profile.os.environ["NEURON_RT_INSPECT_OUTPUT_DIR"])
        folder.mkdir(parents=True)
        (folder / "a.ntff").write_bytes(b"123")

    monkeypatch.setattr(profile, "generate", generate)
    outcome = profile.measure(settings)
    assert failed(outcome) == {} and outcome["figures"]["bytes"] == 3


# The process.


def test_the_process_writes_what_came_of_a_step(tmp_path, monkeypatch, capfd):
    target = tmp_path / "result.json"

    def run(step):
        assert __main__.main([step, json.dumps(dataclasses.asdict(DEMO)), str(target)]) == 0
        return json.loads(target.read_text())

    assert run("arithmetic")["tests"]
    assert "splits nothing" in run("ranks")["absent"]
    monkeypatch.setattr(occupancy, "record", lambda settings: 1 // 0)
    assert run("occupancy") == {"error": "ZeroDivisionError: integer division or modulo by zero"}
    assert "Traceback" in capfd.readouterr().err
    target.unlink()
    monkeypatch.setenv("RANK", "1")
    assert __main__.main(["ranks", "{}", str(target)]) == 0 and not target.exists()


def test_every_step_has_a_module():
    import importlib

    for step in STEPS:
        assert callable(importlib.import_module(f"qwen35.neuron.{step.name}").measure)
