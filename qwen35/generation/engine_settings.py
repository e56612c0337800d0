"""How much an engine holds and does at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..checks.values import integer
from ..model.config import Config
from .sampling_settings import Sampling
from .thinking import ThinkingBudget, check_asked

# Smaller than `generate`'s: requests that run wait while a chunk is read.
PREFILL_CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What `Engine` takes as keywords.

    Attributes:
        slots: requests that run at once.
        capacity: tokens that a slot holds, prompt and continuation.
        max_capacity: where larger, a request that needs more makes the slots grow to the next
            power of two, which compiles anew. None is `capacity`: nothing is compiled later.
        prefill_chunk: the most prompt tokens that one prefill step takes, at most the capacity.
        prefill_sizes: how many sizes of such a step there are, in equal parts of the chunk: the
            smallest that fits is taken, and each is a graph.
        budget: prompt tokens, in whole steps, that are read between two decode steps: more gets
            new requests started sooner, less keeps the running ones going. None follows the load:
            one chunk for each free slot while nothing runs, fewer the more runs, at least one.
        queue: requests that may wait.
        cache_bytes: host memory for the prefix cache; 0 does without.
        snapshot_every: tokens of a prompt between two snapshots for the prefix cache.
        top_logprobs: the most likely tokens that a request can have reported.

    Raises:
        ValueError: one is out of range.
    """

    slots: int = 8
    capacity: int = 2048
    max_capacity: int | None = None
    prefill_chunk: int = PREFILL_CHUNK
    prefill_sizes: int = 8
    budget: int | None = None
    queue: int = 256
    cache_bytes: int = 1 << 30
    snapshot_every: int = 256
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            least = 0 if field.name in ("cache_bytes", "top_logprobs") else 1
            object.__setattr__(self, field.name, integer(field.name, value, least))

    def for_model(self, config: Config) -> EngineSettings:
        """Returns them with nothing left open: capacities within the model's positions, a chunk
        within the capacity.

        Raises:
            ValueError: more likely tokens are asked for than the vocabulary has.
        """
        integer("top_logprobs", self.top_logprobs, 0, config.vocab_size)
        capacity = min(self.capacity, config.max_context)
        most = min(max(capacity, self.max_capacity or 0), config.max_context)
        return dataclasses.replace(
            self,
            capacity=capacity,
            max_capacity=most,
            prefill_chunk=min(self.prefill_chunk, capacity),
        )

    def budget_for(self, running: int) -> int:
        """Returns the prompt tokens to read before the next decode step, of which at least one
        prefill step is read.

        A decode step takes about as long for one request as for all slots: while few run and
        others wait, reading first saves more steps than it holds up.
        """
        if self.budget is not None:
            return self.budget
        return self.prefill_chunk * max(1, (self.slots - running) // max(1, running))

    def check(
        self,
        tokens: int,
        max_new_tokens: int,
        sampling: Sampling,
        thinking: ThinkingBudget | None,
        vocabulary: int,
    ) -> None:
        """Checks a request with a prompt of so many tokens, on settings with nothing left open.

        Raises:
            ValueError: it does not fit, or asks for what the settings do not have.
        """
        assert self.max_capacity is not None  # `for_model` resolves it
        needed = tokens + max_new_tokens
        if needed > self.max_capacity:
            raise ValueError(
                f"the prompt has {tokens} tokens and {max_new_tokens} more are asked for: "
                f"{needed} in all, over the engine's capacity of {self.max_capacity}"
            )
        check_asked(sampling, thinking, vocabulary)
        if (sampling.logprobs or 0) > self.top_logprobs:
            raise ValueError(
                f"logprobs is {sampling.logprobs}, over the engine's top_logprobs of "
                f"{self.top_logprobs}"
            )
