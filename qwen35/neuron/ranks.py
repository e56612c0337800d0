"""Step: a model split over ranks writes what it writes whole."""

from __future__ import annotations

import dataclasses

import torch

from ..files.checkpoint import load
from ..files.materialize import init_params
from ..model.config import Config
from ..model.decoder import decode, prefill
from ..model.params import Params, Runtime
from ..model.presets import find_preset, presets
from ..model.state import init_state
from ..sharding.launch import Ranks, start_ranks
from ..xla.devices import device_put
from ..xla.jit import jit
from .outcomes import Tests
from .steps import AbsentError, Settings

LAYERS = 4  # of the geometry that is asked for: three of DeltaNet, one of attention
TOKENS, DECODES = 24, 16
LOGITS = 1e-3  # of the largest, in float32


def measure(settings: Settings) -> dict:
    """Runs the step, in every process of the model."""
    if settings.tp == 1:
        raise AbsentError("--tp 1 splits nothing")
    config = _cut(config_of(settings))
    truth, expected = _run(init_params(config), lambda tree: tree, lambda function: function)
    with start_ranks(settings.tp, "xla") as ranks:
        params = init_params(config, device="xla", runtime=runtime_of(ranks))
        found, tokens = _run(params, lambda tree: device_put(tree, "xla"), jit)
    tests = Tests()
    error = max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, truth, strict=True)
    )
    tests.within(f"logits of {1 + DECODES} steps at tp {settings.tp}", LOGITS, lambda: error)
    tests.equal("greedy tokens", lambda: "" if tokens == expected else f"{tokens}, not {expected}")
    return tests.outcome(layers=config.num_hidden_layers)


def config_of(settings: Settings) -> Config:
    """Returns the text configuration of the model that is asked for."""
    if settings.model is not None:
        return Config.from_pretrained(settings.model).text_only()
    name = find_preset(settings.preset)
    if name is None:
        raise ValueError(f"no preset {settings.preset!r}; presets: {', '.join(presets)}")
    return presets[name].text_only()


def runtime_of(ranks: Ranks) -> Runtime:
    """Returns the static choices of this process's rank."""
    return Runtime(mesh=ranks.mesh, rank=ranks.rank)


def params_of(settings: Settings, ranks: Ranks) -> Params:
    """Returns this rank's parameters of the text model that is asked for, in bfloat16 on the
    device."""
    how = {"dtype": "bfloat16", "device": "xla", "runtime": runtime_of(ranks)}
    if settings.model is None:
        return init_params(config_of(settings), **how)
    return load(settings.model, vision=False, check_finite=False, **how)


def _cut(config: Config) -> Config:
    layers = min(LAYERS, config.num_hidden_layers)
    return dataclasses.replace(
        config, num_hidden_layers=layers, layer_types=config.layer_types[:layers]
    )


def _run(params: Params, put, compiled) -> tuple[list[torch.Tensor], list[int]]:
    """Reads a prompt and decodes greedily: the logits of each step, and the tokens."""
    prompt = torch.arange(7, 7 + TOKENS)[None]
    read, step = compiled(prefill), compiled(decode)
    logits, state = read(params, init_state(params, 1, TOKENS + DECODES), put(prompt))
    seen, tokens = [logits.cpu()], []
    for _ in range(DECODES):
        tokens.append(int(seen[-1].argmax()))
        logits, state = step(params, state, put(torch.tensor(tokens[-1:])))
        seen.append(logits.cpu())
    return seen, tokens
