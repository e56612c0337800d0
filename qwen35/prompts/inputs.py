"""Prompts of every kind to what `prefill` takes, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks.values import as_integer, shown, token_ids
from ..model.params import Params
from ..vision.tower import encode_images
from .processor import Processor, Prompt
from .tokenizer import Tokenizer, TokenizerLike

Messages = Sequence[Mapping[str, Any]]
Ids = Sequence[int] | np.ndarray | Tensor
# What transformers' tokenizers return is a mapping with input_ids and attention_mask.
OnePrompt = str | Prompt | Messages | Ids | Mapping[str, Any]
Prompts = OnePrompt | Sequence[OnePrompt]
_KINDS = (
    "a text, token ids (a list, an array or a mapping with input_ids), messages or what a "
    "Processor made"
)


class RowPictures(NamedTuple):
    """Pictures of one prompt, encoded; on the CPU, whatever the parameters' device.

    index [n] int64: the token that each vector stands at, ascending; vectors [n, H]; positions
    [3, T] int64.
    """

    index: Tensor
    vectors: Tensor
    positions: Tensor


def encode_prompts(
    params: Params,
    tokenizer: TokenizerLike,
    prompts: Prompts,
    template: Mapping[str, Any] | None = None,
) -> tuple[list[list[int]], list[Prompt | None]]:
    """Encodes one or several prompts as `encode_prompt` does, to a list of each of its results."""
    encoded = [
        encode_prompt(params, tokenizer, prompt, template, f"prompt {number}")
        for number, prompt in enumerate(_one_by_one(prompts))
    ]
    return [ids for ids, _ in encoded], [seen for _, seen in encoded]


def encode_prompt(
    params: Params,
    tokenizer: TokenizerLike,
    prompt: OnePrompt,
    template: Mapping[str, Any] | None = None,
    name: str = "the prompt",
) -> tuple[list[int], Prompt | None]:
    """Returns a prompt's token ids and, if it has been through a processor, what that made.

    Args:
        params: of the model that will read it.
        tokenizer: a `Processor`, a `Tokenizer`, or what has a tokenizer's two methods.
        prompt: see `OnePrompt`.
        template: variables of the chat template, for a prompt of messages.
        name: what the prompt is called in errors.

    Raises:
        ValueError: it is empty, nothing that a prompt can be, or has what is no id of the
            vocabulary, it is messages that can't be rendered, has pictures that these parameters
            can't see, or a text places without pictures; a template for no messages, or none.
    """
    if template is not None and not isinstance(template, Mapping):
        raise ValueError(f"template must be variables by name, not {shown(template)}")
    if _are_messages(prompt):
        prompt = _rendered(tokenizer, prompt, template or {}, name)
    elif template:
        raise ValueError(f"{name} is no messages, so it takes no arguments of the chat template")
    if isinstance(prompt, Prompt):
        _check_pictures(params, prompt, name)
        return token_ids(name, prompt.tokens[0], params.config.vocab_size), prompt
    ids = encode_row(params, tokenizer.encode(prompt) if isinstance(prompt, str) else prompt, name)
    if not ids:
        raise ValueError(f"{name} is empty: at least one token is needed")
    _check_no_places(params, ids, name)
    return ids, None


def _rendered(
    tokenizer: TokenizerLike, messages: Messages, template: Mapping[str, Any], name: str
) -> str | Prompt:
    """Renders messages with whatever template the tokenizer has."""
    if isinstance(tokenizer, Processor):
        return tokenizer(messages, **template)
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.render(messages, **template)
    if hasattr(tokenizer, "apply_chat_template"):  # one of transformers'
        return Tokenizer(tokenizer).render(messages, **template)
    raise ValueError(
        f"{name} is messages, which need a qwen35.Tokenizer or Processor, not a "
        f"{type(tokenizer).__name__}"
    )


def encode_rows(params: Params, rows: Prompts) -> list[list[int]]:
    """Returns the token ids of one or several rows, given as `generate`'s prompts but as ids."""
    rows = rows if isinstance(rows, Sequence) and not rows else _one_by_one(rows)
    return [encode_row(params, row, f"row {number}") for number, row in enumerate(rows)]


def encode_row(params: Params, ids: Any, name: str) -> list[int]:
    """Returns token ids, of whatever holds one row of them.

    Raises:
        ValueError: it is nothing that does, or has what is no id of the vocabulary.
    """
    return token_ids(name, _ids(name, ids), params.config.vocab_size)


def _one_by_one(prompts: Any) -> Sequence[Any]:
    """Returns the prompts in what may be one or several."""
    if isinstance(prompts, str | Prompt):
        return [prompts]
    if isinstance(prompts, Mapping):
        return _rows("prompts", prompts)
    if isinstance(prompts, np.ndarray | Tensor):
        return [prompts] if prompts.ndim < 2 else list(prompts)
    _check_list("prompts", prompts)
    if not prompts:
        raise ValueError("prompts is empty: at least one prompt is needed")
    return [prompts] if _are_messages(prompts) or as_integer(prompts[0]) is not None else prompts


def _are_messages(prompt: Any) -> bool:
    """Tells whether a prompt is messages, rather than several encoded prompts or something else."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        return False
    return isinstance(prompt[0], Mapping) and "input_ids" not in prompt[0]


def _ids(name: str, prompt: Any) -> Any:
    """Returns one prompt's token ids, of whatever holds them."""
    if isinstance(prompt, Mapping):
        rows = _rows(name, prompt)
    elif isinstance(prompt, np.ndarray | Tensor) and prompt.ndim == 2:
        rows = list(prompt)
    else:
        _check_list(name, prompt)
        return prompt
    if len(rows) != 1:
        raise ValueError(f"{name} has {len(rows)} rows of token ids, where one is needed")
    return rows[0]


def _rows(name: str, encoded: Mapping[str, Any]) -> list[Any]:
    """Returns the rows of what a tokenizer of transformers returned, padding left out."""
    if "input_ids" not in encoded:
        keys = ", ".join(map(shown, encoded)) or "no keys"
        more = "; a message stands in a list" if "role" in encoded else ""
        raise ValueError(
            f"{name} is of type {type(encoded).__name__} with {keys}, and without input_ids{more}"
        )
    ids, mask = encoded["input_ids"], encoded.get("attention_mask")
    _check_list(f"input_ids of {name}", ids)
    if not len(ids) or as_integer(ids[0]) is not None:
        ids, mask = [ids], None if mask is None else [mask]
    if mask is None:
        return list(ids)
    if len(mask) != len(ids) or any(
        len(row) != len(seen) for row, seen in zip(ids, mask, strict=True)
    ):
        raise ValueError(f"{name}: input_ids and attention_mask differ in shape")
    return [
        [token for token, real in zip(row, seen, strict=True) if real]
        for row, seen in zip(ids, mask, strict=True)
    ]


def _check_list(name: str, value: Any) -> None:
    """Checks that a value is a list or an array, rather than bytes or what merely iterates."""
    if isinstance(value, np.ndarray | Tensor):
        return
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        raise ValueError(f"{name} is of type {type(value).__name__}: a prompt is {_KINDS}")


def encode_pictures(params: Params, prompt: Prompt, start: int = 0) -> RowPictures | None:
    """Runs the vision tower on those of a prompt's pictures that have tokens from `start` on.

    None where there are none: what follows is words, for which `prefill` counts positions on.
    """
    index, patches, grid = prompt.images.index, prompt.images.patches, prompt.images.grid
    per_token = len(patches) // max(1, len(index))
    first = known = 0
    for t, h, w in grid:
        end = known + t * h * w // per_token
        if index[end - 1] >= start:
            break
        first, known = first + 1, end
    if first == len(grid):
        return None
    vectors = encode_images(params.vision, patches[known * per_token :], grid[first:])
    return RowPictures(index[known:], vectors, prompt.positions[:, 0])


def piece(rows: Sequence[RowPictures | None], start: int, length: int) -> tuple[Tensor, Tensor]:
    """Cuts out `embeds` [B, length, H] and `positions` [3, B, length] int32 of tokens `start` on.

    A row is None if it is of words only: its positions count on. Zeros stand where a row has no
    picture, or has ended.
    """
    some = next(row for row in rows if row is not None)
    embeds = some.vectors.new_zeros(len(rows), length, some.vectors.shape[1])
    positions = torch.zeros(3, len(rows), length, dtype=torch.int32)
    for number, row in enumerate(rows):
        if row is None:
            positions[:, number] = torch.arange(start, start + length)
            continue
        here = row.positions[:, start : start + length]
        positions[:, number, : here.shape[1]] = here
        first, last = torch.searchsorted(row.index, torch.tensor([start, start + length])).tolist()
        embeds[number, row.index[first:last] - start] = row.vectors[first:last].detach()
    return embeds, positions


def _check_pictures(params: Params, prompt: Prompt, name: str) -> None:
    """Checks that the parameters can see the prompt's pictures."""
    if not prompt.images.grid:
        return
    if params.vision is None:
        raise ValueError(
            f"{name} has {len(prompt.images.grid)} images or videos, but the parameters have no "
            "vision tower: the checkpoint has none, or it was loaded with vision=False"
        )
    tokens = prompt.tokens[0, prompt.images.index]
    ids = params.config.image_token_id, params.config.video_token_id
    if not torch.isin(tokens, torch.tensor(ids)).all():
        raise ValueError(
            f"{name} was made for another model: its placeholders are the tokens "
            f"{tokens.unique().tolist()}, this model's {list(ids)}"
        )


def _check_no_places(params: Params, tokens: list[int], name: str) -> None:
    """Checks that words alone have no place for a picture: no vector would stand at it."""
    ids = {params.config.image_token_id, params.config.video_token_id}
    places = [token for token in tokens if token in ids]
    if places:
        raise ValueError(
            f"{name} has {len(places)} places for images or videos (token {places[0]}), but none "
            "of those: give messages, or what a Processor made of them"
        )
