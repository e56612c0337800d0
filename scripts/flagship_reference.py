"""transformers' own model on a checkpoint that does not fit memory: a layer at a time.

`Qwen3_5Model` runs as it is, in float32. A layer's weights are read and dequantised just before it
runs, and dropped after it. How a file's codes become values is written out here, from the format's
definition: nothing of this project has a part in the reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import Qwen3_5Config
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5Model,
    Qwen3_5TextRotaryEmbedding,
    Qwen3_5VisionRotaryEmbedding,
)

_HEAD_ROWS = 8192  # of the vocabulary, at once


class Truth(NamedTuple):
    """What transformers computes, float32.

    hidden: by number of layers, [B, T, H] after so many and the final norm. logits [B, n, V], of
    the last n tokens. image [N, H], of the tower.
    """

    hidden: dict[int, Tensor]
    logits: Tensor
    image: Tensor


class Weights:
    """A checkpoint's tensors, read and dequantised to float32 one by one."""

    def __init__(self, directory: Path) -> None:
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        self._files = index["weight_map"]
        self._handles = {
            name: safe_open(directory / name, framework="pt") for name in set(self._files.values())
        }

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by the rest of their names."""
        names = {
            name.removesuffix("_packed").removeprefix(prefix)
            for name in self._files
            if name.startswith(prefix) and not name.endswith(("_scale", "_shape"))
        }
        return {name: self.rows(prefix + name, slice(None)) for name in names}

    def rows(self, name: str, rows: slice) -> Tensor:
        """Those rows of a tensor."""
        if name + "_packed" in self._files:
            words = self._part(name + "_packed", rows)
            shifts = torch.arange(0, 32, 4, dtype=torch.int32)
            values = ((words[:, :, None] >> shifts) & 15).flatten(1).float() - 8
        else:
            values = self._part(name, rows).float()
        if name + "_scale" in self._files:
            scales = self._part(name + "_scale", rows).float()
            group = values.shape[1] // scales.shape[1]
            values = (values.unflatten(1, (-1, group)) * scales[:, :, None]).flatten(1)
        return values

    def gather(self, name: str, ids: Tensor) -> Tensor:
        """The rows of a matrix at `ids` [...]: [..., columns]."""
        one_by_one = [self._part(name, slice(i, i + 1)) for i in ids.flatten().tolist()]
        return torch.cat(one_by_one).float().unflatten(0, tuple(ids.shape))

    def _part(self, name: str, rows: slice) -> Tensor:
        return self._handles[self._files[name]].get_slice(name)[rows]


@torch.no_grad()
def reference(
    directory: Path,
    tokens: Tensor,
    patches: Tensor,
    grid: Sequence[tuple[int, int, int]],
    depths: Sequence[int],
    last: int,
) -> Truth:
    """Computes hidden states and logits.

    Args:
        directory: the checkpoint.
        tokens: [B, T], pictures' placeholders among them.
        patches, grid: the pictures, in the order of their places.
        depths: numbers of layers after which hidden states are wanted.
        last: how many of each row's tokens to compute logits for.
    """
    weights = Weights(directory)
    config = Qwen3_5Config.from_pretrained(directory, attn_implementation="eager")
    with torch.device("meta"):
        model = Qwen3_5Model(config).eval()
    text = model.language_model
    text.rotary_emb = Qwen3_5TextRotaryEmbedding(config.text_config)
    model.visual.rotary_pos_emb = Qwen3_5VisionRotaryEmbedding(config.vision_config)
    _fill(model.visual, weights.under("model.visual."))
    _fill(text.norm, weights.under("model.language_model.norm."))
    hidden: dict[int, Tensor] = {}

    def follow(number: int, layer: nn.Module) -> None:
        def read(*_: Any) -> None:
            _fill(layer, weights.under(f"model.language_model.layers.{number}."))

        def drop(module: nn.Module, inputs: Any, output: Tensor) -> None:
            layer.to("meta")
            if number + 1 in depths:
                hidden[number + 1] = text.norm(output)

        layer.register_forward_pre_hook(read)
        layer.register_forward_hook(drop)

    for number, layer in enumerate(text.layers):
        follow(number, layer)
    grids = torch.tensor(grid)
    final = model(
        input_ids=tokens,
        inputs_embeds=weights.gather("model.language_model.embed_tokens.weight", tokens),
        pixel_values=patches,
        image_grid_thw=grids,
        mm_token_type_ids=(tokens == config.image_token_id).int(),
        use_cache=False,
    ).last_hidden_state[:, -last:]
    size = config.text_config.vocab_size
    blocks = (slice(row, min(row + _HEAD_ROWS, size)) for row in range(0, size, _HEAD_ROWS))
    logits = torch.cat([final @ weights.rows("lm_head.weight", rows).T for rows in blocks], dim=-1)
    return Truth(hidden, logits, model.visual(patches, grid_thw=grids).pooler_output)


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a module on the meta device its weights, all of them and no other."""
    module.load_state_dict(tensors, strict=True, assign=True)
