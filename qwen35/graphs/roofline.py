"""Floors of TTFT and TPOT: a graph's bytes and FLOPs over the hardware's documented figures.

A floor is what no implementation can beat on those figures, not a prediction. Nothing here has
been measured on the hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..model.config import Config
from ..model.presets import presets
from ..sharding.mesh import Mesh
from .costs import count_costs
from .export import trace
from .placement import describe
from .summary import short_bytes


@dataclass(frozen=True)
class Hardware:
    """What one rank runs on. Rates per second.

    Attributes:
        name: what it is.
        flops: of dense matrix products, by dtype.
        memory: bytes from and to its memory.
        link: bytes that it can send to the other ranks.
    """

    name: str
    flops: dict[str, float]
    memory: float
    link: float


# Neuron documentation (2.32): two physical cores of 128 x 128 x 2 x 2.4 GHz in bfloat16 and 20
# TFLOPS in float32; a quarter of the chip's 2.9 TB/s of HBM and of its 1024 GB/s of NeuronLink.
HARDWARE = {
    "trn2": Hardware(
        "Trainium2 logical core (LNC=2)",
        {"bfloat16": 157.3e12, "float32": 40e12},
        2.9e12 / 4,
        1.024e12 / 4,
    ),
}


@dataclass(frozen=True)
class Published:
    """Someone else's measurement, not reproduced here; milliseconds."""

    preset: str
    tp: int
    ttft: float | None
    tpot: float
    source: str


_CONTRIB = "AWS NxDI contrib port, trn2.48xlarge, bf16, 16-token prompt"
PUBLISHED = (
    Published("27b", 8, 118.6, 21.58, _CONTRIB),
    Published("9b", 8, 42.9, 6.89, _CONTRIB),
    Published("4b", 8, 34.6, 5.68, _CONTRIB),
    Published("2b", 8, 17.6, 4.00, _CONTRIB),
    Published("2b", 4, 42.0, 4.75, _CONTRIB),
    Published("27b", 4, 83.7, 35.9, "dstair/neuron-pytorch-native, TorchNeuron, one chip, bf16"),
    Published("27b", 4, 284.0, 48.5, "whn09/vllm-neuron, one chip, 1,024-token prompt"),
    Published(
        "27b", 4, 576.0, 1e3 / 18.9, "neuronx-distributed-inference #128, trn2.3xlarge, <= 512"
    ),
    Published("2b", 4, None, 3.72, "qingzwang/vllm-neuron"),
)


def floor(costs: dict[str, Any], hardware: Hardware) -> dict[str, float]:
    """Computes the least time of a run of a graph, from its `count_costs`, in milliseconds.

    Returns:
        `memory` (arguments read and results written once), `compute` (matrix products at the
        peak rate), `links` (a ring's share of every collective, without latency) and `floor`,
        the largest of the three: perfect overlap.
    """
    memory = (costs["bytes_read"] + costs["bytes_written"]) / hardware.memory
    compute = costs["flops"] / hardware.flops[costs["dtype"]]
    links = collective_bytes(costs) / hardware.link
    times = {"memory": memory, "compute": compute, "links": links}
    times["floor"] = max(times.values())
    return {name: 1e3 * value for name, value in times.items()}


def collective_bytes(costs: dict[str, Any]) -> float:
    """Counts bytes that a rank sends: 2 (n-1)/n of an all-reduce, n-1 times a gathered share."""
    ranks = costs["mesh"]["tp"]
    share = {"all-reduce": 2 * (ranks - 1) / ranks, "all-gather": ranks - 1}
    return sum(share[entry["op"]] * entry["bytes"] for entry in costs["collectives"])


def roofline(
    config: Config,
    mesh: Mesh = Mesh(),
    *,
    hardware: str = "trn2",
    context: int = 4096,
    prompt: int = 128,
    batch: int = 1,
    dtype: str = "bfloat16",
    weights: str | None = None,
    head: str | None = None,
) -> dict[str, Any]:
    """Floors of prefill and decode, from the graphs that a rank runs.

    Args:
        config, mesh: the model and how it is split.
        hardware: a key of `HARDWARE`; every rank runs on one.
        context: capacity of the KV cache; attention reads all of it.
        prompt: tokens of each row that the prefill takes in one step.
        batch: sequences of the whole mesh.
        dtype: float32 or bfloat16.
        weights, head: those of `export.trace`.

    Raises:
        ValueError: unknown hardware, or what `export.trace` refuses.
    """
    if hardware not in HARDWARE:
        raise ValueError(f"hardware must be one of {', '.join(HARDWARE)}, not {hardware!r}")
    if batch % mesh.dp:
        raise ValueError(f"a batch of {batch} rows can't be split evenly over dp = {mesh.dp}")
    shape = {"mesh": mesh, "capacity": context, "batch": batch // mesh.dp, "dtype": dtype}
    made = {"weights": weights, "head": head}
    machine = HARDWARE[hardware]
    result: dict[str, Any] = {
        "hardware": machine.name,
        "dp": mesh.dp,
        "tp": mesh.tp,
        "context": context,
        "prompt": prompt,
        "batch": batch,
        "dtype": dtype,
        **made,
    }
    for name, phase in (("ttft", "prefill"), ("tpot", "decode")):
        costs = count_costs(trace(config, phase, tokens=min(prompt, context), **shape, **made))
        result[name] = floor(costs, machine) | {
            key: costs[key]
            for key in ("flops", "bytes_read", "bytes_read_per_token", "bytes_written")
        }
    held = describe(config, mesh, dtype=dtype, batch=batch, capacity=context, **made)
    result["headroom_bytes"] = held.headroom
    names = [name for name, preset in presets.items() if preset == config]
    result["published"] = [
        vars(entry) for entry in PUBLISHED if [entry.preset] == names and entry.tp == mesh.tp
    ]
    return result


def render(result: dict[str, Any]) -> str:
    """Renders the floors as lines for a terminal."""
    made = "".join(f"{name} {result[name]}, " for name in ("weights", "head") if result[name])
    lines = [
        f"floors on {result['hardware']} x {result['dp'] * result['tp']}, {result['dtype']}, {made}"
        f"batch {result['batch']}, context {result['context']:,}: documented figures, not measured",
        f"  {'':<22}{'floor':>10}{'memory':>10}{'compute':>10}{'links':>10}",
    ]
    for name, label in (("ttft", f"TTFT, {result['prompt']}-token prompt"), ("tpot", "TPOT")):
        times = result[name]
        cells = "".join(f"{times[key]:>7.2f} ms" for key in ("floor", "memory", "compute", "links"))
        lines.append(f"  {label:<22}{cells}")
    over = -result["headroom_bytes"]
    if over > 0:
        lines.append(
            f"  of a split that does not fit: a rank holds {short_bytes(over)} more than a core "
            "has; a larger --tp may"
        )
    for entry in result["published"]:
        first = "" if entry["ttft"] is None else f"TTFT {entry['ttft']:.1f} ms, "
        share = result["tpot"]["floor"] / entry["tpot"]
        lines.append(
            f"  published by others: {first}TPOT {entry['tpot']:.2f} ms "
            f"(the floor is {share:.0%} of it): {entry['source']}"
        )
    return "\n".join(lines)
