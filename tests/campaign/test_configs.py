"""Configurations: taken to the same values, or refused in a sentence that names the field."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import resource
from pathlib import Path

from mutations import EXTREMES, damaged, damaged_text, difference, smallest
from oracle import Fault, kind_of, outcome

import qwen35

ROOT = Path(__file__).resolve().parents[2]
DEMOS = {name: json.loads((ROOT / name / "config.json").read_bytes()) for name in
         ("demo", "demo_vision")}  # fmt: skip
PRESETS = {name: config.to_dict() for name, config in qwen35.presets.items()}
YARN = DEMOS["demo"] | {
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    | {name: DEMOS["demo"]["rope_parameters"][name] for name in ("rope_theta", "mrope_section")}
    | {"partial_rotary_factor": DEMOS["demo"]["rope_parameters"]["partial_rotary_factor"]}
    | {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "truncate": True}
}
SEEDS = [*DEMOS.values(), *PRESETS.values(), YARN]
COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")


def check_values(config: qwen35.Config) -> None:
    """Of a configuration that was taken, by the fields' own annotations."""
    for part in (config, config.vision, config.yarn):
        for field in dataclasses.fields(part) if part is not None else ():
            value = getattr(part, field.name)
            if field.name in ("extra", "vision", "yarn", "layer_types", "mrope_section"):
                continue
            kinds = str(field.type)
            values = value if isinstance(value, tuple) else (value,)
            for one in values:
                good = (
                    (one is None and "None" in kinds)
                    or (type(one) is bool and "bool" in kinds)
                    or (type(one) is int and "int" in kinds and 0 <= one < 2**31)
                    or (type(one) in (int, float) and "float" in kinds and math.isfinite(one))
                    or (isinstance(one, str) and "str" in kinds and len(one) < 100)
                )
                if not good:
                    raise Fault(f"{field.name} is {str(one)[:80]!r}, and was taken")
    if any(getattr(config, name) < 1 for name in COUNTS):
        raise Fault("a size of zero was taken")


@contextlib.contextmanager
def little_memory(more: int = 2**31):
    """Lets nobody take more than two gigabytes: a machine that runs out of memory kills others."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def read(content: object) -> qwen35.Config | None:
    """Reads a configuration, and writes and reads it again."""
    config = outcome(lambda: qwen35.Config.from_dict(content), ValueError)
    if isinstance(config, ValueError):
        return None
    check_values(config)
    text = json.dumps(config.to_dict())
    again = outcome(lambda: qwen35.Config.from_dict(json.loads(text)), ValueError)
    if again != config:
        raise Fault(f"written, it reads back as another: {str(again)[:200]}")
    if config.extra != again.extra or hash(config) != hash(again):
        raise Fault("unknown keys are others after writing")
    return config


def fault_of(content: object) -> str | None:
    """Names what is wrong with how a configuration is taken."""
    try:
        read(content)
    except Fault as fault:
        return kind_of(fault)
    return None


def show(made: tuple[object, object]) -> str:
    """The smallest part of the damage that does the same."""
    content, seed = made
    kind = fault_of(content)
    return difference(smallest(content, seed, lambda value: fault_of(value) == kind), seed)


def test_configurations(campaign):
    def make(draw):
        seed = draw.choice(SEEDS)
        return damaged(draw, seed), seed

    campaign.try_all("configurations", make, lambda made: read(made[0]), show)


def test_configuration_files(campaign, tmp_path):
    """As texts: other encodings, keys twice, numbers of thousands of digits."""

    def check(content):
        (tmp_path / "config.json").write_bytes(content)
        outcome(lambda: qwen35.Config.from_pretrained(tmp_path), qwen35.CheckpointError)

    def make(draw):
        return damaged_text(draw, json.dumps(draw.choice(SEEDS)))

    campaign.try_all("configuration files", make, check)


def test_unknown_keys_come_back_as_they_were(campaign):
    """Beside the model, in its text and its vision section, whatever their names and values."""

    def make(draw):
        seed = draw.choice([PRESETS["27b"], DEMOS["demo_vision"], DEMOS["demo"]])
        name = draw.choice(("x", "x y", "é", "_", "text_configs", "dtype2", "\ud800", "x" * 300))
        sections = [part for part in ("text_config", "vision_config") if part in seed]
        return seed, draw.choice([None, *sections]), name, damaged(draw, draw.choice(EXTREMES), 1)

    def check(made):
        seed, section, name, value = made
        added = {name: value} if section is None else {section: seed[section] | {name: value}}
        config = outcome(lambda: qwen35.Config.from_dict(seed | added), ValueError)
        if isinstance(config, ValueError):
            raise Fault(f"refused: {config}")
        written = config.to_dict() if section is None else config.to_dict()[section]
        if json.dumps(written.get(name), sort_keys=True) != json.dumps(value, sort_keys=True):
            raise Fault(f"comes back as {str(written.get(name))[:100]}")

    campaign.try_all("unknown keys", make, check, lambda made: str(made[1:])[:300])


def test_no_size_that_cannot_be_held_is_tried(campaign):
    """Parameters of damaged presets, of terabytes: refused by number."""

    def make(draw):
        while True:
            seed = draw.choice(list(PRESETS.values()))
            content = damaged(draw, seed, 1)
            config = read(content)
            if config is not None and config.parameter_count > 10**12:
                return config, content, seed

    def check(made):
        with little_memory():
            params = outcome(lambda: qwen35.init_params(made[0]), ValueError)
        if not isinstance(params, ValueError):
            raise Fault("parameters of terabytes")

    campaign.try_all("sizes that no memory holds", make, check, lambda made: difference(*made[1:]))
