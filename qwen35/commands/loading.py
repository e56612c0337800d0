"""Loads the model that a command's options name, in every process."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model.params import Params, VisionParams
    from .launch import Launch


def load_params(
    options: argparse.Namespace,
    ranks: Launch,
    *,
    vision: bool | None = None,
    compile_for: Callable[[Params], object] | None = None,
) -> Params:
    """Loads --model with what the shared options say of its weights and of its positions.

    Args:
        options: those of a command that has model, dtype, weights, head, adapter and check_finite.
        ranks: where it runs.
        vision: whether a vision tower is loaded too; None: if the files hold it.
        compile_for: is called with what is going to be loaded, still without values, where that is
            known and steps are compiled. The files are read meanwhile.

    Raises:
        CheckpointError, ValueError: as `qwen35.load`; in all processes if in one. Or their
            checkpoints differ, or --segments do not fit the layers.
    """
    from ..files.checkpoint import load
    from ..files.expected import expected
    from ..files.likeness import check_same_checkpoint

    check_segments(options, ranks)
    if ranks.processes > 1:
        check_same_checkpoint(options.model, options.adapter)
    context = getattr(options, "context", None)
    if compile_for is not None and _compiles_alone(ranks):
        how = {"dtype": options.dtype, "runtime": ranks.runtime, "vision": vision}
        changed = options.weights or options.head or options.adapter
        coming = None if changed else expected(options.model, **how)
        if coming is not None:
            compile_for(coming if context is None else _extended(coming, context, False))
    params = ranks.on_all_ranks(
        load,
        options.model,
        dtype=options.dtype,
        weights=options.weights,
        head=options.head,
        adapter=options.adapter,
        device=ranks.device,
        runtime=ranks.runtime,
        check_finite=options.check_finite,
        progress=ranks.prints,
        vision=vision,
    )
    if params.vision is not None and ranks.prints:
        _tell_of_uncut(params.vision)
    return params if context is None else _extended(params, context, ranks.prints)


def _compiles_alone(ranks: Launch) -> bool:
    """Whether torch-xla compiles steps, and no other process has to do the same."""
    return ranks.device == "xla" and ranks.processes == 1 and ranks.runtime.backend is None


def check_segments(options: argparse.Namespace, ranks: Launch) -> None:
    """Raises a ValueError if the layers of --model can't be cut in as many as --segments says; says
    so where "auto" finds nothing to cut."""
    from ..model.config import Config
    from ..model.segments import check_cut

    segments = ranks.runtime.segments
    if segments != 1:
        config = ranks.on_all_ranks(Config.from_pretrained, options.model)
        try:
            check_cut(config.layer_types, segments)
        except ValueError as reason:
            if segments != "auto":
                raise
            if ranks.prints:
                print(f"qwen35: note: {reason}: it is one graph", file=sys.stderr)


def model_name(options: argparse.Namespace) -> str:
    """Returns what a report calls the model: as it was asked for, which may be by a hub's name."""
    return asked_model(options) + (f" with {options.adapter}" if options.adapter else "")


def asked_model(options: argparse.Namespace) -> str:
    """Returns the directory, or the hub's name, that stood at the command line."""
    return getattr(options, "asked_model", options.model)


def _tell_of_uncut(vision: VisionParams) -> None:
    """Says where --segments cut the text's layers and not a tower's, which are another number."""
    from ..model.segments import check_cut

    try:
        check_cut([type(block) for block in vision.blocks], vision.runtime.segments, "the tower")
    except ValueError as reason:
        print(f"qwen35: note: {reason}: it is one graph", file=sys.stderr)


def _extended(params: Params, context: int, prints: bool) -> Params:
    """Returns parameters with positions for `context` tokens, and says what those cost."""
    from ..graphs.summary import context_cost

    if prints:
        cost = context_cost(params.config, context, params.dtype, params.runtime.mesh)
        print(cost.render(), file=sys.stderr)
    return dataclasses.replace(params, config=params.config.extended(context))
