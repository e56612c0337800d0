"""The engine's tensors: a state, logits and sampling settings for each slot, and what steps them.

Nothing here knows of requests or text. Shapes never depend on what the slots hold: one graph each
for prefill, decode, the most likely tokens, sampled tokens, and moving rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..model.config import FULL
from ..model.params import Params
from ..model.rows import grow
from ..model.state import AttentionState, State
from ..xla.devices import device_put, run_pending_of
from . import steps
from .prefix_cache import KV, Match, Snapshot
from .results import TokenLogprob, read_choice
from .sampling import MOST_LIKELY, Controls, Sampling, controls_for, counts_for
from .steps import Rows


class _Settings(NamedTuple):
    """How rows are sampled, and their tokens counted for penalties [B, V]."""

    controls: Controls
    counts: Tensor


class Batch:
    """Slots of `capacity` tokens each on the parameters' device.

    Args:
        params: not split over a mesh.
        slots: how many.
        capacity: tokens that each holds.
        chunk: tokens of a prefill step, at most the capacity.
        top_logprobs: most likely tokens that `choose` reports.
    """

    def __init__(
        self,
        params: Params,
        *,
        slots: int,
        capacity: int,
        chunk: int,
        top_logprobs: int,
    ) -> None:
        self.params = params
        self.slots = slots
        self.capacity = capacity
        self.chunk = chunk
        self._top_logprobs = top_logprobs
        self._device = params.device.type
        self._settings: _Settings | None = None  # until a row needs other than plain ones
        self.rows = self.blank(slots)

    @property
    def compile_count(self) -> int:
        """Graphs compiled so far, for other batches too: they share them."""
        return sum(step.compile_count for step in steps.ALL)

    def blank(self, size: int = 1) -> Rows:
        """Makes rows that have read nothing."""
        return steps.blank(self.params, size, self.capacity)

    def reset(self) -> None:
        """Empties all slots, whatever has become of their tensors."""
        self.rows, self._settings = self.blank(self.slots), None

    def grow(self, capacity: int) -> None:
        """Gives every slot more room."""
        self.rows = self.rows._replace(state=grow(self.rows.state, capacity))
        self.capacity = capacity

    def warm_up(self) -> None:
        """Compiles all that slots of this capacity need."""
        self._ensure_settings()
        params, row = self.params, self.blank()
        slot, vector, mask = self._ids([0]), self._ids([0] * self.slots), [True] * self.slots
        mask = self._put(torch.tensor(mask))
        chunk = torch.zeros(1, self.chunk, dtype=torch.int64)
        steps.prefill.compile(params, row, self._put(chunk), slot, None, None)
        if params.vision is not None:
            embeds = torch.zeros(*chunk.shape, params.config.hidden_size, dtype=params.dtype)
            inputs = self._put((chunk, embeds, chunk.expand(3, 1, -1).contiguous()))
            steps.prefill.compile(params, row, inputs[0], slot, *inputs[1:])
        steps.decode.compile(params, self.rows.state, vector, mask)
        steps.choose.compile(*self._likeliest())
        steps.choose.compile(*self._sampled(vector, mask))
        steps.put.compile(self.rows, row, slot)
        steps.put.compile(self._settings, self._settings_of(Sampling(), ()), slot)
        steps.take.compile(self.rows, slot)
        steps.recurrent.compile(row.state)
        if row.state.capacity is not None:
            steps.window.compile(row.state, self._put(torch.tensor([0])), self.chunk)

    # -- one row ------------------------------------------------------------------------------

    def prefill(
        self, row: Rows, tokens: Sequence[int], pictures: tuple[Tensor, Tensor] | None = None
    ) -> Rows:
        """Reads 1 to `chunk` tokens; consumes the row.

        Args:
            pictures: embeds [1, chunk, H] and positions [3, 1, chunk], in a prompt with pictures.
        """
        return steps.prefill_pieces(self.params, row, [tokens], self.chunk, pictures)

    def put(self, slot: int, row: Rows, sampling: Sampling, prompt: Sequence[int]) -> None:
        """Puts a row into a slot, to be sampled like this."""
        at = self._ids([slot])
        if not sampling.plain:
            self._ensure_settings()
        if self._settings is not None:
            self._settings = steps.put(self._settings, self._settings_of(sampling, prompt), at)
        self.rows = steps.put(self.rows, row, at)

    def take(self, slot: int) -> Rows:
        """Returns a slot's row; the slot keeps it."""
        return steps.take(self.rows, self._ids([slot]))

    # -- all slots ----------------------------------------------------------------------------

    def choose(
        self, last: Sequence[int | None], limits: Sequence[int | None], plain: bool
    ) -> list[tuple[int, TokenLogprob | None]]:
        """Chooses each slot's next token; log probabilities come where the limit is a number.

        Args:
            last: the token before, if it is one of the continuation.
            plain: whether the most likely tokens are wanted of all.
        """
        if plain:
            choice, _ = steps.choose(*self._likeliest())
            return read_choice(choice, limits)
        counted = self._put(torch.tensor([token is not None for token in last]))
        choice, counts = steps.choose(*self._sampled(self._tokens(last), counted))
        self._settings = self._settings._replace(counts=counts)
        return read_choice(choice, limits)

    def decode(self, tokens: Sequence[int | None]) -> None:
        """Reads a token in each slot that has one."""
        active = self._put(torch.tensor([token is not None for token in tokens]))
        self.rows = steps.decode(self.params, self.rows.state, self._tokens(tokens), active)

    # -- to the prefix cache and back ---------------------------------------------------------

    def snapshot(self, row: Rows) -> Snapshot:
        """Copies what a row leaves besides keys and values to the CPU."""
        parts = (*steps.recurrent(row.state), row.logits)
        return Snapshot(*device_put(parts, "cpu"))

    def keys_and_values(self, row: Rows, start: int, end: int) -> KV:
        """Copies the keys and values of a row's tokens start to end - 1 to the CPU."""
        pieces: list[KV] = []
        for first in range(start, end, self.chunk):
            begin = min(first, self.capacity - self.chunk)
            window = steps.window(row.state, self._put(torch.tensor([begin])), self.chunk)
            left, right = first - begin, min(end, first + self.chunk) - begin
            pieces.append(
                tuple(
                    AttentionState(layer.key[..., left:right], layer.value[:, :, left:right])
                    for layer in device_put(window, "cpu")
                )
            )
        return tuple(
            AttentionState(
                torch.cat([layer.key for layer in layers], 3),
                torch.cat([layer.value for layer in layers], 2),
            )
            for layers in zip(*pieces, strict=True)
        )

    def restore(self, match: Match) -> Rows:
        """Makes a row that has read the matched tokens."""
        snapshot, attention, deltanet = match.snapshot, iter(match.kv), iter(match.snapshot.layers)
        layers = tuple(
            next(attention if kind == FULL else deltanet) for kind in self.params.config.layer_types
        )
        position = torch.tensor([match.length], dtype=torch.int32)
        state = grow(State(position, snapshot.rope_offset, layers), self.capacity)
        return Rows(*self._put((state, snapshot.logits)))

    # -- helpers ------------------------------------------------------------------------------

    def _likeliest(self) -> tuple:
        """Returns what `steps.choose` takes for the most likely tokens: no more than an argmax."""
        return self.params, None, self.rows.logits, MOST_LIKELY, None, None, None, None

    def _sampled(self, last: Tensor, counted: Tensor) -> tuple:
        """Returns what `steps.choose` takes for the slots' settings, after tokens `last`."""
        state, logits = self.rows
        settings = self._settings.controls, self._settings.counts
        return self.params, state.position, logits, *settings, last, counted, self._top_logprobs

    def _tokens(self, tokens: Sequence[int | None]) -> Tensor:
        return self._ids([token or 0 for token in tokens])

    def _ensure_settings(self) -> None:
        if self._settings is None:
            row = self._settings_of(Sampling(), ())
            everywhere = self._ids([0] * self.slots)
            settings = pytree.tree_map(lambda tensor: tensor.index_select(0, everywhere), row)
            if self._device == "xla":
                run_pending_of(pytree.tree_leaves(settings))
            self._settings = settings

    def _settings_of(self, sampling: Sampling, prompt: Sequence[int]) -> _Settings:
        vocabulary = self.params.config.vocab_size
        controls = controls_for([sampling], vocabulary, everything=True)
        return self._put(_Settings(controls, counts_for([prompt], vocabulary)))

    def _ids(self, values: Sequence[int]) -> Tensor:
        return self._put(torch.tensor(values))

    def _put(self, tree: Any) -> Any:
        return device_put(tree, self._device)
