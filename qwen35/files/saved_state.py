"""A state in a safetensors file, so that a sequence goes on in another process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checks.errors import CheckpointError
from ..checks.json_file import parse_object
from ..forms import columns, dense
from ..model.config_fields import FULL
from ..model.params import Params
from ..model.rows import grow
from ..model.state import AttentionState, DeltaNetState, State
from ..model.state_shares import gather_state, scatter_state
from ..sharding import process
from ..xla.devices import at_once, device_put, indices
from . import aside

_FORMAT = "qwen35 state 2"


def fingerprint(params: Params) -> str:
    """A name of the model that a state belongs to: its geometry, dtype, and some of its weights.

    It is the same however the model is split, but needs the share of a tp group's first rank.
    """
    config, size = params.config, params.config.hidden_size
    content = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())

    def sample() -> tuple[Tensor, ...]:
        first = indices(min(8, config.vocab_size), params.device)
        # Of all ranks' tensors, one after the other, the first rank's.
        head = dense(params.head)[:size] if params.runtime.rank is None else params.head
        norms = (params.norm[:size], params.layers[0].input_norm[:size])
        return tuple(tensor.detach().float() for tensor in (*norms, columns(head, first)))

    for tensor in device_put(at_once(params.device, sample), "cpu"):
        content.update(tensor.contiguous().numpy().tobytes())
    dtype = str(params.dtype).removeprefix("torch.")
    return (
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, {dtype}, "
        f"{content.hexdigest()[:16]}"
    )


class SavedState(NamedTuple):
    """What `load_state` reads: the state; logits [B, V] or None; metadata by name."""

    state: State
    logits: Tensor | None
    metadata: dict[str, str]


def save_state(
    path: str | Path,
    params: Params,
    state: State,
    *,
    logits: Tensor | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a state, keys and values up to its longest row's position, whole or not at all.

    The file holds the state as one device has it: it loads on any mesh that the model splits over.
    With one process per rank, all of a tp group must call it, and the first writes.

    Args:
        path: the file.
        params: whose state it is: `load_state` refuses it for another model.
        state: on any device or mesh of one dp row.
        logits: [B, V] after the last tokens, to go on without reading one more.
        metadata: what to keep with it, as text by name.
    """
    whole = gather_state(params, state)
    if _first_of_its_ranks(params):
        write_state(path, params, whole, logits=logits, metadata=metadata)


def write_state(
    path: str | Path,
    params: Params,
    state: State,
    *,
    logits: Tensor | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a whole state on the CPU as `save_state` does, in one process: that of the first rank,
    if there are several."""
    used = max(1, int(state.position.max()))
    tensors = {"position": state.position, "rope_offset": state.rope_offset}
    for index, layer in enumerate(state.layers):
        if isinstance(layer, AttentionState):
            layer = AttentionState(layer.key[..., :used], layer.value[:, :, :used])
        for name, tensor in zip(layer._fields, layer, strict=True):
            if tensor.dtype == torch.int16:  # bits: in the file they are what they stand for
                tensor = tensor.contiguous().view(torch.bfloat16)
            tensors[f"layers.{index}.{name}"] = tensor.contiguous()
    if logits is not None:
        tensors["logits"] = device_put(logits, "cpu")
    header = {"format": _FORMAT, "model": fingerprint(params), "sha256": _checksum(tensors)}
    header["metadata"] = json.dumps(dict(metadata or {}))
    with aside.replaced(Path(path)) as file:
        try:
            save_file(tensors, file, metadata=header)
        except SafetensorError as error:  # a full disk, say
            raise OSError(f"{path}: it can't be written ({error})") from None


def load_state(path: str | Path, params: Params, capacity: int | None = None) -> SavedState:
    """Reads a state that `save_state` wrote, on params' device, and what was kept with it.

    With one process per rank, all of a tp group must call it.

    Args:
        path: the file.
        params: the model that goes on, split like the one that wrote it or otherwise.
        capacity: tokens per row; None is what the state uses.

    Raises:
        CheckpointError: the file is damaged, no state, or another model's.
        ValueError: the capacity is below what the state uses.
    """
    mesh, rank = params.runtime.mesh, params.runtime.rank
    if mesh is not None and mesh.tp > 1 and rank is not None:
        ours = process.from_first(fingerprint(params) if _first_of_its_ranks(params) else "", mesh)
    else:
        ours = fingerprint(params)
    saved = _read(path, params, ours)
    state = saved.state if capacity is None else grow(saved.state, capacity)
    logits = device_put(saved.logits, params.device.type)
    return SavedState(scatter_state(params, state), logits, saved.metadata)


def read_state(path: str | Path, params: Params) -> SavedState:
    """Reads a whole state, as `write_state` took it, onto the CPU; in one process, as that does.

    Raises:
        CheckpointError: as `load_state`.
    """
    return _read(path, params, fingerprint(params))


def _read(path: str | Path, params: Params, ours: str) -> SavedState:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error})") from None
    if header.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a saved state ({_FORMAT!r} is missing)")
    if header["model"] != ours:
        raise CheckpointError(
            f"{path}: the state of another model ({header['model']}), not of this one ({ours})"
        )
    if params.forms.state_dtype(torch.bfloat16) == torch.int16:
        low = {name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16}
        tensors |= {name: tensors[name].view(torch.int16) for name in low}
    try:
        layers: list[AttentionState | DeltaNetState] = []
        for index, kind in enumerate(params.config.layer_types):
            form = AttentionState if kind == FULL else DeltaNetState
            layers.append(form(*(tensors[f"layers.{index}.{name}"] for name in form._fields)))
        state = State(tensors["position"], tensors["rope_offset"], tuple(layers))
    except KeyError as error:
        raise CheckpointError(f"{path}: {error} is missing") from None
    if header.get("sha256") != _checksum(tensors):
        raise CheckpointError(f"{path}: damaged: its tensors are not those that were written")
    metadata = parse_object(header.get("metadata", ""), str(path), "a state's metadata")
    return SavedState(state, tensors.get("logits"), metadata)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all names and bytes."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(f"{name} {list(tensors[name].shape)} ".encode())
        content.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def _first_of_its_ranks(params: Params) -> bool:
    mesh, rank = params.runtime.mesh, params.runtime.rank
    return mesh is None or rank is None or mesh.coordinates(rank)[1] == 0
