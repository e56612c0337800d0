"""The engine's tensors: a state, logits and sampling settings for each slot, and what steps them.

Nothing here knows of requests or text. Shapes never depend on what the slots hold: one graph each
for each size of prefill (which decodes besides, where there are several slots), decode, the most
likely tokens, sampled tokens, and moving rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..model.all_ranks import dp_rows_here
from ..model.config import FULL
from ..model.params import Params, Runtime
from ..model.rows import grow
from ..model.state import AttentionState, DeltaNetState, State
from ..model.state_shares import fetch_state, gather_state, place_state, scatter_state
from ..model.vocabulary import gather_vocabulary, place_vocabulary, scatter_vocabulary
from ..xla.compiled import Compiled
from ..xla.devices import device_put
from ..xla.progress import compile_all
from . import grammar, steps
from .prefix_cache import KV, Match, Snapshot
from .sampling import MOST_LIKELY, Choice, Controls, bias_for, controls_for, counts_for
from .sampling_settings import Sampling
from .steps import Rows


class _PerToken(NamedTuple):
    """What is added to logits, and how often tokens were there: [B, V], or each rank's share."""

    bias: Tensor
    counts: Tensor


class _Settings(NamedTuple):
    """How rows are sampled."""

    controls: Controls
    per_token: _PerToken


class Copies(NamedTuple):
    """What a row leaves, on the device: its keys and values in windows of tokens, of each window
    from where to where they count, and the rest."""

    windows: tuple[KV, ...]
    spans: tuple[tuple[int, int], ...]
    rest: tuple[Tensor, tuple[DeltaNetState, ...], Tensor]


def check_slots(slots: int, runtime: Runtime) -> None:
    """Raises a ValueError if the dp rows that are here can't have equally many slots."""
    copies = dp_rows_here(runtime)
    if slots % copies:
        raise ValueError(f"slots = {slots} can't be split evenly over dp = {copies}")


class Batch:
    """Slots of `capacity` tokens each on the parameters' device.

    Of all ranks in one process, each dp row has its part of the slots. A row that is being read is
    in all dp rows alike: which slot it comes to is not known yet.

    Args:
        params: of one device, of one rank, or of all ranks.
        slots: how many; a multiple of the dp rows that are here.
        capacity: tokens that each holds.
        sizes: tokens of a prefill step, ascending, at most the capacity.
        top_logprobs: most likely tokens that `choose` reports.
        ends: token ids that end every row.

    Raises:
        ValueError: the dp rows that are here can't have equally many slots.

    Attributes:
        ahead: whether `decode` is called before a choice is read.
        chunk: the most tokens of a prefill step.
        rows: the slots.
    """

    def __init__(
        self,
        params: Params,
        *,
        slots: int,
        capacity: int,
        sizes: tuple[int, ...],
        top_logprobs: int,
        ends: frozenset[int],
    ) -> None:
        self.params = params
        self.slots = slots
        self._copies = dp_rows_here(params.runtime)
        check_slots(slots, params.runtime)
        self.capacity = capacity
        self.chunk = sizes[-1]
        self._sizes = sizes
        self._top_logprobs = top_logprobs
        self.ahead = steps.run_ahead(params)
        self._device = params.device.type
        self._mask = steps.masks(self._device)
        self._model_ends = ends
        self.reset()

    @property
    def compile_count(self) -> int:
        """Graphs compiled so far, for other batches too: they share them."""
        return sum(step.compile_count for step in steps.ALL)

    def blank(self) -> Rows:
        """Makes a row that has read nothing."""
        return steps.blank(self.params, self._copies, self.capacity)

    def reset(self) -> None:
        """Empties all slots, whatever has become of their tensors."""
        self.rows = steps.blank(self.params, self.slots, self.capacity)
        self._settings: _Settings | None = None  # until a row needs other than plain ones
        self._token = self._ids([0] * self.slots)  # each slot's last
        self._ending = [self._model_ends] * self.slots  # what ends each slot's row
        self._ends = self._ends_of(self._ending)

    def warm_up(self, progress: bool = False) -> None:
        """Compiles all that slots of this capacity need, with progress on standard error if it is
        wanted."""
        pictures = self.params.vision is not None
        compile_all(self.graphs(pictures, grammar.installed()), progress)

    def graphs(self, pictures: bool, limited: bool) -> Iterator[tuple[str, Compiled, tuple]]:
        """Yields all that slots of this capacity run: a name, the step, and arguments for it.

        Args:
            pictures: whether prompts have some; the vision tower is not among the graphs.
            limited: whether requests may have a grammar.
        """
        self._ensure_settings()
        params, row = self.params, self.blank()
        lengths, first = self._ids([0] * self._copies), self._place(0)
        slot, vector, mask = self._ids([0]), self._token, self._mask(*[True] * self.slots)
        decoded = (self.rows, vector, mask, self._ends)
        prefill: Compiled = steps.prefill_and_decode
        beside = decoded
        if self.slots == 1:
            prefill, beside = steps.prefill, ()
        for size in self._sizes:
            chunk = self._put(torch.zeros(self._copies, size, dtype=torch.int64))
            yield f"prefill_{size}", prefill, (params, row, chunk, lengths, None, None, *beside)
        if pictures:
            embeds = torch.zeros(*chunk.shape, params.config.hidden_size, dtype=params.dtype)
            places = torch.zeros(3, *chunk.shape, dtype=torch.int64)
            seen = self._put((embeds, places))
            yield "prefill_images", prefill, (params, row, chunk, lengths, *seen, *beside)
        yield "decode", steps.decode, (params, *decoded)
        yield "choose_greedy", steps.choose, self._likeliest()
        for name, short in (("choose_short", True), ("choose_any", False)):
            yield name, steps.choose, self._sampled(mask, short)
            if limited:
                anything = grammar.anything(params.config.vocab_size)
                bits = self._put(anything.repeat(self.slots, 1))
                yield f"{name}_allowed", steps.choose, (*self._sampled(mask, short), bits)
        yield "force", steps.force, (vector, vector, vector)
        yield "put", steps.put, (params, self.rows, row, *first)
        old, new = self._settings, self._settings_of([Sampling()], [()], self._copies)
        yield "put_per_token", steps.put, (params, old.per_token, new.per_token, *first)
        yield "put_settings", steps.put_settings, (old.controls, new.controls, slot)
        yield "put_ends", steps.put_settings, (self._ends, self._ends_of([()]), slot)
        yield "take", steps.take, (params, self.rows, first[0])
        yield "recurrent", steps.recurrent, (params, row)
        if row.state.capacity is not None:
            yield "window", steps.window, (params, row.state, lengths, self.chunk)

    # -- one row ------------------------------------------------------------------------------

    def piece(
        self, tokens: Sequence[int], pictures: tuple[Tensor, Tensor] | None = None
    ) -> Sequence[Tensor | None]:
        """Puts 1 to `chunk` tokens of a prompt onto the device, padded to the smallest size.

        Args:
            pictures: embeds [1, chunk, H] and positions [3, 1, chunk], in a prompt with pictures:
                its steps have this size only.
        """
        size = self.chunk if pictures is not None else self.size_for(len(tokens))
        if pictures is not None:
            embeds, positions = pictures
            pictures = embeds.repeat(self._copies, 1, 1), positions.repeat(1, self._copies, 1)
        return steps.put_pieces(self.params, [tokens] * self._copies, size, pictures)

    def size_for(self, tokens: int) -> int:
        """Returns the size of the prefill step that reads so many."""
        return next(size for size in self._sizes if size >= tokens)

    def put(
        self,
        slot: int,
        row: Rows,
        sampling: Sampling,
        prompt: Sequence[int],
        ending: frozenset[int],
    ) -> None:
        """Puts a row into a slot, to be sampled like this and to end at these tokens."""
        at, place = self._ids([slot]), self._place(slot)
        if not sampling.plain:
            self._ensure_settings()
        if self._settings is not None:
            old, new = self._settings, self._settings_of([sampling], [prompt], self._copies)
            self._settings = _Settings(
                steps.put_settings(old.controls, new.controls, at),
                steps.put(self.params, old.per_token, new.per_token, *place),
            )
        if ending != self._ending[slot]:
            self._ends = steps.put_settings(self._ends, self._ends_of([ending]), at)
            self._ending[slot] = ending
        self.rows = steps.put(self.params, self.rows, row, *place)

    def take(self, slot: int) -> Rows:
        """Returns a slot's row; the slot keeps it. It is in the dp row that has the slot alone, see
        `replica_of`."""
        return steps.take(self.params, self.rows, self._place(slot)[0])

    def replica_of(self, slot: int) -> int:
        """Returns which of the dp rows that are here has a slot."""
        return slot // (self.slots // self._copies)

    # -- all slots ----------------------------------------------------------------------------

    def choose(
        self,
        counted: Sequence[bool],
        plain: bool,
        short: bool,
        forced: Sequence[tuple[int, int] | None],
        allowed: Sequence[Tensor | None],
    ) -> Choice:
        """Chooses each slot's next token, which stays on the device: `decode` takes it from there.

        Args:
            counted: whether the token before is one of the continuation.
            plain: whether the most likely tokens are wanted of all.
            short: whether all slots' settings are `Sampling.short`.
            forced: see `Request.forced`.
            allowed: see `Request.allowed`; None for all, where the most likely are wanted.

        Returns:
            The choice as the model made it, to be read with `read_choice`.
        """
        if plain:
            choice, _ = steps.choose(*self._likeliest())
        else:
            bits = self._put(grammar.stacked(allowed, self.params.config.vocab_size))
            choice, counts = steps.choose(*self._sampled(self._mask(*counted), short), bits)
            per_token = self._settings.per_token._replace(counts=counts)
            self._settings = self._settings._replace(per_token=per_token)
        self._token = choice.token
        if any(forced):
            tokens, unless = zip(*(pair or (-1, -1) for pair in forced), strict=True)
            self._token = steps.force(self._token, self._ids(tokens), self._ids(unless))
        return choice

    def decode(self, active: Sequence[bool]) -> None:
        """Reads the token just chosen in each active slot, but none that ends its row."""
        mask = self._mask(*active)
        self.rows = steps.decode(self.params, self.rows, self._token, mask, self._ends)

    def prefill(self, row: Rows, piece: Sequence[Tensor | None], active: Sequence[bool]) -> Rows:
        """Reads what `piece` made into a row, which is consumed, and in the same step decodes what
        `decode` would; of a single slot, that is never active then."""
        if self.slots == 1:
            return steps.prefill(self.params, row, *piece)
        decoded = (self.rows, self._token, self._mask(*active), self._ends)
        row, self.rows = steps.prefill_and_decode(self.params, row, *piece, *decoded)
        return row

    # -- to the prefix cache and back ---------------------------------------------------------

    def copies(self, row: Rows, start: int, end: int) -> Copies:
        """Copies on the device what a row leaves: of keys and values those of tokens start to
        end - 1. The row may be consumed then, and the slots may grow."""
        places = self._windows(start, end)
        windows = tuple(
            steps.window(self.params, row.state, self._ids([begin] * self._copies), self.chunk)
            for begin, _, _ in places
        )
        spans = tuple(place[1:] for place in places)
        return Copies(windows, spans, steps.recurrent(self.params, row))

    def fetch(self, copies: Copies, replica: int = 0) -> tuple[KV, Snapshot]:
        """Copies to the CPU what `copies` made; of all ranks of a dp row, one after the other along
        dimension 0, where they are here."""
        made = copies.windows, copies.rest
        windows, (offset, layers, logits) = fetch_state(self.params, made, replica)
        parts = [
            [AttentionState(key[..., left:right], value[:, :, left:right]) for key, value in window]
            for window, (left, right) in zip(windows, copies.spans, strict=True)
        ]
        kv = tuple(
            AttentionState(
                torch.cat([layer.key for layer in layer_parts], 3),
                torch.cat([layer.value for layer in layer_parts], 2),
            )
            for layer_parts in zip(*parts, strict=True)
        )
        return kv, Snapshot(offset, layers, logits)

    def _windows(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Lists where windows of `chunk` tokens begin that hold tokens start to end - 1, and from
        where to where in each the next of these stand. A model without attention has none."""
        if self.rows.state.capacity is None:
            return []
        firsts = range(start, end, self.chunk)
        begins = [min(first, self.capacity - self.chunk) for first in firsts]
        return [
            (begin, first - begin, min(end, first + self.chunk) - begin)
            for first, begin in zip(firsts, begins, strict=True)
        ]

    def restore(self, match: Match) -> Rows:
        """Makes a row that has read the matched tokens."""
        snapshot, attention, deltanet = match.snapshot, iter(match.kv), iter(match.snapshot.layers)
        layers = tuple(
            next(attention if kind == FULL else deltanet) for kind in self.params.config.layer_types
        )
        position = torch.full_like(snapshot.rope_offset, match.length)
        state = grow(State(position, snapshot.rope_offset, layers), self.capacity)
        logits = place_vocabulary(self.params, self._repeated(snapshot.logits))
        return Rows(place_state(self.params, self._repeated(state)), logits)

    def gather(self, row: Rows) -> tuple[State, Tensor]:
        """Returns the whole state and the logits of a row, on the CPU; all processes of a tp group
        call it."""
        state = gather_state(self.params, row.state)
        logits = gather_vocabulary(self.params, row.logits)
        return pytree.tree_map(lambda tensor: tensor[:1], (state, logits))

    def scatter(self, state: State, logits: Tensor) -> Rows:
        """Makes a row of what `gather` returned, there or on another mesh."""
        state = self._repeated(grow(state, self.capacity))
        logits = self._repeated(device_put(logits, "cpu"))
        return Rows(scatter_state(self.params, state), scatter_vocabulary(self.params, logits))

    # -- helpers ------------------------------------------------------------------------------

    def _likeliest(self) -> tuple:
        """Returns what `steps.choose` takes for the most likely tokens: no more than an argmax."""
        return self.params, None, self.rows.logits, MOST_LIKELY, None, None, None, None, None

    def _sampled(self, counted: Tensor, short: bool) -> tuple:
        """Returns what `steps.choose` takes for the slots' settings."""
        state, logits = self.rows
        controls, (bias, counts) = self._settings
        how = self._token, counted, self._top_logprobs, short
        return self.params, state.position, logits, controls, bias, counts, *how

    def _ensure_settings(self) -> None:
        if self._settings is None:
            self._settings = self._settings_of([Sampling()] * self.slots, [()] * self.slots)

    def _settings_of(
        self, samplings: Sequence[Sampling], prompts: Sequence[Sequence[int]], copies: int = 1
    ) -> _Settings:
        vocabulary = self.params.config.vocab_size
        controls = controls_for(samplings, vocabulary, everything=True)
        whole = bias_for(samplings, vocabulary), counts_for(prompts, vocabulary)
        shares = (scatter_vocabulary(self.params, tensor.repeat(copies, 1)) for tensor in whole)
        return _Settings(self._put(controls), _PerToken(*shares))

    def _ends_of(self, ending: Sequence[Iterable[int]]) -> Tensor:
        """Makes a row [V] for each of these sets of tokens that end one."""
        vocabulary = self.params.config.vocab_size
        ends = torch.zeros(len(ending), vocabulary, dtype=torch.bool)
        for row, tokens in enumerate(ending):
            ends[row, [token for token in tokens if token < vocabulary]] = True
        return self._put(ends)

    def _repeated(self, tree: Any) -> Any:
        """Returns what a dp row has for each of those that are here."""
        if self._copies == 1:
            return tree
        return pytree.tree_map(lambda tensor: torch.cat([tensor] * self._copies), tree)

    def _place(self, slot: int) -> tuple[Tensor, Tensor | None]:
        """Returns the place of a slot in each dp row that is here, and which of several has it."""
        if self._copies == 1:
            return self._ids([slot]), None
        replica, place = divmod(slot, self.slots // self._copies)
        here = [number == replica for number in range(self._copies)]
        return self._ids([place] * self._copies), self._mask(*here)

    def _ids(self, values: Sequence[int]) -> Tensor:
        return self._put(torch.tensor(values))

    def _put(self, tree: Any) -> Any:
        return device_put(tree, self._device)
