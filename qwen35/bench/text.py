"""Text: seconds to the first token over prompt lengths, and per token over contexts and batches.

This project and transformers do the same work, and their records have the same fields.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ..files.materialize import init_params
from ..generation import buckets
from ..generation.generate import PREFILL_CHUNK
from ..graphs.summary import summarize
from ..model.config import Config
from ..model.decoder import decode, prefill
from ..model.params import Params, Runtime
from ..model.presets import presets
from ..model.state import State, init_state
from ..model.state_shares import fetch_state, place_state
from ..xla.compiled import Compiled, compiled
from ..xla.devices import at_once, device_put
from ..xla.jit import jit
from .machine import anonymous_memory, read_buffer, read_gbps, timed
from .placement import Placement, in_processes, meet
from .statistics import median


@dataclass(frozen=True)
class PrefillTime:
    """Seconds of a prompt of one row, up to its logits.

    compile: what the first call took longer; None of transformers, which compiles nothing.
    """

    tokens: int
    seconds: float
    compile: float | None = None


@dataclass(frozen=True)
class DecodeTime:
    """Seconds of one token of each of `batch` rows after `context` others.

    Attributes:
        seconds: until the logits are on the host.
        compile: what the first call took longer.
        host: seconds until the step is on its way.
        host_work: processor time of the calling thread for that; on the CPU the step competes with
            it for the cores.
        read_gbps: the rate at which the machine read memory between the steps.
        read_share: the rate at which a step reads what it has to, as a share of that of the read
            before it.

    All but `seconds` are None of transformers.
    """

    context: int
    batch: int
    seconds: float
    compile: float | None = None
    host: float | None = None
    host_work: float | None = None
    read_gbps: float | None = None
    read_share: float | None = None


@dataclass(frozen=True)
class TextRun:
    """A process that loads a model and then prefills and decodes, as often as it is told.

    load: seconds. recompilations: of ours, after each measurement's first call. memory: of
    transformers, anonymous bytes of the process after the last decode step.
    """

    load: float
    prefill: tuple[PrefillTime, ...]
    decode: tuple[DecodeTime, ...]
    recompilations: int | None = None
    memory: int | None = None


def measure_ours(
    model: str,
    lengths: Sequence[int],
    contexts: Sequence[Sequence[int]],
    steps: int,
    place: Placement = Placement(),
) -> TextRun:
    """Times this project, compiled on XLA.

    Args:
        model: a checkpoint directory.
        lengths: of prompts.
        contexts: pairs of tokens before a decode step, and rows of it, in each replica.
        steps: of decode that are timed.
        place: where the model is.
    """
    ranks = place.start()
    start = time.perf_counter()
    params = place.load(model, ranks)
    loading = time.perf_counter() - start
    if params.device.type == "xla":
        # In what is timed from here on torch only copies results. Its threads for that would wait
        # for more of it in a loop, on the cores that XLA computes on.
        torch.set_num_threads(1)
    prefill_step, decode_step = (compiled(step, donate=("state",)) for step in (prefill, decode))
    prefills, decodes, again = [], [], 0
    for length in lengths:
        one, recompiled = _time_prefill(prefill_step, params, length)
        prefills.append(one)
        again += recompiled
    buffer = read_buffer()
    for context, batch in contexts:
        one, recompiled = _time_decode(decode_step, params, context, batch, steps, buffer, place)
        decodes.append(one)
        again += recompiled
    return TextRun(loading, tuple(prefills), tuple(decodes), recompilations=again)


def _time_prefill(step: Compiled, params: Params, length: int) -> tuple[PrefillTime, int]:
    """Times a prefill; returns also how often it compiled after the first call."""
    tokens = torch.arange(length)[None] * 7 % params.config.vocab_size  # the same on all ranks

    def fill() -> float:
        state = at_once(params.device, lambda: init_state(params, 1, length))
        meet(params)
        return timed(lambda: _fill(step, params, state, tokens))

    first, known = fill(), step.compile_count
    seconds = median(fill() for _ in range(_repeats(length)))
    return PrefillTime(length, seconds, first - seconds), step.compile_count - known


def _time_decode(
    step: Compiled,
    params: Params,
    context: int,
    batch: int,
    steps: int,
    buffer: torch.Tensor,
    place: Placement,
) -> tuple[DecodeTime, int]:
    """Times a decode; returns also how often it compiled after the first call."""
    state = _state_after(params, batch, context, buckets.capacity(context + steps + 1))
    token = device_put(torch.zeros(batch, dtype=torch.int64), params.device.type)
    first, state = _decode(step, params, state, token)
    known, taken, rates = step.compile_count, [], []
    for _ in range(steps):
        # In turn, since the speed of a machine that others share wanders.
        rates.append(read_gbps(buffer))
        meet(params)
        one, state = _decode(step, params, state, token)
        taken.append(one)
    later = _middle(taken)
    read = step_bytes(params.config, context, batch, place.weights, place.head) / 1e9
    if in_processes(params):  # each has measured the rate at which it reads beside the others
        read /= place.tp
    shares = [read / one.whole / rate for one, rate in zip(taken, rates, strict=True)]
    result = DecodeTime(
        context,
        batch,
        later.whole,
        compile=first.whole - later.whole,
        host=later.call,
        host_work=later.work,
        read_gbps=median(rates),
        read_share=median(shares),
    )
    return result, step.compile_count - known


@torch.no_grad()
def measure_reference(
    model: str, lengths: Sequence[int], contexts: Sequence[Sequence[int]], steps: int
) -> TextRun:
    """Times transformers, eager; the arguments are those of `measure_ours`, without ranks."""
    from transformers import AutoModelForCausalLM

    start = time.perf_counter()
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    loading = time.perf_counter() - start
    vocabulary = reference.config.get_text_config().vocab_size
    reference(torch.zeros(1, 16, dtype=torch.int64), use_cache=True, logits_to_keep=1)
    prefills, decodes, memory = [], [], None
    for length in lengths:
        tokens = torch.randint(0, vocabulary, (1, length))
        times = [
            timed(lambda tokens=tokens: reference(tokens, use_cache=True, logits_to_keep=1))
            for _ in range(_repeats(length))
        ]
        prefills.append(PrefillTime(length, median(times)))
    for context, batch in contexts:
        token = torch.zeros(batch, 1, dtype=torch.int64)
        cache = reference(token, use_cache=True).past_key_values
        for layer in cache.layers:
            if getattr(layer, "keys", None) is not None:
                shape = (batch, layer.keys.shape[1], context, layer.keys.shape[3])
                layer.keys, layer.values = torch.rand(shape), torch.rand(shape)
        if cache.get_seq_length() != context:
            raise RuntimeError(f"transformers' cache has {cache.get_seq_length()} tokens")

        def decode_one(token=token, cache=cache) -> None:
            reference(token, past_key_values=cache, use_cache=True)

        times = [timed(decode_one) for _ in range(1 + steps)]
        decodes.append(DecodeTime(context, batch, median(times[1:])))
        memory = anonymous_memory()
        del cache, decode_one
    return TextRun(loading, tuple(prefills), tuple(decodes), memory=memory)


def step_bytes(
    config: Config,
    context: int,
    batch: int,
    weights: str | None = None,
    head: str | None = None,
) -> int:
    """Counts the bytes that a decode step has to read: every weight of the text model once, less an
    embedding apart from the head, of which it takes a row for each token; and each row's keys and
    values. `weights` and `head` are as for `load`."""
    sizes = summarize(config.text_only(), torch.float32, weights=weights, head=head)
    read = sizes["weight_bytes"]
    if not sizes["tied_embeddings"]:
        read -= 4 * sizes["parameters"]["embedding"]
    return read + batch * context * sizes["kv_bytes_per_token"]


@dataclass(frozen=True)
class DecodeMemory:
    """Bytes of a process that loads, prefills and decodes.

    start: anonymous, before it loads. decode: anonymous, the most while it decodes.
    weights_and_state: what it needs.
    """

    start: int
    decode: int
    weights_and_state: int


def measure_memory(
    model: str,
    lengths: Sequence[int],
    steps: int,
    weights: str | None = None,
    head: str | None = None,
    segments: int | str = 1,
) -> DecodeMemory:
    """Measures the memory of decoding `steps` tokens after the longest prompt of `lengths`."""
    place = Placement(weights=weights, head=head, segments=segments)
    ranks = place.start()
    start = anonymous_memory()
    params = place.load(model, ranks)
    step = jit(decode, donate=("state",))
    length = max(lengths)
    state = init_state(params, 1, length + steps)
    tokens = torch.randint(0, params.config.vocab_size, (1, length))
    state = _fill(jit(prefill, donate=("state",)), params, state, tokens)
    token = device_put(tokens[:, 0].contiguous(), "xla")
    most = 0
    for _ in range(steps):
        logits, state = step(params, state, token)
        most = max(most, anonymous_memory())  # while the step runs
        logits.cpu()
        most = max(most, anonymous_memory())
    needed = sum(leaf.nbytes for tree in (params, state) for leaf in pytree.tree_leaves(tree))
    return DecodeMemory(start, most, needed)


@dataclass(frozen=True)
class NarrowModel:
    """Seconds that a model of many narrow layers takes to compile, and a decode step's call."""

    layers: int
    compile_prefill: float
    compile_decode: float
    host: float


@dataclass(frozen=True)
class NarrowModels:
    """Those that `measure_compilation` has measured."""

    models: tuple[NarrowModel, ...]


def measure_compilation(layers: Sequence[int], segments: int | str = 1) -> NarrowModels:
    """Compiles models of so many layers, narrow ones, which takes as long as for wide ones. Little
    but the host's work is left of their decode step. `segments` is that of `Runtime`."""
    return NarrowModels(tuple(_compile_narrow(count, segments) for count in layers))


def narrow_kinds(layers: int) -> tuple[str, ...]:
    """Returns the kinds of the layers of a model that `measure_compilation` compiles."""
    return tuple("full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers))


def _compile_narrow(layers: int, segments: int | str) -> NarrowModel:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024, "vision": None}
    config = dataclasses.replace(
        presets["0.8b"], num_hidden_layers=layers, layer_types=narrow_kinds(layers), **sizes
    )
    params = init_params(config, device="xla", runtime=Runtime(segments=segments))
    state = init_state(params, 1, 4 * PREFILL_CHUNK)
    tokens = device_put(torch.zeros(1, PREFILL_CHUNK, dtype=torch.int64), "xla")
    token = tokens[:, 0].contiguous()
    prefill_step, decode_step = (jit(step, donate=("state",)) for step in (prefill, decode))
    compile_prefill = timed(lambda: prefill_step.compile(params, state, tokens))
    compile_decode = timed(lambda: decode_step.compile(params, state, token))
    taken = []
    for _ in range(50):
        one, state = _decode(decode_step, params, state, token)
        taken.append(one)
    return NarrowModel(layers, compile_prefill, compile_decode, _middle(taken).call)


class _Step(NamedTuple):
    """Seconds of a decode step."""

    call: float  # until the step is on its way
    work: float  # processor time of the calling thread for that
    whole: float  # until the logits are on the host


def _decode(
    step: Callable[..., Any], params: Params, state: State, token: torch.Tensor
) -> tuple[_Step, State]:
    """Runs a decode step and returns what it took, and the state after it."""
    start, busy = time.perf_counter(), time.thread_time()
    logits, state = step(params, state, token)
    work, call = time.thread_time() - busy, time.perf_counter() - start
    logits.cpu()
    return _Step(call, work, time.perf_counter() - start), state


def _middle(steps: list[_Step]) -> _Step:
    """Returns each duration's median."""
    return _Step(*map(median, zip(*steps, strict=True)))


def _fill(step, params: Params, state: State, tokens: torch.Tensor) -> State:
    """Prefills in the steps that `generate` takes, and waits for the end."""
    for start in range(0, tokens.shape[1], PREFILL_CHUNK):
        chunk = tokens[:, start : start + PREFILL_CHUNK].contiguous()
        logits, state = step(params, state, device_put(chunk, params.device.type))
    logits.cpu()
    return state


def _state_after(params: Params, batch: int, context: int, capacity: int) -> State:
    """Makes a state after `context` tokens; random, since its values cost no time."""
    empty = fetch_state(params, init_state(params, batch, capacity))
    state = pytree.tree_map(lambda t: torch.rand(t.shape).to(t.dtype), empty)
    position = torch.full_like(empty.position, context)
    return place_state(params, state._replace(position=position, rope_offset=position * 0))


def _repeats(length: int) -> int:
    return max(2, 768 // length)
