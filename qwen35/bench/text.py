"""Text: seconds to the first token over prompt lengths, and per token over contexts and batches.

`ours` and `reference` do the same work and name their figures alike: `prefill_L` is a prompt of L
tokens up to its logits, `decode_C` one token of one row after C others, `decode_C_xB` of B rows.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ..files.checkpoint import load
from ..files.materialize import init_params
from ..generation.generate import PREFILL_CHUNK, round_capacity
from ..graphs.summary import summarize
from ..model.config import Config
from ..model.decoder import decode, prefill
from ..model.params import Params
from ..model.presets import presets
from ..model.state import State, init_state
from ..xla.devices import device_put
from ..xla.jit import jit
from ..xla.trees import map_tensors
from .machine import anonymous_memory, read_buffer, read_gbps, timed
from .statistics import median


def ours(settings: Mapping[str, Any]) -> dict[str, Any]:
    """This project, compiled.

    Args:
        settings: `model`, a directory; `lengths` of prompts; `contexts`, pairs of tokens and rows;
            `steps` of decode that are timed.

    Returns:
        Beside the figures of both: `load`; `compile_…`, what the first call took longer; `host_…`,
        seconds until a decode step is on its way, and `host_work_…`, the processor time that the
        calling thread took for it (on the CPU the step competes with the host for the cores);
        `read_gbps_…`, the rate at which the machine read memory between the steps, and
        `read_share_…`, the rate of a step as a share of that of the read before it;
        `recompilations` after the first calls.
    """
    result: dict[str, Any] = {}
    device_put(torch.zeros(1), "xla").cpu()  # starts the device
    start = time.perf_counter()
    params = load(settings["model"], device="xla", check_finite=False, vision=False)
    result["load"] = time.perf_counter() - start
    # In what is timed from here on torch only copies results. Its threads for that would wait for
    # more of it in a loop, on the cores that XLA computes on.
    torch.set_num_threads(1)
    steps = {step: jit(step, donate=("state",)) for step in (prefill, decode)}
    again = 0
    for length in settings["lengths"]:
        tokens = torch.randint(0, params.config.vocab_size, (1, length))

        def fill(tokens=tokens) -> float:
            state = init_state(params, 1, tokens.shape[1])
            map_tensors(lambda t: t.cpu(), state)
            return timed(lambda: _fill(steps[prefill], params, state, tokens))

        first, known = fill(), steps[prefill].compile_count
        result[f"prefill_{length}"] = median(fill() for _ in range(_repeats(length)))
        result[f"compile_prefill_{length}"] = first - result[f"prefill_{length}"]
        again += steps[prefill].compile_count - known
    buffer = read_buffer()
    for context, batch in settings["contexts"]:
        capacity = round_capacity(context + settings["steps"] + 1)
        state = _state_after(params, batch, context, capacity)
        token = device_put(torch.zeros(batch, dtype=torch.int64), "xla")
        first, state = _decode(steps[decode], params, state, token)
        known, taken, rates = steps[decode].compile_count, [], []
        for _ in range(settings["steps"]):
            # In turn, since the speed of a machine that others share wanders.
            rates.append(read_gbps(buffer))
            one, state = _decode(steps[decode], params, state, token)
            taken.append(one)
        again += steps[decode].compile_count - known
        name, later = decode_name(context, batch), _middle(taken)
        read = step_bytes(params.config, context, batch) / 1e9
        shares = [read / one.whole / rate for one, rate in zip(taken, rates, strict=True)]
        result[f"read_gbps_{name}"] = median(rates)
        result[f"read_share_{name}"] = median(shares)
        result[f"decode_{name}"] = later.whole
        result[f"host_{name}"] = later.call
        result[f"host_work_{name}"] = later.work
        result[f"compile_decode_{name}"] = first.whole - later.whole
        del state
    return result | {"recompilations": again}


@torch.no_grad()
def reference(settings: Mapping[str, Any]) -> dict[str, Any]:
    """transformers, eager; the settings are those of `ours`."""
    from transformers import AutoModelForCausalLM

    result: dict[str, Any] = {}
    start = time.perf_counter()
    directory = settings["model"]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    result["load"] = time.perf_counter() - start
    vocabulary = model.config.get_text_config().vocab_size
    model(torch.zeros(1, 16, dtype=torch.int64), use_cache=True, logits_to_keep=1)
    for length in settings["lengths"]:
        tokens = torch.randint(0, vocabulary, (1, length))
        times = []
        for _ in range(_repeats(length)):
            start = time.perf_counter()
            model(tokens, use_cache=True, logits_to_keep=1)
            times.append(time.perf_counter() - start)
        result[f"prefill_{length}"] = median(times)
    for context, batch in settings["contexts"]:
        token = torch.zeros(batch, 1, dtype=torch.int64)
        cache = model(token, use_cache=True).past_key_values
        for layer in cache.layers:
            if getattr(layer, "keys", None) is not None:
                shape = (batch, layer.keys.shape[1], context, layer.keys.shape[3])
                layer.keys, layer.values = torch.rand(shape), torch.rand(shape)
        if cache.get_seq_length() != context:
            raise RuntimeError(f"transformers' cache holds {cache.get_seq_length()} tokens")
        times = []
        for _ in range(1 + settings["steps"]):
            start = time.perf_counter()
            model(token, past_key_values=cache, use_cache=True)
            times.append(time.perf_counter() - start)
        result[f"decode_{decode_name(context, batch)}"] = median(times[1:])
        result["memory_decode"] = anonymous_memory()
        del cache
    return result


def step_bytes(config: Config, context: int, batch: int) -> int:
    """Bytes that a decode step has to read: every weight of the text model once, less an embedding
    apart from the head, of which it takes a row for each token; and each row's keys and values."""
    sizes = summarize(config.text_only(), torch.float32)
    weights = sizes["weight_bytes"]
    if not sizes["tied_embeddings"]:
        weights -= 4 * sizes["parameters"]["embedding"]
    return weights + batch * context * sizes["kv_bytes_per_token"]


def decode_name(context: int, batch: int) -> str:
    """What a decode step's figures are called by."""
    return f"{context}" if batch == 1 else f"{context}_x{batch}"


def memory(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Anonymous memory of a process that loads, prefills the longest prompt and decodes.

    Returns:
        Bytes: `memory_start`, before it loads; `memory_decode`, the most while it decodes;
        `weights_and_state`.
    """
    device_put(torch.zeros(1), "xla").cpu()
    start = anonymous_memory()
    params = load(settings["model"], device="xla", check_finite=False, vision=False)
    step = jit(decode, donate=("state",))
    length = max(settings["lengths"])
    state = init_state(params, 1, length + settings["steps"])
    tokens = torch.randint(0, params.config.vocab_size, (1, length))
    state = _fill(jit(prefill, donate=("state",)), params, state, tokens)
    token = device_put(tokens[:, 0].contiguous(), "xla")
    most = 0
    for _ in range(settings["steps"]):
        logits, state = step(params, state, token)
        most = max(most, anonymous_memory())  # while the step runs
        logits.cpu()
        most = max(most, anonymous_memory())
    needed = sum(leaf.nbytes for tree in (params, state) for leaf in pytree.tree_leaves(tree))
    return {"memory_start": start, "memory_decode": most, "weights_and_state": needed}


def compilation(_: Mapping[str, Any]) -> dict[str, Any]:
    """Of many layers, but narrow ones: seconds to compile prefill and decode, which takes as long
    as for wide ones, and seconds that the call of a decode step takes, where little but the host's
    work is left of a step."""
    result = {}
    for count in (24, 64):
        kinds = tuple("full_attention" if i % 4 == 3 else "linear_attention" for i in range(count))
        sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024, "vision": None}
        config = dataclasses.replace(
            presets["0.8b"], num_hidden_layers=count, layer_types=kinds, **sizes
        )
        params = init_params(config, device="xla")
        state = init_state(params, 1, 4 * PREFILL_CHUNK)
        tokens = device_put(torch.zeros(1, PREFILL_CHUNK, dtype=torch.int64), "xla")
        token = tokens[:, 0].contiguous()
        steps = {step: jit(step, donate=("state",)) for step in (prefill, decode)}
        for step, given in ((prefill, tokens), (decode, token)):
            start = time.perf_counter()
            steps[step].compile(params, state, given)
            result[f"compile_{step.__name__}_{count}_layers"] = time.perf_counter() - start
        taken = []
        for _ in range(50):
            one, state = _decode(steps[decode], params, state, token)
            taken.append(one)
        result[f"host_{count}_layers"] = _middle(taken).call
    return result


class _Step(NamedTuple):
    """Seconds of a decode step."""

    call: float  # until the step is on its way
    work: float  # processor time of the calling thread for that
    whole: float  # until the logits are on the host


def _decode(
    step: Callable[..., Any], params: Params, state: State, token: torch.Tensor
) -> tuple[_Step, State]:
    """What a decode step takes, and the state after it."""
    start, busy = time.perf_counter(), time.thread_time()
    logits, state = step(params, state, token)
    work, call = time.thread_time() - busy, time.perf_counter() - start
    logits.cpu()
    return _Step(call, work, time.perf_counter() - start), state


def _middle(steps: list[_Step]) -> _Step:
    """Each duration's median."""
    return _Step(*map(median, zip(*steps, strict=True)))


def _fill(step, params: Params, state: State, tokens: torch.Tensor) -> State:
    """Prefills in the steps that `generate` takes, and waits for the end."""
    for start in range(0, tokens.shape[1], PREFILL_CHUNK):
        chunk = tokens[:, start : start + PREFILL_CHUNK].contiguous()
        logits, state = step(params, state, device_put(chunk, "xla"))
    logits.cpu()
    return state


def _state_after(params: Params, batch: int, context: int, capacity: int) -> State:
    """A state after `context` tokens; random, since its values cost no time."""
    empty = device_put(init_state(params, batch, capacity), "cpu")
    state = map_tensors(lambda t: torch.rand(t.shape).to(t.dtype), empty)
    position = torch.full((batch,), context, dtype=torch.int32)
    return device_put(state._replace(position=position, rope_offset=position * 0), "xla")


def _repeats(length: int) -> int:
    return max(2, 768 // length)
