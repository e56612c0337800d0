"""What the ranks of a test do; each function runs in every rank's process (see `worker`)."""

import argparse
import contextlib
import dataclasses
import os
import signal
import time
from unittest import mock

import choosing
import models
import serving
import torch
from torch.utils import _pytree as pytree

import qwen35
from qwen35.commands.launch import Launch
from qwen35.commands.loading import load_params
from qwen35.generation import steps, together
from qwen35.model.declarations import Units
from qwen35.model.state_shares import gather_state, scatter_state
from qwen35.sharding import collectives, process, spmd
from qwen35.sharding.following import Calls
from qwen35.sharding.mesh import Mesh
from qwen35.xla.jit import jit


def exercise(mesh: Mesh, rank: int, path: str, segments: int | str = 1) -> models.Said:
    """The model of a checkpoint on all ranks; rows split over dp."""
    process.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=rank, segments=segments)
    params = qwen35.load(path, runtime=runtime)
    row = mesh.coordinates(rank)[0]
    share = 2 // mesh.dp
    said = models.exercise(params, rows=slice(row * share, (row + 1) * share))
    said.logits = {name: process.join_batch(value, mesh) for name, value in said.logits.items()}
    said.tokens = process.join_batch(said.tokens, mesh)
    return said


def gradients(mesh: Mesh, rank: int, path: str) -> tuple[float, list[torch.Tensor]]:
    """The loss of one prompt and the gradient of every parameter tensor of this rank."""
    process.start(mesh)
    params = qwen35.load(path, runtime=qwen35.Runtime(mesh=mesh, rank=rank))
    return models.gradients(params, mesh)


def virtual_devices(
    mesh: Mesh,
    rank: int,
    path: str,
    steps: int = models.STEPS,
    weights: str | None = None,
    segments: int | str = 1,
    later: int | str | None = None,
) -> dict:
    """The same on the virtual devices of one process, through `qwen35.jit`; with `weights`
    quantised, and the head with them; with other segments `later` than when it was loaded."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None, segments=segments)
    params = qwen35.load(path, device="xla", runtime=runtime, weights=weights, head=weights)
    params = params if later is None else params.with_runtime(segments=later)
    prefill = jit(qwen35.prefill, donate=("state",))
    decode = jit(qwen35.decode, donate=("state",))
    said = models.exercise(
        params,
        prefill=prefill,
        decode=decode,
        put=lambda tensor: qwen35.device_put(tensor, "xla"),
        get=lambda tree: qwen35.device_put(tree, "cpu"),
        steps=steps,
    )
    return {
        "said": said,
        "states": spmd.unstack(said.state, mesh),
        "compilations": (prefill.compile_count, decode.compile_count),
        "signatures": prefill.signatures + decode.signatures,
    }


def generate(mesh: Mesh, rank: int, path: str) -> list[tuple[int, ...]]:
    """Texts, in one process per rank."""
    process.start(mesh)
    return models.generated(qwen35.load(path, runtime=qwen35.Runtime(mesh=mesh, rank=rank)))


def generate_on_virtual_devices(mesh: Mesh, rank: int, path: str) -> list[tuple[int, ...]]:
    """Texts, compiled, on the virtual devices of one process."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None)
    return models.generated(qwen35.load(path, device="xla", runtime=runtime))


def choose(mesh: Mesh, rank: int, path: str) -> dict[str, list]:
    """Choices, in one process per rank."""
    process.start(mesh)
    return choosing.chosen(qwen35.load(path, runtime=qwen35.Runtime(mesh=mesh, rank=rank)))


def choose_on_virtual_devices(mesh: Mesh, rank: int, path: str) -> dict[str, list]:
    """Choices, compiled, on the virtual devices of one process."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None)
    return choosing.chosen(qwen35.load(path, device="xla", runtime=runtime))


def look(mesh: Mesh, rank: int, path: str) -> list[torch.Tensor]:
    """Prompts with images, in one process per rank."""
    process.start(mesh)
    return models.look(qwen35.load(path, runtime=qwen35.Runtime(mesh=mesh, rank=rank)))


def look_on_virtual_devices(mesh: Mesh, rank: int, path: str) -> list[torch.Tensor]:
    """Prompts with images, compiled, on the virtual devices of one process."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None)
    return models.look(
        qwen35.load(path, device="xla", runtime=runtime),
        prefill=jit(qwen35.prefill, donate=("state",)),
        decode=jit(qwen35.decode, donate=("state",)),
        put=lambda tensor: qwen35.device_put(tensor, "xla"),
        get=lambda tree: qwen35.device_put(tree, "cpu"),
    )


def encode(mesh: Mesh, rank: int, path: str) -> torch.Tensor:
    """Pictures, in one process per rank."""
    process.start(mesh)
    return models.picture_vectors(qwen35.load(path, runtime=qwen35.Runtime(mesh=mesh, rank=rank)))


def encode_on_virtual_devices(
    mesh: Mesh, rank: int, path: str, segments: int | str = 1
) -> torch.Tensor:
    """Pictures, compiled, on the virtual devices of one process."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None, segments=segments)
    return models.picture_vectors(qwen35.load(path, device="xla", runtime=runtime))


def mutants(mesh: Mesh, rank: int, path: str) -> dict[str, torch.Tensor]:
    """Logits of a prompt, right and with one thing wrong at a time."""
    process.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=rank)
    params = qwen35.load(path, runtime=runtime)
    tokens = torch.arange(14).view(2, 7)

    def logits(model: qwen35.Params = params) -> torch.Tensor:
        return qwen35.prefill(model, qwen35.init_state(model, 2, 8), tokens)[0]

    def without(number: int):
        """all_reduce, but the one with this number leaves out the other ranks."""
        calls = iter(range(1000))
        return lambda x, mesh: x if next(calls) == number else collectives.all_reduce(x, mesh)

    def contiguous(axis, count, size=1, start=0, stride=0):
        """The checkpoint read as [all queries | all gates] instead of interleaved per head."""
        start = count * size if stride and start else start
        return Units(axis, count, size, start)

    @contextlib.contextmanager
    def reducing(function):
        """With this in the place of all_reduce: of the embedding, and of the layers."""
        with (
            mock.patch("qwen35.model.parts.all_reduce", function),
            mock.patch("qwen35.model.decoder.all_reduce", function),
        ):
            yield

    results = {"right": logits()}
    reduce = mock.Mock(wraps=collectives.all_reduce)
    with reducing(reduce):
        logits()
    for number in range(reduce.call_count):
        with reducing(without(number)):
            results[f"without all-reduce {number}"] = logits()
    with mock.patch(
        "qwen35.model.decoder.all_gather", lambda x, mesh: torch.cat([x] * mesh.tp, -1)
    ):
        results["without the gather"] = logits()
    with mock.patch("qwen35.model.declarations.Units", contiguous):
        results["queries and gates not interleaved"] = logits(qwen35.load(path, runtime=runtime))
    wrong = qwen35.Runtime(mesh=mesh, rank=(rank + 1) % mesh.size)
    shifted = qwen35.load(path, runtime=wrong).with_runtime(rank=rank)
    results["the next rank's share"] = logits(shifted)
    return results


def disagree(mesh: Mesh, rank: int) -> None:
    """Rank 1 has another configuration and dtype."""
    process.start(mesh)
    config = models.CONFIGS["even" if rank == 1 else "heads_of_27b"]
    process.check_equal_on_ranks(
        config=config, dtype=torch.bfloat16 if rank == 1 else torch.float32
    )


def load_together(mesh: Mesh, rank: int, path: str) -> None:
    """Loads as the command line does: one rank's failure is every rank's."""
    process.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=rank)
    process.call_on_all_ranks(qwen35.load, path, runtime=runtime)


def one_rank_dies(mesh: Mesh, rank: int, killed: bool) -> None:
    """Rank 1 ends without a word while the others wait in a collective, and say for how long."""
    process.start(mesh, timeout=60)
    collectives.all_reduce(torch.ones(4), mesh)  # all are there
    if rank == 1:
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    start = time.monotonic()
    try:
        collectives.all_reduce(torch.ones(4), mesh)
    except RuntimeError as error:
        raise RuntimeError(f"waited {time.monotonic() - start:.1f} s: {error}") from None


def one_rank_hangs(mesh: Mesh, rank: int, timeout_of_ranks: float) -> None:
    """Rank 1 never joins the collective."""
    process.start(mesh, timeout=timeout_of_ranks)
    if rank == 1:
        time.sleep(3 * timeout_of_ranks + 10)
        os._exit(1)
    collectives.all_reduce(torch.ones(4), mesh)


def start_only(mesh: Mesh, rank: int) -> None:
    """Nothing but the start."""
    process.start(mesh)


def reduce_dtypes(mesh: Mesh, rank: int, path: str) -> dict[str, torch.Tensor]:
    """Logits of a prompt in bfloat16, reduced in either dtype."""
    process.start(mesh)
    results = {}
    for reduce in ("activation", "float32"):
        runtime = qwen35.Runtime(mesh=Mesh(dp=mesh.dp, tp=mesh.tp, reduce=reduce), rank=rank)
        params = qwen35.load(path, dtype="bfloat16", runtime=runtime)
        tokens = torch.arange(120).view(4, 30)
        state = qwen35.init_state(params, 4, 30)
        results[reduce] = qwen35.prefill(params, state, tokens)[0]
    return results


def grown_on_virtual_devices(mesh: Mesh, rank: int, path: str) -> dict:
    """A prompt, then more room, then a token that has no place without it."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None)
    params = qwen35.load(path, device="xla", runtime=runtime)
    tokens = qwen35.device_put(torch.tensor(models.GROWN), "xla")
    state = qwen35.init_state(params, 2, 4)
    _, state = jit(qwen35.prefill, donate=("state",))(params, state, tokens[:, :4])
    wider = qwen35.grow(state, 6)
    decode = jit(qwen35.decode, donate=("state",))
    same = pytree.tree_structure(wider) == pytree.tree_structure(state)
    results = []
    for place in (4, 5):
        logits, wider = decode(params, wider, tokens[:, place])
        results.append(logits.cpu())
    return {"logits": results, "same": same, "compilations": decode.compile_count}


def serve_on_virtual_devices(
    mesh: Mesh, rank: int, path: str, count: int, segments: int | str = 1, **settings: int
) -> serving.Served:
    """An engine on the virtual devices of one process."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None, segments=segments)
    params = qwen35.load(path, device="xla", runtime=runtime)
    return serving.serve_warm(serving.engine_for(params, **settings), count)


def grow_engine_on_virtual_devices(mesh: Mesh, rank: int, path: str) -> tuple[list, dict]:
    """An engine whose slots grow, and how often each step was compiled for that."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None)
    params = qwen35.load(path, device="xla", runtime=runtime)
    engine = serving.engine_for(params, max_capacity=serving.LARGEST, prefill_sizes=1)
    grown = serving.grow(engine)
    return grown, {step.__name__.strip("_"): step.signatures for step in steps.ALL}


def _engine_of_rank(mesh: Mesh, rank: int, path: str, **settings) -> qwen35.Engine:
    process.start(mesh, timeout=30)
    params = qwen35.load(path, runtime=qwen35.Runtime(mesh=mesh, rank=rank))
    return serving.engine_for(params, **settings)


def serve_in_processes(
    mesh: Mesh, rank: int, path: str, count: int, cache_bytes: int
) -> tuple[serving.Served | None, dict]:
    """An engine in one process per rank: what came of the requests, and each rank's cache."""
    engine = _engine_of_rank(mesh, rank, path, cache_bytes=cache_bytes)
    served = None
    if engine.leads:
        served = serving.serve(engine, count)
        engine.close()
    else:
        engine.follow()
    return served, dataclasses.asdict(engine.stats)


def serve_on_a_device_each(
    mesh: Mesh, rank: int, path: str, count: int, segments: int | str = 1
) -> list | None:
    """An engine whose processes each have an XLA device, as on Trainium, and one on CPU tensors.

    XLA:CPU has no collectives between processes: here every process computes what the first rank
    would without the others, so that what they say is wrong, and the same.
    """
    process.start(mesh, backend="xla", timeout=60)
    served = []
    with (
        mock.patch.object(collectives, "_xla_all_reduce", lambda x, mesh: x),
        mock.patch.object(collectives, "_xla_all_gather", lambda x, mesh: _repeated(x, mesh)),
        mock.patch.object(collectives._AllReduce, "apply", lambda x, mesh: x),
        mock.patch.object(collectives._AllGather, "apply", lambda x, mesh: _repeated(x, mesh)),
        mock.patch.object(together, "Calls", lambda mesh, _: Calls(mesh, rank)),
    ):
        for device in ("cpu", "xla"):
            runtime = qwen35.Runtime(mesh=mesh, rank=0, segments=segments)
            params = qwen35.load(path, device=device, runtime=runtime)
            engine = serving.engine_for(params, cache_bytes=100_000)
            if not engine.leads:
                engine.follow()
                continue
            served.append(serving.serve(engine, count))
            engine.close()
    return served


def _repeated(x: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    return torch.cat([x] * mesh.tp, dim=-1)


def grow_in_processes(mesh: Mesh, rank: int, path: str) -> list | None:
    """Slots that grow, in one process per rank."""
    engine = _engine_of_rank(mesh, rank, path, max_capacity=serving.LARGEST)
    if not engine.leads:
        return engine.follow()
    grown = serving.grow(engine)
    engine.close()
    return grown


def engine_fails(mesh: Mesh, rank: int, path: str, place: str, how: str) -> None:
    """On rank 1 a method of the engine's batch fails, or the process is killed in it."""
    engine = _engine_of_rank(mesh, rank, path)
    method = getattr(engine.batch, place)

    def failing(*args):
        if engine.running[0] is None and place != "prefill":
            return method(*args)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "forgets":
            engine.cache.clear()
            return method(*args)
        raise MemoryError("no room on this rank")

    if rank == 1:
        setattr(engine.batch, place, failing)
    if not engine.leads:
        return engine.follow()
    for prompt in ([1, 2, 3], [4] * 20):
        engine.submit(prompt, max_new_tokens=6, sampling=qwen35.Sampling(banned=[3]))
    for _ in engine.run():
        pass
    engine.close()


def bad_text_in_processes(
    mesh: Mesh, rank: int, path: str, failing: int | None = None
) -> list | None:
    """A token that can't be decoded in any rank, or only in the `failing` one, ends its request
    there; others go on."""
    engine = _engine_of_rank(mesh, rank, path)

    class Broken(models.Letters):
        def decode(self, tokens, skip_special_tokens=False):
            if 151 in tokens and failing in (None, rank):
                raise RuntimeError("this token can't be decoded")
            return super().decode(tokens)

    engine._tokenizer = Broken()
    if not engine.leads:
        return engine.follow()
    only = qwen35.Sampling(banned=[token for token in range(160) if token != 151])
    bad = engine.submit([5, 6], max_new_tokens=3, sampling=only)
    late = engine.submit([7, 8], max_new_tokens=3, timeout=0.0)
    good = engine.submit([9, 1], max_new_tokens=3)
    for _ in engine.run():
        pass
    engine.close()
    return [(r.finish_reason, tuple(r.new_tokens)) for r in (bad, late, good)]


def other_weights(mesh: Mesh, rank: int, paths: list[str]) -> None:
    """Each rank's engine has another checkpoint."""
    _engine_of_rank(mesh, rank, paths[rank])


def loaded_by_a_command(mesh: Mesh, rank: int, paths: list[str]) -> None:
    """Each rank's --model is another directory."""
    process.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=rank)
    names = {"dtype": "auto", "weights": None, "head": None, "adapter": None, "check_finite": True}
    options = argparse.Namespace(model=paths[rank], **names)
    load_params(options, Launch(runtime, "cpu", prints=not rank, processes=mesh.size))


def engines_disagree(mesh: Mesh, rank: int, path: str) -> None:
    """Rank 1's engine has another number of slots."""
    _engine_of_rank(mesh, rank, path, slots=3 + rank)


def see_in_processes(mesh: Mesh, rank: int, path: str) -> list | None:
    """An engine that is given pictures, in one process per rank."""
    engine = _engine_of_rank(mesh, rank, path, slots=4)
    if not engine.leads:
        return engine.follow()
    seen = serving.see(engine)
    engine.close()
    return seen


def see_on_virtual_devices(mesh: Mesh, rank: int, path: str) -> list:
    """An engine that is given pictures, on the virtual devices of one process."""
    spmd.start(mesh)
    runtime = qwen35.Runtime(mesh=mesh, rank=None)
    params = qwen35.load(path, device="xla", runtime=runtime)
    return serving.see(serving.engine_for(params, slots=4))


def _go_on_from_a_file(mesh: Mesh, rank: int | None, path: str, file: str, out: str) -> list:
    """Goes on with a state from a file, in processes or (rank None) on virtual devices, there in
    compiled steps and then in lazy ones, and writes what came of it to another."""
    runtime = qwen35.Runtime(mesh=mesh, rank=rank)
    params = qwen35.load(path, device="cpu" if rank is not None else "xla", runtime=runtime)
    saved = qwen35.load_state(file, params, capacity=40)
    put = qwen35.device_put
    token, state, tokens = put(saved.logits, "cpu").argmax(-1), saved.state, []
    compiled = qwen35.jit(qwen35.decode)
    for place in range(6):
        tokens.append(token.tolist())
        step = qwen35.decode if rank is not None or place > 3 else compiled
        logits, state = step(params, state, put(token, params.device.type))
        token = put(logits, "cpu").argmax(-1)
    qwen35.save_state(out, params, state, logits=logits)
    return tokens


def states_in_processes(mesh: Mesh, rank: int, path: str, file: str, out: str) -> list:
    """The tokens of each rank's process."""
    process.start(mesh)
    return _go_on_from_a_file(mesh, rank, path, file, out)


def states_on_virtual_devices(mesh: Mesh, rank: int, path: str, file: str, out: str) -> list:
    """The tokens of one process."""
    spmd.start(mesh)
    return _go_on_from_a_file(mesh, None, path, file, out)


def conversations(
    mesh: Mesh, rank: int, path: str, ways: list[int], told: list[list[tuple]], folder: str
) -> list[tuple[list[torch.Tensor], list[int]]]:
    """Texts of which each piece is read at another tp: the logits after each, and what follows.

    told: of each text its pieces: tokens, tp, whether they are decoded one by one, and whether the
    state comes there by a file. All ranks of the mesh take part at every tp, as so many dp rows.
    """
    process.start(mesh)
    split = {tp: Mesh(dp=mesh.size // tp, tp=tp) for tp in ways}
    params = {
        tp: qwen35.load(path, runtime=qwen35.Runtime(mesh=mesh_of, rank=rank))
        for tp, mesh_of in split.items()
    }
    results = []
    for number, pieces in enumerate(told):
        model = params[pieces[0][1]]
        state, said = qwen35.init_state(model, 1, models.ROOM), []
        for place, (tokens, tp, one_by_one, by_file) in enumerate(pieces):
            if by_file:
                row = split[model.runtime.mesh.tp].coordinates(rank)[0]
                file = f"{folder}/{number}-{place}-"
                qwen35.save_state(f"{file}{row}", model, state)
                torch.distributed.barrier()
                model = params[tp]
                state = qwen35.load_state(f"{file}0", model, capacity=models.ROOM).state
            else:
                whole = gather_state(model, state)
                model = params[tp]
                state = scatter_state(model, whole)
            logits, state = models.read(model, state, tokens, one_by_one)
            said.append(logits)
        results.append((said, models.follow(model, state, said[-1])))
    return results
