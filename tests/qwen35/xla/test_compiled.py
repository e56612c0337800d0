"""Functions that all share their graphs, and who hears of a compilation."""

import dataclasses
import itertools
import threading

import pytest
import torch

import qwen35
from qwen35.evaluation.models import Qwen35Model
from qwen35.evaluation.scoring import score, score_continuations
from qwen35.xla.compiled import compiled
from qwen35.xla.devices import device_put
from qwen35.xla.jit import jit
from qwen35.xla.observers import on_compile
from qwen35.xla.progress import compile_progress

CASE = "only_attention"


def on_xla(*values):
    return device_put(torch.tensor(values), "xla")


def double(x, y=None):
    return x * 2 if y is None else x + y


def test_one_for_each_function_and_donation():
    assert compiled(double) is compiled(double, donate=())
    donating = compiled(double, donate=("x",))
    assert donating is compiled(double, donate=("x",)) is not compiled(double)
    x = on_xla(1.0)
    assert compiled(double)(x).item() == donating(x).item() == 2
    with pytest.raises(RuntimeError, match=r"argument x .* donated"):
        donating(x)


def test_cpu_tensors_run_eagerly():
    """Differentiably, and nothing is compiled or consumed."""
    function, x = compiled(double, donate=("x",)), torch.tensor([3.0], requires_grad=True)
    with on_compile() as seen:
        function(x).backward()
        function.compile(x.detach())
    assert x.grad.item() == 2 and x.detach().item() == 3 and seen.count == 0


def test_observers_nest():
    """All that are around hear of it, a report that is there twice once; others hear nothing."""
    inner, outer, other = [], [], []
    fresh = jit(lambda x: x + 40)
    with on_compile(other.append) as before:
        pass
    with on_compile(outer.append) as around:
        with on_compile(inner.append) as within, on_compile(outer.append) as again:
            fresh(on_xla(1, 2))
        fresh(on_xla(1, 2, 3))
        fresh(on_xla(4, 5))
    assert [event.phase for event in outer] == ["trace", "compile", "done"] * 2
    assert inner == outer[:3] and outer[0].signature == fresh.signatures[0]
    assert (around.count, within.count, again.count, before.count) == (2, 1, 1, 0) and not other
    assert within.seconds == again.seconds == inner[-1].seconds > 0
    assert around.seconds == outer[2].seconds + outer[5].seconds


def test_a_failed_compilation_takes_time_and_counts_for_nothing():
    events = []
    with on_compile(events.append) as seen, pytest.raises(ZeroDivisionError):
        jit(lambda x: x / (1 // 0))(on_xla(1.0))
    assert [event.phase for event in events] == ["trace", "failed"]
    assert seen.count == 0 and seen.seconds == events[-1].seconds > 0
    with on_compile() as after:
        pass
    assert after.seconds == 0


def test_threads_hear_of_their_own_compilations():
    """Two at a time, each observing; a thread that does not say so is not observed."""
    functions = [jit(lambda x, n=n: x + n) for n in range(3)]
    seen, barrier = {}, threading.Barrier(2)

    def run(number):
        with on_compile() as here:
            barrier.wait()
            functions[number](on_xla(*range(number + 1)))
            barrier.wait()
        seen[number] = here.count

    with on_compile() as outside:
        threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {0: 1, 1: 1} and outside.count == 0


@pytest.fixture
def fresh(load):
    """fresh(): parameters on the device for which nothing has been compiled."""

    def build():
        # The configuration is a part of every graph's key.
        config = dataclasses.replace(params.config, max_position_embeddings=500 + next(unused))
        return dataclasses.replace(params, config=config, vision=seeing(next(unused)))

    params = load(CASE, "xla")
    return build


unused = itertools.count()


def seeing(number):
    """A tower of one block."""
    tower = qwen35.VisionConfig(
        depth=1,
        hidden_size=32,
        intermediate_size=24 + number,
        num_heads=4,
        patch_size=4,
        out_hidden_size=64,
    )
    config = dataclasses.replace(
        qwen35.presets["0.8b"],
        hidden_size=64,
        vocab_size=8,
        num_hidden_layers=1,
        layer_types=("full_attention",),
        vision=tower,
    )
    return qwen35.init_params(config, device="xla").vision


def run_generate(params, letters, progress):
    qwen35.generate(params, letters, [[1, 2], [3]], max_new_tokens=3, progress=progress)


def run_engine(params, letters, progress):
    engine = qwen35.Engine(params, letters, slots=2, capacity=24, progress=progress)
    engine.submit([1, 2, 3], max_new_tokens=3, sampling=qwen35.Sampling(1.0))
    list(engine.run())


def run_scoring(params, letters, progress):
    score(params, [[1, 2, 3]], progress=progress)
    list(score_continuations(params, [([1, 2], [3])], progress=progress))


def run_agreement(params, letters, progress):
    model = Qwen35Model(params, letters, 20, progress=progress)
    model.logits([1, 2, 3], 2)
    model.greedy([[1, 2]], 2, ())


def run_tower(params, letters, progress):
    patches = torch.zeros(4, params.vision.config.patch_dim)
    qwen35.encode_images(params.vision, patches, [(1, 2, 2)], progress=progress)


@pytest.mark.parametrize("run", [run_generate, run_engine, run_scoring, run_agreement, run_tower])
def test_showing_progress_compiles_nothing_again(run, fresh, letters, capsys):
    """With progress or without, the graphs are the same; what is compiled is shown once, also
    where the caller observes it too."""
    params = fresh()
    with on_compile() as first:
        run(params, letters, progress=False)
    assert first.count > 0 and "compiling" not in capsys.readouterr().err
    events = []
    with on_compile(events.append) as second:
        run(params, letters, progress=True)
    assert second.count == 0 and not events
    assert "compiling" not in capsys.readouterr().err
    with on_compile(compile_progress) as third:  # moving rows needs no other graph
        run(fresh(), letters, progress=True)
    assert 0 < third.count == capsys.readouterr().err.count("compiling")


def test_timings_of_a_call_know_its_compilations(fresh, letters):
    """What `generate` reports as compilation is what an observer sees."""
    params = fresh()
    with on_compile() as seen:
        [cold] = qwen35.generate(params, letters, [[1, 2]], max_new_tokens=3)
    [warm] = qwen35.generate(params, letters, [[1, 2]], max_new_tokens=3)
    assert cold.timings.compile == pytest.approx(seen.seconds) and warm.timings.compile == 0
    assert cold.timings.first_token < cold.timings.compile, "compiling is no part of it"
