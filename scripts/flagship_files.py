"""Checkpoints of the published sizes with random weights, written quantised, shard by shard.

The form is compressed-tensors' as published: "pack-quantized" INT4 in groups of 128 inputs, or
"int-quantized" INT8 with a scale per output. DeltaNet's projections to its gates, convolutions,
norms, the embedding and the vision tower are bfloat16. Codes are drawn, not rounded from dense
weights, so that a model that fits no memory in bfloat16 can be written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import qwen35
from qwen35.bench.checkpoints import write_tokenizer
from qwen35.files.checkpoint_files import INDEX, MULTIMODAL_PREFIX, TEXT_PREFIX
from qwen35.model.declarations import VISION_PREFIX, Source, declarations, declare

GROUP = 128  # inputs that share a scale in INT4
_DENSE = ("in_proj_a", "in_proj_b", "conv1d", "embed_tokens")  # of more than one dimension
_SHARD_BYTES = 4e9
_SPREAD = {"int4": 4.61, "int8": 73.9}  # the standard deviations of the codes that are drawn
# What a layer adds to hidden states of unit size, so that 64 layers do not drown the embedding nor
# vanish beside it; and logits that differ by far more than rounding.
_GAINS = {"out_proj": 0.5, "o_proj": 0.5, "down_proj": 0.5, "linear_fc2": 0.5, "lm_head": 3.0}
_STANDARD_DEVIATIONS = {"embed_tokens": 1.0, "pos_embed": 0.5}


def write(config: qwen35.Config, directory: Path, weights: str) -> None:
    """Writes a checkpoint with a tokenizer of bytes; memory is that of a shard.

    Args:
        config: with a vision tower and a head of its own.
        directory: is there, and has no checkpoint.
        weights: "int4" or "int8".
    """
    config = dataclasses.replace(config, **write_tokenizer(directory, vision=True))
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}

    def finish() -> None:
        save_file(shard, directory / f"{len(shards)}.tmp", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    for source in _sources(config):
        for name, tensor in _tensors(source, weights):
            if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > _SHARD_BYTES:
                finish()
            shard[name] = tensor
    finish()
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"{number}.tmp").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=1))
    content = config.to_dict() | {"dtype": "bfloat16", "quantization_config": _form(weights)}
    (directory / "config.json").write_text(json.dumps(content, indent=1))


def size_of(config: qwen35.Config, weights: str) -> int:
    """Returns how many bytes `write` writes, but for a few MB."""
    per_value = {"int4": 0.5 + 2 / GROUP, "int8": 1.0}[weights]
    return round(
        sum(
            math.prod(source.shape) * (per_value if _is_quantized(source) else 2)
            for source in _sources(config)
        )
    )


def _sources(config: qwen35.Config) -> Iterator[Source]:
    """The checkpoint's tensors, each once."""
    seen = set()
    for parameter in declarations(declare(config)):
        for piece in parameter.pieces:
            if piece.source.name not in seen:
                seen.add(piece.source.name)
                yield piece.source


def _is_quantized(source: Source) -> bool:
    of_tower = source.name.startswith(VISION_PREFIX)
    return not of_tower and len(source.shape) > 1 and _module(source) not in _DENSE


def _module(source: Source) -> str:
    """The module's own name: "q_proj" of "model.layers.3.self_attn.q_proj.weight"."""
    return source.name.split(".")[-2]


def _form(weights: str) -> dict[str, Any]:
    scheme = {"num_bits": 8, "strategy": "channel", "group_size": None}
    if weights == "int4":
        scheme = {"num_bits": 4, "strategy": "group", "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if weights == "int4" else "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["re:.*visual.*", "re:.*in_proj_a", "re:.*in_proj_b"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": scheme | {"type": "int", "symmetric": True},
                "input_activations": None,
            }
        },
    }


def _tensors(source: Source, weights: str) -> Iterator[tuple[str, Tensor]]:
    """What stands in the files for a tensor, by name."""
    digest = hashlib.sha256(source.name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    name = source.name
    if name.startswith(TEXT_PREFIX) and not name.startswith(VISION_PREFIX):
        name = MULTIMODAL_PREFIX + name.removeprefix(TEXT_PREFIX)
    if not _is_quantized(source):
        yield name, _dense(source, generator)
        return
    outputs, inputs = source.shape
    groups = math.ceil(inputs / GROUP) if weights == "int4" else 1
    usual = _GAINS.get(_module(source), 1.0) / math.sqrt(inputs) / _SPREAD[weights]
    scales = torch.empty(outputs, groups).uniform_(0.5, 1.5, generator=generator) * usual
    yield name + "_scale", scales.to(torch.bfloat16)
    if weights == "int8":
        codes = torch.empty(source.shape, dtype=torch.int8)
        yield name, codes.random_(-127, 128, generator=generator)
        return
    words = torch.empty(outputs, math.ceil(inputs / 8), dtype=torch.int32)
    yield name + "_packed", words.random_(-(2**31), 2**31, generator=generator)
    yield name + "_shape", torch.tensor(source.shape)


def _dense(source: Source, generator: torch.Generator) -> Tensor:
    values = torch.empty(source.shape, dtype=torch.bfloat16)
    if source.init == "log_uniform":
        return values.uniform_(0.01, 16, generator=generator).log_()
    if source.init != "normal":  # norms and biases, which an initialiser leaves alike
        center = 1.0 if source.init == "ones" else 0.0
        return values.normal_(center, 0.1, generator=generator)
    usual = _GAINS.get(_module(source), 1.0) / math.sqrt(math.prod(source.shape[1:]))
    spread = _STANDARD_DEVIATIONS.get(_module(source), usual)
    return values.normal_(0, spread, generator=generator)
