"""What an engine takes on each rank, and what its prefix cache takes on the host: no weight is
made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..model.config import Config
from ..sharding.mesh import Mesh
from .placement import TRN2_CORE_BYTES, Placement, describe
from .summary import short_bytes

# For each slot and each token of the vocabulary that a rank has logits of: those, biases (float32)
# and counts (int32); for each token of all: whether it ends the slot.
_CHOICE_BYTES = 4 + 4 + 4
_END_BYTES = 1
_LOGIT_BYTES = 4


@dataclass(frozen=True)
class EngineMemory:
    """The bytes of an engine on one rank; all ranks take as much.

    Attributes:
        mesh: of one dp row; replicas are engines of their own.
        slots, context: requests at a time, and tokens of each.
        weights, vision: of the text model and of the tower.
        states, keys_and_values: of all slots.
        prompt: of the row into which a prompt is read before it gets a slot.
        choice: logits and sampling settings of all slots, for each token.
        limit: what a rank has.
        snapshot: on the host, of one snapshot of the prefix cache.
        token: on the host, of a token's keys and values there.
        snapshot_every: tokens of a prompt between two snapshots.
        cache: what the prefix cache may take on the host.
    """

    mesh: Mesh
    slots: int
    context: int
    weights: int
    vision: int
    states: int
    keys_and_values: int
    prompt: int
    choice: int
    limit: int
    snapshot: int
    token: int
    snapshot_every: int
    cache: int

    @property
    def needed(self) -> int:
        """All that stays on a rank, without the activations of a step and the program."""
        slots = self.states + self.keys_and_values + self.choice
        return self.weights + self.vision + slots + self.prompt

    @property
    def fits(self) -> bool:
        """Whether a rank has as much."""
        return self.needed <= self.limit

    @property
    def most_slots(self) -> int:
        """How many slots of this context fit; 0 if the weights leave no room for one."""
        each = (self.states + self.keys_and_values + self.choice) // self.slots
        return max(0, (self.limit - self.weights - self.vision - self.prompt) // each)

    @property
    def prompt_on_host(self) -> int:
        """Bytes that a prompt of the whole context leaves in the prefix cache."""
        snapshots = -(-self.context // self.snapshot_every)
        return self.context * self.token + snapshots * self.snapshot

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        names = ("weights", "vision", "states", "keys_and_values", "prompt", "choice", "needed")
        host = ("snapshot", "token", "prompt_on_host", "cache")
        return {
            "tp": self.mesh.tp,
            "slots": self.slots,
            "context": self.context,
            "rank_bytes": {name: getattr(self, name) for name in names},
            "limit_bytes": self.limit,
            "fits": self.fits,
            "most_slots": self.most_slots,
            "host_bytes": {name: getattr(self, name) for name in host},
        }

    def render(self) -> str:
        """Renders the figures for a terminal."""
        rows = [("weights", self.weights)]
        if self.vision:
            rows.append(("vision tower", self.vision))
        rows += [
            (f"DeltaNet states of {self.slots} slots", self.states),
            (f"keys and values, {self.context:,} tokens each", self.keys_and_values),
            ("a prompt being read", self.prompt),
            ("logits and sampling settings", self.choice),
            ("in all", self.needed),
        ]
        lines = [f"an engine at tp {self.mesh.tp}, on each rank:"]
        lines += [f"  {name:<42}{short_bytes(size):>10}" for name, size in rows]
        lines += [
            f"of {short_bytes(self.limit)}: {short_bytes(self.limit - self.needed)} left for the "
            f"activations of a step and the program; at most {self.most_slots} such slots fit",
            f"on the host of each rank, prefix cache: {short_bytes(self.snapshot)} a snapshot (one "
            f"every {self.snapshot_every} tokens), {short_bytes(self.token)} a token; a prompt of "
            f"{self.context:,} tokens {short_bytes(self.prompt_on_host)}, of at most "
            f"{short_bytes(self.cache)}",
        ]
        return "\n".join(lines)


def engine_memory(
    config: Config,
    mesh: Mesh = Mesh(),
    *,
    slots: int,
    context: int,
    snapshot_every: int,
    cache_bytes: int,
    dtype: torch.dtype | str = torch.bfloat16,
    weights: str | None = None,
    head: str | None = None,
) -> EngineMemory:
    """Counts what an engine takes on each rank.

    Args:
        config: the model, with its vision tower if it has one.
        mesh: of one dp row.
        slots: requests at a time.
        context: tokens that each can have.
        snapshot_every, cache_bytes: of `EngineSettings`.
        dtype: of weights, convolution state and KV cache.
        weights, head: how `load` is to quantise, as there.

    Raises:
        ValueError: the mesh can't split the model, or has more than one dp row.
    """
    if mesh.dp > 1:
        raise ValueError(f"an engine has one dp row, not dp = {mesh.dp}: replicas are alike")
    held: Placement = describe(
        config, mesh, dtype=dtype, batch=slots, capacity=context, weights=weights, head=head
    )
    row = (held.state_bytes + held.kv_bytes) // slots
    here = config.vocab_size // mesh.tp
    logits = here * _LOGIT_BYTES
    return EngineMemory(
        mesh,
        slots,
        context,
        weights=held.weight_bytes,
        vision=held.vision_bytes,
        states=held.state_bytes,
        keys_and_values=held.kv_bytes,
        prompt=row + logits,
        choice=slots * (here * _CHOICE_BYTES + config.vocab_size * _END_BYTES),
        limit=TRN2_CORE_BYTES,
        snapshot=held.state_bytes // slots + logits,
        token=held.kv_bytes // (slots * context),
        snapshot_every=snapshot_every,
        cache=cache_bytes,
    )


def check_fit(name: str, memory: EngineMemory) -> None:
    """Raises a ValueError with the numbers if an engine does not fit its ranks."""
    if memory.fits:
        return
    parts = ("weights", "vision", "states", "keys_and_values", "prompt", "choice")
    sizes = ", ".join(
        f"{part.replace('_', ' ')} {short_bytes(getattr(memory, part))}" for part in parts
    )
    most = memory.most_slots
    instead = f"at most {most} slots fit" if most else "not one slot fits: split it over more ranks"
    raise ValueError(
        f"{name} with {memory.slots} slots of {memory.context:,} tokens does not fit tp = "
        f"{memory.mesh.tp}: a rank needs {short_bytes(memory.needed)} ({sizes}) and has "
        f"{short_bytes(memory.limit)}; {instead}"
    )
