"""What a graph of the plain form is made of: collectives, reductions, instructions at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..model.config import FULL, Config, VisionConfig

# The most instructions of the plain form, in bfloat16 and split over a mesh, and a few to spare.
_DELTANET_STEP, _DELTANET_CHUNKS, _ATTENTION, _OTHERS = 340, 810, 460, 200
# More in a step of an engine: what keeps inactive rows as they are; for each layer, where rows have
# lengths; where positions are given with them.
_ENGINE, _MASKED, _POSITIONS = 60, 45, 80
_VISION_BLOCK, _VISION_OTHERS = 350, 215
QUANTISED = 12  # more of a weight that is converted, and its product scaled
KERNEL = 15  # more of an NKI kernel's step than of the portable one: a decay's series, the call
FIRST, LAST = "first", "last"  # the graphs around the layers, where a step is cut
GROUPED = 9  # more where that is done group by group


@dataclass(frozen=True)
class Design:
    """What a graph is made of.

    Attributes:
        collectives: how many of each opcode, alone none.
        reductions: the most there may be.
        instructions: the most there may be.
        weights: whether it computes the model, so that all weights are arguments.
        donates: the arguments whose memory the results take.
        splits_logits: whether logits stay with the ranks that computed them.
        kernels: the fewest calls of NKI kernels, where DeltaNet layers are those.
    """

    collectives: dict[str, int]
    reductions: int
    instructions: int
    weights: bool = True
    donates: tuple[str, ...] = ("state",)
    splits_logits: bool = False
    kernels: int = 0


def model_design(
    config: Config | VisionConfig,
    *,
    one_token: bool,
    positions: bool,
    lengths: bool = False,
    donates: tuple[str, ...] = ("state",),
    splits_logits: bool = False,
    decodes: bool = False,
) -> Design:
    """Designs a step of the model, or the vision tower.

    Where a step `decodes` other rows besides, these have mixers of their own, and all else is
    shared.

    Collectives: two all-reduces a layer, one for the embedding, one gather of the logits unless
    they stay split; in the tower two a layer and one in the merger. Reductions: a norm is one, a
    softmax two. Queries and keys are normed at once. A layer norm is two, as are positions of
    images: their highest, of the three rows and of all tokens.
    """
    if isinstance(config, VisionConfig):
        return Design(
            {"all-reduce": 2 * config.depth + 1},
            reductions=(2 + 2 + 2) * config.depth + 2,
            instructions=_VISION_BLOCK * config.depth + _VISION_OTHERS,
            donates=donates,
        )
    layers, kinds = config.num_hidden_layers, config.layer_types
    mixers, instructions = _mixers(kinds), _instructions(kinds, one_token)
    masks = lengths * (_MASKED * layers + positions * _POSITIONS)
    if decodes:
        instructions += _instructions(kinds, True)
        instructions += _ENGINE + _MASKED * layers
        mixers *= 2
    return Design(
        {"all-reduce": 2 * layers + 1, "all-gather": int(not splits_logits)},
        reductions=2 * layers + mixers + 1 + 2 * positions,
        instructions=instructions + _OTHERS + splits_logits * _ENGINE + masks,
        donates=donates,
        splits_logits=splits_logits,
        kernels=sum(kind != FULL for kind in kinds) * (2 if decodes else 1),
    )


def launch_design(
    config: Config | VisionConfig,
    name: str,
    layers: Sequence[int],
    *,
    one_token: bool,
    positions: bool,
    states: Sequence[str] = ("state",),
    engine: bool = False,
) -> Design:
    """Designs one of the graphs that a step of the model, or the tower, is cut into (`launches`).

    Args:
        config: of the text model, or the tower.
        name: the graph's.
        layers: that run in it, or blocks, by number.
        one_token, positions: as for `model_design`.
        states: the paths of what the layers replace; the second is of rows that the step decodes
            besides.
        engine: whether it is an engine's step: rows have lengths, and logits, which stand beside
            the states, stay split and replace others.
    """
    tower, count = isinstance(config, VisionConfig), len(layers)
    others = _VISION_OTHERS if tower else _OTHERS
    others += engine * (_ENGINE + positions * _POSITIONS)
    if name == FIRST:
        reduced = {} if tower else {"all-reduce": 1}
        return Design(reduced, 0, others, weights=False, donates=())
    if name == LAST:
        joined = {"all-reduce": 1} if tower else {"all-gather": int(not engine)}
        reductions = 2 if tower else 1 + 2 * positions
        replaced = [f"{state}.{part}" for state in states for part in ("position", "rope_offset")]
        if engine:
            replaced += [f"{state.removesuffix('state')}logits" for state in states]
        how = {"weights": False, "donates": tuple(replaced), "splits_logits": engine}
        return Design(joined, reductions, others, **how)
    if isinstance(config, VisionConfig):
        return Design({"all-reduce": 2 * count}, 6 * count, _VISION_BLOCK * count)
    kinds = [config.layer_types[layer] for layer in layers]
    beside = len(states) > 1
    instructions = _instructions(kinds, one_token) + beside * _instructions(kinds, True)
    return Design(
        {"all-reduce": 2 * count},
        reductions=2 * count + _mixers(kinds) * len(states),
        instructions=instructions + engine * _MASKED * count * len(states),
        donates=tuple(f"{state}.layers" for state in states),
        kernels=sum(kind != FULL for kind in kinds) * len(states),
    )


def _mixers(kinds: Sequence[str]) -> int:
    """Counts the reductions in mixers."""
    return sum(3 if kind == FULL else 2 for kind in kinds)


def _instructions(kinds: Sequence[str], one_token: bool) -> int:
    """Counts the instructions of layers at most."""
    deltanet = _DELTANET_STEP if one_token else _DELTANET_CHUNKS
    return sum(_ATTENTION if kind == FULL else deltanet for kind in kinds)
