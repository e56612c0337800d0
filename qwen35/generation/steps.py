"""The steps that all generation is made of, compiled on XLA and eager on the CPU, or compiled by
the backend of torch.compile that the parameters' `Runtime` names. What takes no parameters, but a
few small tensors, is eager on the CPU always.

`prefill` reads a chunk of each row's prompt, `choose` takes each row's next token from its logits
and `decode` reads that; `decode_and_choose` is both in one graph, where nothing comes in between.
`prefill_and_decode` reads a chunk into some rows while it decodes others, for what decoding takes.
`put`, `put_settings`, `take`, `recurrent` and `window` move rows between batches and to the host.
Donated arguments are consumed.

On tensor-parallel ranks logits, counts and biases stay split over the vocabulary, as they come from
the head; a choice is the same on all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model import decoder
from ..model.all_ranks import on_all_ranks
from ..model.beside import prefill_and_decode_share
from ..model.params import Params
from ..model.rows import kv_window, put_row, recurrent_part, take_row
from ..model.state import DeltaNetState, State, init_state
from ..model.vocabulary import empty_vocabulary
from ..xla.compiled import compiled
from ..xla.devices import device_put
from . import sampling
from .sampling import Choice, Controls


class Rows(NamedTuple):
    """The state of some rows, and the logits after each one's last token: [B, V] float32, or each
    rank's [B, V / tp]."""

    state: State
    logits: Tensor


def blank(params: Params, size: int, capacity: int) -> Rows:
    """Makes `size` rows that have read nothing, with room for `capacity` tokens each."""
    return Rows(init_state(params, size, capacity), empty_vocabulary(params, size))


def prefill_pieces(
    params: Params,
    rows: Rows,
    pieces: Sequence[Sequence[int]],
    chunk: int,
    pictures: tuple[Tensor, Tensor] | None = None,
) -> Rows:
    """Reads the next at most `chunk` tokens of each row's prompt, maybe none; consumes the rows.

    Args:
        pictures: embeds [B, chunk, H] and positions [3, B, chunk], where a prompt has pictures.
    """
    return prefill(params, rows, *put_pieces(params, pieces, chunk, pictures))


def put_pieces(
    params: Params,
    pieces: Sequence[Sequence[int]],
    chunk: int,
    pictures: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Puts what `prefill` takes besides the rows onto the device: see `prefill_pieces`."""
    tokens = torch.tensor([[*piece, *[0] * (chunk - len(piece))] for piece in pieces])
    lengths = torch.tensor([len(piece) for piece in pieces])
    return device_put((tokens, lengths, *(pictures or (None, None))), params.device.type)


def run_ahead(params: Params) -> bool:
    """Tells whether a step returns before it has run, so that another can be started behind it."""
    return params.device.type != "cpu"


def are_compiled(params: Params) -> bool:
    """Tells whether steps are graphs, one for each shape of their arguments."""
    return params.device.type != "cpu" or params.runtime.backend is not None


def masks(device: str) -> Callable[..., Tensor]:
    """Returns a function that puts truth values onto a device, those used lately only once."""

    @functools.lru_cache(maxsize=8)
    def mask(*values: bool) -> Tensor:
        return device_put(torch.tensor(values), device)

    return mask


@torch.no_grad()
@on_all_ranks(True, positions=1)
def _prefill(
    params: Params,
    rows: Rows,
    tokens: Tensor,
    lengths: Tensor,
    embeds: Tensor | None,
    positions: Tensor | None,
) -> Rows:
    """Prefills one chunk; a row of length 0 keeps the logits of its last token."""
    logits, state = decoder.prefill_share(params, rows.state, tokens, lengths, embeds, positions)
    return Rows(state, torch.where((lengths > 0)[:, None], logits, rows.logits))


@torch.no_grad()
@on_all_ranks(True)
def _decode(params: Params, rows: Rows, token: Tensor, active: Tensor, ends: Tensor) -> Rows:
    """Decodes token [B] in the active [B] rows, but not where it is one that ends the row.

    Such a row keeps what it had before the token, as an inactive one does: who does not know the
    token yet can have it decoded.

    Args:
        ends: [B, V] bool, whole on every rank: before the first layer all have to know.
    """
    active = _goes_on(token, active, ends)
    logits, state = decoder.decode_share(params, rows.state, token, active)
    return Rows(state, torch.where(active[:, None], logits, rows.logits))


def _goes_on(token: Tensor, active: Tensor, ends: Tensor) -> Tensor:
    """Tells where an active row's token does not end it."""
    return active & ~ends.gather(1, token[:, None]).squeeze(1)


@torch.no_grad()
@on_all_ranks(True, True, positions=1)
def _prefill_and_decode(
    params: Params,
    row: Rows,
    tokens: Tensor,
    lengths: Tensor,
    embeds: Tensor | None,
    positions: Tensor | None,
    rows: Rows,
    token: Tensor,
    active: Tensor,
    ends: Tensor,
) -> tuple[Rows, Rows]:
    """Prefills one chunk of `row`, and decodes token [B] of `rows`: see both."""
    active = _goes_on(token, active, ends)
    read = (row.state, tokens, lengths, embeds, positions)
    results = prefill_and_decode_share(params, *read, rows.state, token, active)
    read_logits, read_state, logits, state = results
    read_logits = torch.where((lengths > 0)[:, None], read_logits, row.logits)
    logits = torch.where(active[:, None], logits, rows.logits)
    return Rows(read_state, read_logits), Rows(state, logits)


@torch.no_grad()
def _force(token: Tensor, forced: Tensor, unless: Tensor) -> Tensor:
    """Puts the tokens of `forced` [B], where 0 or more, in place of those chosen [B], except where
    what was chosen is the one of `unless` [B]."""
    return torch.where((forced >= 0) & (token != unless), forced, token)


@torch.no_grad()
@on_all_ranks(False, True)
def _choose(
    params: Params,
    position: Tensor | None,
    logits: Tensor,
    controls: Controls,
    bias: Tensor | None,
    counts: Tensor | None,
    last: Tensor | None,
    counted: Tensor | None,
    logprobs: int | None,
    short: bool = False,
    allowed: Tensor | None = None,
) -> tuple[Choice, Tensor | None]:
    """Chooses each row's next token, see `sampling.choose`.

    Args:
        position: the state's; None where nothing is drawn.
        counts: [B, V] for penalties; returned with token `last` [B] added in the `counted` [B]
            rows (None: all); nothing is added where `last` is None.
    """
    vocabulary = params.vocabulary
    if counts is not None and last is not None:
        counts = sampling.count(counts, last, counted, vocabulary)
    if controls.draw is None:
        position = None
    how = (controls, position, counts, bias, logprobs, short, vocabulary, allowed)
    return sampling.choose(logits, *how), counts


@torch.no_grad()
@on_all_ranks(False, True, True)
def _decode_and_choose(
    params: Params,
    state: State,
    token: Tensor,
    active: Tensor | None,
    controls: Controls,
    bias: Tensor | None,
    counts: Tensor | None,
    logprobs: int | None,
    short: bool = False,
    allowed: Tensor | None = None,
) -> tuple[Choice, State, Tensor | None]:
    """Decodes token [B] in the active rows and chooses what comes after it."""
    logits, state = decoder.decode_share(params, state, token, active)
    how = (controls, bias, counts, token, active, logprobs, short, allowed)
    choice, counts = _choose(params, state.position, logits, *how)
    return choice, state, counts


@torch.no_grad()
@on_all_ranks(True)
def _put(params: Params, rows: Any, row: Any, slot: Tensor, here: Tensor | None = None) -> Any:
    """Puts the only one of `row` in place of row `slot` (int64 [1]), in trees of tensors of which
    each rank has its own.

    Args:
        slot: of all ranks of several dp rows [dp], the place in each.
        here: bool [dp], in which of them that is done; None where there is one.
    """
    return put_row(rows, row, slot, here)


@torch.no_grad()
@on_all_ranks(True)
def _take(params: Params, rows: Rows, slot: Tensor) -> Rows:
    """Returns row `slot` (int64 [1]) as a batch of one; of all ranks of several dp rows, one of
    each (int64 [dp])."""
    return take_row(rows, slot)


@torch.no_grad()
@on_all_ranks(True)
def _recurrent(params: Params, rows: Rows) -> tuple[Tensor, tuple[DeltaNetState, ...], Tensor]:
    """Returns what of rows is not a token's own: see `recurrent_part`; and the logits."""
    return *recurrent_part(rows.state), rows.logits


prefill = compiled(_prefill, donate=("rows",))
decode = compiled(_decode, donate=("rows",))
prefill_and_decode = compiled(_prefill_and_decode, donate=("row", "rows"))
choose = compiled(_choose, donate=("counts",))
decode_and_choose = compiled(_decode_and_choose, donate=("state", "counts"))
force = compiled(_force)
put = compiled(_put, donate=("rows",))
put_settings = compiled(put_row, donate=("tree",))
take = compiled(_take)
recurrent = compiled(_recurrent)
window = compiled(kv_window)

ALL = (
    *(prefill, decode, prefill_and_decode, choose, decode_and_choose, force),
    *(put, put_settings, take, recurrent, window),
)
