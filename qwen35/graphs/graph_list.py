"""Lists the graphs that an engine compiles, and those of a call of `generate`, without tracing."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch

from ..files.materialize import abstract_params
from ..generation import buckets
from ..generation.batch import Batch
from ..generation.engine_settings import EngineSettings
from ..generation.generate import PREFILL_CHUNK
from ..model.config import Config
from ..model.params import Runtime
from ..reports.tables import markdown_table
from ..sharding.mesh import Mesh


class Listed(NamedTuple):
    """A graph.

    Attributes:
        name: what it does.
        rows: that it computes; of a prefill step of an engine, those that it reads.
        tokens: of each row.
    """

    name: str
    rows: int
    tokens: int


def of_engine(
    config: Config,
    settings: EngineSettings,
    *,
    mesh: Mesh = Mesh(),
    dtype: torch.dtype | str = torch.bfloat16,
    limited: bool = False,
) -> list[Listed]:
    """Lists the graphs that the warm-up of an engine compiles, all that it needs at this capacity
    but for those of the vision tower.

    Args:
        config: the model, with its vision tower if it has one.
        settings: the engine's.
        mesh, dtype: of its parameters.
        limited: whether requests may have a grammar.
    """
    settings = settings.for_model(config)
    runtime = Runtime(mesh=mesh, rank=0, forms="plain")
    batch = Batch(
        abstract_params(config.text_only(), dtype=dtype, runtime=runtime),
        slots=settings.slots,
        capacity=settings.capacity,
        sizes=buckets.parts(settings.prefill_chunk, settings.prefill_sizes),
        top_logprobs=settings.top_logprobs,
        ends=frozenset(config.eos_token_ids),
    )
    found = []
    for name, step, values in batch.graphs(config.vision is not None, limited):
        arguments = dict(zip(inspect.signature(step).parameters, values, strict=False))
        tokens = arguments.get("tokens")
        one = name in ("recurrent", "window")
        shape = (1 if one else settings.slots, 1) if tokens is None else tokens.shape
        found.append(Listed(name, *shape))
    return found


def of_generate(config: Config, tokens: int, rows: int = 1) -> list[Listed]:
    """Lists the graphs of a call of `generate` without pictures.

    Args:
        config: the model.
        tokens: of the longest prompt.
        rows: prompts that go together.
    """
    size = buckets.rows(rows)
    chunk = buckets.prefill_chunk(min(tokens, config.max_context), PREFILL_CHUNK)
    return [
        Listed("prefill", size, chunk),
        Listed("choose", size, 1),
        Listed("decode_and_choose", size, 1),
    ]


def render(graphs: list[Listed]) -> str:
    """Renders the list as a table."""
    rows = [(one.name, str(one.rows), str(one.tokens)) for one in graphs]
    return markdown_table(("graph", "rows", "tokens"), rows)
