"""The models that `agreement` compares: this package's, and one that one process of several has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..generation.buckets import doubling
from ..generation.generate import generate
from ..generation.sampling_settings import Sampling
from ..model.all_ranks import dp_rows_here
from ..model.decoder import forward, logits
from ..model.params import Params
from ..model.state import State, init_state
from ..prompts.tokenizer import TokenizerLike
from ..sharding import process
from ..sharding.mesh import Mesh
from ..xla.compiled import compiled
from ..xla.devices import device_put
from ..xla.progress import compile_all
from .scoring import CHUNK

_BATCH = 8


class Model(Protocol):
    """What is compared."""

    def logits(self, tokens: Sequence[int], last: int) -> Tensor:
        """Returns logits [last, V] float32, on the CPU, after each of the last tokens."""

    def greedy(
        self, prompts: Sequence[Sequence[int]], count: int, ends: Collection[int]
    ) -> list[list[int]]:
        """Writes for each prompt the likeliest tokens, to an end token or `count` of them."""


class OfFirstRank:
    """A `Model` that only the first process of a tp group has; the others get its answers.

    Args:
        make: makes the model, where it is.
        mesh: of the processes.
        rank: this process's.
    """

    def __init__(self, make: Callable[[], Model], mesh: Mesh, rank: int) -> None:
        self._mesh = mesh
        self._model = make() if mesh.coordinates(rank)[1] == 0 else None

    def logits(self, tokens: Sequence[int], last: int) -> Tensor:
        answer = self._model.logits(tokens, last) if self._model is not None else None
        return process.from_first(answer, self._mesh)

    def greedy(
        self, prompts: Sequence[Sequence[int]], count: int, ends: Collection[int]
    ) -> list[list[int]]:
        answer = self._model.greedy(prompts, count, ends) if self._model is not None else None
        return process.from_first(answer, self._mesh)


class Qwen35Model:
    """Our parameters as a `Model`: `forward` for logits, `generate` for tokens.

    Args:
        params: on the device to run on.
        tokenizer: the checkpoint's.
        longest: tokens that a prompt and its continuation have at most.
        chunk: tokens that a step takes.
        progress: draw progress of compilations on standard error.
    """

    def __init__(
        self,
        params: Params,
        tokenizer: TokenizerLike,
        longest: int,
        *,
        chunk: int = CHUNK,
        progress: bool = False,
    ) -> None:
        self.params = params
        self._tokenizer = tokenizer
        self._capacity = min(doubling(longest), params.config.max_context)
        self._chunk = min(chunk, self._capacity)
        self._progress = progress

    def logits(self, tokens: Sequence[int], last: int) -> Tensor:
        params = self.params
        read, project = compiled(_read_step, donate=("state",)), compiled(_logits_step)
        copies = dp_rows_here(params.runtime)  # dp rows that are here all do the same
        # A whole power of two of positions, or somewhat more, so that prompts share a graph.
        positions = -(-doubling(last) // copies) * copies
        state, parts = init_state(params, copies, self._capacity), []
        graphs = [
            ("read", read, (params, state, *self._put_piece((), copies))),
            ("logits", project, (params, self._put_hidden(positions))),
        ]
        compile_all(graphs, self._progress)
        for start in range(0, len(tokens), self._chunk):
            piece = tokens[start : start + self._chunk]
            hidden, state = read(params, state, *self._put_piece(piece, copies))
            parts.append(device_put(hidden, "cpu")[0, : len(piece)])
        result = project(params, self._put_hidden(positions, torch.cat(parts)[-last:]))
        return device_put(result, "cpu")[:last]

    def _put_piece(self, piece: Sequence[int], copies: int) -> tuple[Tensor, Tensor]:
        """Puts the next tokens, the same in all rows, onto the device, and how many they are."""
        rows = torch.tensor([[*piece, *[0] * (self._chunk - len(piece))]] * copies)
        return device_put((rows, torch.tensor([len(piece)] * copies)), self.params.device.type)

    def _put_hidden(self, positions: int, hidden: Tensor | None = None) -> Tensor:
        """Puts hidden states [n, H] onto the device, zeros behind them: [positions, H]."""
        if hidden is None:
            hidden = torch.zeros(0, self.params.config.hidden_size, dtype=self.params.dtype)
        hidden = F.pad(hidden, (0, 0, 0, positions - len(hidden)))
        return device_put(hidden, self.params.device.type)

    def greedy(
        self, prompts: Sequence[Sequence[int]], count: int, ends: Collection[int]
    ) -> list[list[int]]:
        if not prompts:  # a replica's share, where there are fewer than replicas
            return []
        completions = generate(
            self.params,
            self._tokenizer,
            [list(prompt) for prompt in prompts],
            max_new_tokens=count,
            sampling=Sampling(stop=sorted(ends)),
            capacity=self._capacity,
            batch=min(_BATCH, len(prompts)),
            progress=self._progress,
        )
        return [list(completion.tokens) for completion in completions]


@torch.no_grad()
def _read_step(
    params: Params, state: State, tokens: Tensor, lengths: Tensor
) -> tuple[Tensor, State]:
    return forward(params, state, tokens, lengths)


@torch.no_grad()
def _logits_step(params: Params, hidden: Tensor) -> Tensor:
    return logits(params, hidden)
