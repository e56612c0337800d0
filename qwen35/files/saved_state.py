"""A state in a safetensors file, so that a sequence goes on in another process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks.errors import CheckpointError
from ..checks.json_file import parse_object
from ..checks.values import all_finite, shown
from ..forms import columns, dense
from ..model.config_fields import FULL
from ..model.params import Params
from ..model.rows import grow
from ..model.state import AttentionState, DeltaNetState, State
from ..model.state_shares import abstract_whole, gather_state, scatter_state
from ..sharding import process
from ..xla.devices import at_once, device_put, indices
from . import aside
from .tensor_file import TensorFile, write_tensors

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
        state: on any device or mesh; with processes, of one dp row.
        logits: [B, V] after the last tokens, to go on without reading one more.
        metadata: what to keep with it, as text by name.

    Raises:
        ValueError: what `load_state` would refuse: a position past the capacity, NaN, a shape or
            dtype of another model's; or metadata that is no text.
        OSError: it can't be written.
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
    texts = dict(metadata or {})
    if not all(isinstance(text, str) for text in (*texts, *texts.values())):
        raise ValueError(f"metadata must be texts by name, not {shown(texts)}")
    used = int(max([1, *state.position.tolist()]))
    layers = (
        AttentionState(layer.key[..., :used], layer.value[:, :, :used])
        if isinstance(layer, AttentionState)
        else layer
        for layer in state.layers
    )
    tensors = {
        # bits: in the file they are what they stand for
        name: tensor.contiguous().view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor
        for name, tensor in _named(state._replace(layers=tuple(layers)))
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if logits is not None:
        tensors["logits"] = device_put(logits, "cpu")
    fault = _fault(tensors, params)
    if fault is not None:
        raise ValueError(f"not a state of this model that can be gone on with: {fault}")
    header = {"format": _FORMAT, "model": fingerprint(params), "sha256": _checksum(tensors)}
    header["metadata"] = json.dumps(texts)
    with aside.replaced(Path(path)) as file:
        write_tensors(file, tensors, header)


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
    file = TensorFile(Path(path))
    header = file.metadata
    if header.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: not a saved state ({_FORMAT!r} is missing)")
    if header.get("model") != ours:
        raise CheckpointError(
            f"{path}: the state of another model ({shown(header.get('model'))}), not of this one "
            f"({ours})"
        )
    tensors = {name: file.get_slice(name).read() for name in file.keys()}
    if header.get("sha256") != _checksum(tensors):
        raise CheckpointError(f"{path}: damaged: its tensors are not those that were written")
    fault = _fault(tensors, params)
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}")
    metadata = parse_object(header.get("metadata", ""), str(path), "a state's metadata")
    if not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(f"{path}: a state's metadata is texts by name")
    if params.forms.state_dtype(torch.bfloat16) == torch.int16:
        low = {name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16}
        tensors |= {name: tensors[name].view(torch.int16) for name in low}
    layers: list[AttentionState | DeltaNetState] = []
    for index, kind in enumerate(params.config.layer_types):
        form = AttentionState if kind == FULL else DeltaNetState
        layers.append(form(*(tensors[f"layers.{index}.{name}"] for name in form._fields)))
    state = State(tensors["position"], tensors["rope_offset"], tuple(layers))
    return SavedState(state, tensors.get("logits"), metadata)


def _named(state: State) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state by their names in the file."""
    yield "position", state.position
    yield "rope_offset", state.rope_offset
    for index, layer in enumerate(state.layers):
        for name, tensor in zip(layer._fields, layer, strict=True):
            yield f"layers.{index}.{name}", tensor


def _fault(tensors: Mapping[str, Tensor], params: Params) -> str | None:
    """Says what keeps a file's tensors from being a state of the model, if anything does."""
    config = params.config
    position = tensors.get("position")
    if position is None or position.dim() != 1 or not len(position):
        return "'position' is missing, or no list of a count for each row"
    batch, capacity = len(position), None
    if FULL in config.layer_types:
        name = f"layers.{config.layer_types.index(FULL)}.value"
        value = tensors.get(name)
        if value is None or value.dim() != 4:
            return f"{name!r} is missing, or has not four dimensions"
        capacity = value.shape[2]
    wanted = dict(_named(abstract_whole(config, params.dtype, batch, capacity or 1)))
    if "logits" in tensors:
        wanted["logits"] = torch.empty(batch, config.vocab_size, device="meta")
    for name, want in wanted.items():
        seen = tensors.get(name)
        if seen is None:
            return f"{name!r} is missing"
        if (seen.shape, seen.dtype) != (want.shape, want.dtype):
            return (
                f"{name} is {shown(list(seen.shape))} {seen.dtype}, this model's is "
                f"{list(want.shape)} {want.dtype}"
            )
        if bool(seen.isnan().any()) if name == "logits" else not all_finite(seen):
            return f"{name} holds NaN or infinite values"
    unknown = sorted(tensors.keys() - wanted.keys())
    if unknown:
        return f"{shown(unknown[0])} is no part of a state"
    reached = position.long() + tensors["rope_offset"]
    if min(position.min(), reached.min()) < 0 or reached.max() >= 2**31:
        return f"positions {shown(position.tolist())} that no tokens reach"
    if capacity is not None and position.max() > capacity:
        return f"position {int(position.max())} is past its {capacity} keys and values"
    return None


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
