"""What each rank of a mesh holds: shapes and bytes of every tensor, without making any."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..files.materialize import abstract_params
from ..model.config import FULL, Config
from ..model.declarations import Parameter, declare
from ..model.dtypes import as_dtype
from ..model.params import Runtime
from ..model.state import abstract_state, declare_state
from ..sharding.mesh import Mesh
from ..xla import trees
from .summary import short_bytes

# Documented: 96 GiB of HBM on a Trainium2 chip, 24 for each logical core (two physical ones).
TRN2_CORE_BYTES = 24 * 2**30

_KINDS = ("weights", "vision", "state", "kv cache")


@dataclass(frozen=True)
class Row:
    """One tensor, or `count` tensors that are alike; `bytes` is what one takes on one rank."""

    kind: str
    name: str
    count: int
    axis: str
    full: tuple[int, ...]
    local: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Placement:
    """What a rank holds; all ranks hold equal shapes.

    Attributes:
        mesh, dtype, batch, capacity: as given to `describe`.
        rows: every tensor; `kind` is "weights" (the text model's), "vision" (the tower's weights),
            "state" or "kv cache".
        weight_bytes, vision_bytes, state_bytes, kv_bytes: of one rank.
    """

    mesh: Mesh
    dtype: str
    batch: int
    capacity: int
    rows: tuple[Row, ...]

    def total(self, kind: str) -> int:
        """Sums the bytes of one kind on one rank."""
        return sum(row.count * row.bytes for row in self.rows if row.kind == kind)

    @property
    def weight_bytes(self) -> int:
        """The text model's weights on one rank."""
        return self.total("weights")

    @property
    def vision_bytes(self) -> int:
        """The vision tower's weights on one rank."""
        return self.total("vision")

    @property
    def state_bytes(self) -> int:
        """DeltaNet state on one rank, all of its rows."""
        return self.total("state")

    @property
    def kv_bytes(self) -> int:
        """KV cache on one rank, all of its rows, at full capacity."""
        return self.total("kv cache")

    @property
    def headroom(self) -> int:
        """What a Trainium2 logical core (24 GiB) has left for activations and the program."""
        return TRN2_CORE_BYTES - sum(self.total(kind) for kind in _KINDS)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "dp": self.mesh.dp,
            "tp": self.mesh.tp,
            "batch": self.batch,
            "capacity": self.capacity,
            "dtype": self.dtype,
            "weight_bytes_per_rank": self.weight_bytes,
            "vision_bytes_per_rank": self.vision_bytes,
            "state_bytes_per_rank": self.state_bytes,
            "kv_bytes_per_rank": self.kv_bytes,
            "headroom_bytes_trn2_core": self.headroom,
            "tensors": [vars(row) for row in self.rows],
        }

    def render(self) -> str:
        """Renders a table for a terminal."""
        mesh = self.mesh
        lines = [
            f"per rank at dp {mesh.dp} x tp {mesh.tp}: {self.dtype}, batch {self.batch}, "
            f"capacity {self.capacity:,}",
            f"  {'tensor':<30}{'axis':<26}{'full':<20}{'on a rank':<20}{'bytes':>10}",
        ]
        for row in self.rows:
            name = row.name + (f" x{row.count}" if row.count > 1 else "")
            full, local = (" x ".join(map(str, shape)) for shape in (row.full, row.local))
            size = short_bytes(row.count * row.bytes)
            lines.append(f"  {name:<30}{row.axis:<26}{full:<20}{local:<20}{size:>10}")
        for kind in _KINDS:
            if self.total(kind):
                lines.append(f"{kind:<12}{short_bytes(self.total(kind)):>10}")
        left = self.headroom
        verdict = f"{short_bytes(abs(left))} " + ("left" if left >= 0 else "too much: does not fit")
        lines.append(f"of the 24 GiB of a Trainium2 logical core (LNC=2): {verdict}")
        return "\n".join(lines)


def describe(
    config: Config,
    mesh: Mesh = Mesh(),
    *,
    dtype: torch.dtype | str = torch.bfloat16,
    batch: int = 1,
    capacity: int = 4096,
    weights: str | None = None,
    head: str | None = None,
) -> Placement:
    """Describes what each rank holds.

    Args:
        config: the model, with its vision tower if it has one.
        mesh: how it is split.
        dtype: of weights, convolution state and KV cache.
        batch: sequences of the whole mesh; each dp row takes its part.
        capacity: tokens that each sequence's KV cache holds.
        weights, head: how `load` is to quantise, as there.

    Raises:
        ValueError: the mesh can't split the model, or dp the batch.
    """
    if batch % mesh.dp:
        raise ValueError(f"a batch of {batch} rows can't be split evenly over dp = {mesh.dp}")
    rows: Counter[Row] = Counter()
    made = {"weights": weights, "head": head}
    whole = abstract_params(config, dtype=dtype, **made)
    local = abstract_params(config, dtype=dtype, runtime=Runtime(mesh=mesh), **made)
    axes = {path: _axis(parameter) for path, parameter in trees.named_leaves(declare(config), "")}
    tensors = dataclasses.replace(local, tp_index=None)
    for (path, full), (_, mine) in zip(
        trees.named_leaves(whole, ""), trees.named_leaves(tensors, ""), strict=True
    ):
        kind = "vision" if path.startswith(".vision") else "weights"
        axis = next(axes[start] for start in (path, *_above(path)) if start in axes)
        rows[_row(kind, _name(config, path), axis, full, mine)] += 1
    state = abstract_state(whole, batch, capacity).layers
    local_state = abstract_state(local, batch // mesh.dp, capacity).layers
    declared = declare_state(config).layers
    for (path, full), (_, mine), (_, tensor) in zip(
        *(trees.named_leaves(tree, ".layers") for tree in (state, local_state, declared)),
        strict=True,
    ):
        kind = "kv cache" if tensor.grows else "state"
        rows[_row(kind, _name(config, path), tensor.axis, full, mine)] += 1
    counted = tuple(Row(**(vars(row) | {"count": number})) for row, number in rows.items())
    name = str(as_dtype(dtype)).removeprefix("torch.")
    name += "".join(f", {what} {kind}" for what, kind in made.items() if kind)
    return Placement(mesh, name, batch, capacity, counted)


def _above(path: str) -> Iterator[str]:
    """The nodes above a tensor: ".head" of ".head.parts[0].values"."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def _row(kind: str, name: str, axis: str, full: torch.Tensor, local: torch.Tensor) -> Row:
    dtype = str(local.dtype).removeprefix("torch.")
    return Row(kind, name, 1, axis, tuple(full.shape), tuple(local.shape), dtype, local.nbytes)


def _axis(parameter: Parameter) -> str:
    """Names the logical axes that a tensor is split along, in the order of its pieces."""
    axes = [units.axis for piece in parameter.pieces for units in piece.dims if units.axis]
    return " + ".join(dict.fromkeys(axes)) or "replicated"


def _name(config: Config, path: str) -> str:
    """Names ".layers[3].in_proj" as "attention in_proj": layers of a kind are alike."""
    path = path.removeprefix(".")
    if path.startswith("vision.blocks["):
        return "vision block " + path.partition("].")[2]
    if path.startswith("vision."):
        return path.replace(".", " ")
    if not path.startswith("layers["):
        return path
    index, _, field = path.removeprefix("layers[").partition("].")
    kind = "attention" if config.layer_types[int(index)] == FULL else "deltanet"
    return f"{kind} {field}"
