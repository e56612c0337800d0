"""The vision tower as pure functions: patches of images and video frames in, token vectors out.

Attention stays within a frame, so every frame is computed by itself (in groups where frames are
small), padded to one of few sizes: `frames` says which. `tower` is the function of one such group;
its graph depends on nothing but the number of frames and their padded patches.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..forms import Weight
from ..model import segments
from ..model.all_ranks import dp_rows_here, on_all_ranks
from ..model.params import VisionBlock, VisionMerger, VisionParams
from ..model.rope import apply_rope
from ..model.segments import SomeLayers
from ..sharding.collectives import all_reduce
from ..xla.chains import chain
from ..xla.compiled import compiled
from ..xla.devices import device_put, indices
from ..xla.progress import show_compilations
from .frames import Frames, groups, parse_grid

_EPS = 1e-6


def encode_images(
    vision: VisionParams,
    patches: Tensor,
    grid: Sequence[Sequence[int]],
    *,
    progress: bool = False,
) -> Tensor:
    """Encodes images and videos to vectors that stand in for token embeddings.

    On XLA parameters it runs graphs that are compiled once per padded size (see
    `frames.padded_patches`), on CPU parameters eagerly and differentiably.

    Args:
        vision: the tower, `params.vision`.
        patches: [N, patch_dim] float, every image after the other, a frame's patches in merge
            order: those that one token is made of stand together.
        grid: per image or video (frames, height, width) in patches; a still image has one frame.
        progress: say on standard error when a graph is compiled.

    Returns:
        [N / merge_factor, out_hidden_size] in the parameters' dtype, in the order of the patches.
        On the CPU whatever the parameters' device: from there they go to their places in prompts,
        and no graph depends on how many there are.

    Raises:
        ValueError: the shapes do not fit each other or the tower, or a patch is not finite.
    """
    with show_compilations(progress):
        return _run(compiled(tower), vision, patches, grid)


def image_hidden_states(
    vision: VisionParams, patches: Tensor, grid: Sequence[Sequence[int]]
) -> Tensor:
    """Computes what `encode_images` gives the merger: [N, hidden_size], one vector per patch."""
    return _run(compiled(hidden_states), vision, patches, grid)


def _run(
    step: Callable[[VisionParams, Frames], Tensor],
    vision: VisionParams,
    patches: Tensor,
    grid: Sequence[Sequence[int]],
) -> Tensor:
    config, copies = vision.config, dp_rows_here(vision.runtime)
    patches = device_put(patches, "cpu")
    sizes = parse_grid(config, patches, grid)
    parts = []
    for group in groups(config, patches.to(vision.dtype), sizes):
        count, frames = int(group.count), len(group.patches)
        if copies > 1:  # the rows of the mesh are for batches; here all of them do the same
            group = Frames(*(torch.cat([tensor] * copies) for tensor in group))
        # Padding is cut off here, on the host: on the device that would be a graph per count.
        out = step(vision, device_put(group, vision.device.type))
        out = device_put(out, "cpu")
        tokens = out.shape[1] * count // group.patches.shape[1]
        parts.append(out[:frames, :tokens].flatten(0, 1))
    return torch.cat(parts)


@on_all_ranks(False)
def tower(vision: VisionParams, frames: Frames) -> Tensor:
    """Turns frames of one size into their tokens [F, P / merge_factor, out_hidden_size].

    What stands in `frames.patches` from `count` on has no effect, whatever it is; the tokens made
    of it are meaningless.
    """
    return _merge(vision, _hidden(vision, frames))


@on_all_ranks(False)
def hidden_states(vision: VisionParams, frames: Frames) -> Tensor:
    """Computes what `tower` gives to the merger: [F, P, hidden_size]."""
    return _hidden(vision, frames)


def _hidden(vision: VisionParams, frames: Frames) -> Tensor:
    batch, length = frames.patches.shape[:2]
    valid = indices(length, vision.device) < frames.count
    # Zero, not only masked in attention: a weight of zero times a NaN is a NaN.
    patches = torch.where(valid[..., None], frames.patches, 0.0)
    x = vision.forms.activations(patches.flatten(0, 1))
    x = vision.forms.matmul(x, vision.patch_proj) + vision.patch_bias
    x = (x.unflatten(0, (batch, length)) + _positions(vision, frames)).flatten(0, 1)
    around = (frames.cos, frames.sin, valid)
    runs = segments.runs(vision.blocks, vision.config, vision.runtime)
    if len(runs) == 1:
        x, _ = _through_blocks(x, around, runs[0], ())
    else:
        x, _ = chain(_through_blocks, x, around, [(run, ()) for run in runs])
    return x.unflatten(0, (batch, length))


def _through_blocks(
    x: Tensor, around: tuple[Tensor, Tensor, Tensor], some: SomeLayers, state: tuple[()]
) -> tuple[Tensor, tuple[()]]:
    """Some blocks, as `chain` wants them, which have no state: x [F·P, H] goes through them."""
    mesh = some.runtime.mesh
    for block in some.layers:
        normed = _layer_norm(x, block.attention_norm, block.attention_norm_bias)
        mixed = _attention(some, block, normed, *around)
        x = x + (all_reduce(mixed, mesh) + block.out_proj_bias)
        normed = _layer_norm(x, block.mlp_norm, block.mlp_norm_bias)
        inner = F.gelu(_affine(some, normed, block.up, block.up_bias), approximate="tanh")
        down = some.forms.matmul(inner, block.down)
        x = x + (all_reduce(down, mesh) + block.down_bias)
    return x, state


def _positions(vision: VisionParams, frames: Frames) -> Tensor:
    """Interpolates the learned grid at the frame's places: [1, P, H]."""
    index, weight = frames.position_index[0], frames.position_weight[0]
    terms = (
        vision.positions.index_select(0, index[:, corner]) * weight[:, corner, None]
        for corner in range(index.shape[1])
    )
    return functools.reduce(operator.add, terms)[None].to(vision.dtype)


def _attention(
    some: SomeLayers, block: VisionBlock, x: Tensor, cos: Tensor, sin: Tensor, valid: Tensor
) -> Tensor:
    """Computes a rank's partial sum [F·P, H] of attention within each frame; x is normed."""
    size = some.config.head_dim
    projected = _affine(some, x, block.qkv, block.qkv_bias).unflatten(0, (-1, valid.shape[1]))
    query, key, value = projected.unflatten(-1, (3, -1, size)).unbind(2)  # [F, P, heads, D]
    query = apply_rope(query, cos, sin) * size**-0.5
    key = apply_rope(key, cos, sin)
    out = some.forms.attend_within(query, key, value, valid)
    return some.forms.matmul(out.flatten(2).flatten(0, 1), block.out_proj)


def _merge(vision: VisionParams, x: Tensor) -> Tensor:
    merger: VisionMerger = vision.merger
    batch = x.shape[0]
    x = _layer_norm(x, merger.norm, merger.norm_bias)
    x = x.flatten(0, 1).unflatten(0, (-1, vision.config.merge_factor)).flatten(1)
    x = F.gelu(_affine(vision, x, merger.up, merger.up_bias))
    x = vision.forms.matmul(x, merger.down)
    x = all_reduce(x, vision.runtime.mesh) + merger.down_bias
    return x.unflatten(0, (batch, -1))


def _affine(some: VisionParams | SomeLayers, x: Tensor, weight: Weight, bias: Tensor) -> Tensor:
    return some.forms.matmul(x, weight) + bias


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Applies a layer norm over the last axis; arithmetic in float32, cast once at the end."""
    y = x.float()
    y = y - y.mean(-1, keepdim=True)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + _EPS)
    return (y * weight.float() + bias.float()).to(x.dtype)
