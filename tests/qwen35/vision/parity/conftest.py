"""One block of transformers' vision tower and ours with the same weights, module by module.

Our modules are the tower itself, cut down to one of them: the patches are hidden states, which an
embedding by the unit matrix, without bias and positions, lets pass.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

from qwen35.model.config import VisionConfig
from qwen35.model.params import VisionParams
from qwen35.vision.frames import Frames

SIZES = {
    "small": {"hidden_size": 48, "num_heads": 4, "intermediate_size": 80, "out_hidden_size": 64},
    "odd": {"hidden_size": 56, "num_heads": 14, "intermediate_size": 33, "out_hidden_size": 51},
    "merge_3": {"hidden_size": 24, "num_heads": 2, "spatial_merge_size": 3, "out_hidden_size": 20},
}
_COMMON = {"depth": 1, "patch_size": 4, "num_position_embeddings": 25, "intermediate_size": 40}


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A transformers tower of one block, with random weights in float32, and ours."""

    model: Qwen3_5VisionModel
    params: VisionParams

    @property
    def config(self) -> VisionConfig:
        return self.params.config

    def only(self, *blocks) -> VisionParams:
        """Our tower with these blocks, for which patches are hidden states."""
        width = self.config.hidden_size
        return dataclasses.replace(
            self.params,
            patch_proj=torch.eye(width),
            patch_bias=torch.zeros(width),
            positions=torch.zeros(1, width),
            blocks=blocks,
        )

    def hidden(self, frames: int, patches: int) -> torch.Tensor:
        """Random hidden states [F, P, H] with what real ones have: neighbours that are alike."""
        generator = torch.Generator().manual_seed(frames + patches)
        drift = torch.randn(frames, patches, 1, generator=generator).cumsum(1) * 0.1
        noise = torch.randn(frames, patches, self.config.hidden_size, generator=generator)
        return 0.2 + drift + noise

    def frames(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Frames:
        """Frames of hidden states [F, P, H] and rotations [P, head_dim / 2], and a token of NaN."""
        pad = (0, 0, 0, self.config.merge_factor)
        patches = torch.nn.functional.pad(hidden, pad, value=float("nan"))
        length = patches.shape[1]
        rotations = (torch.nn.functional.pad(table, pad)[None] for table in (cos, sin))
        index = torch.zeros(1, length, 4, dtype=torch.int32)
        count = torch.tensor([[hidden.shape[1]]], dtype=torch.int32)
        return Frames(patches, index, torch.zeros(1, length, 4), *rotations, count)


@pytest.fixture
def pair(forms, build_tower) -> Callable[[str], Pair]:
    """pair(size): a tower of `SIZES`, under each of the forms."""
    return lambda size: Pair(*build_tower(_COMMON | SIZES[size], forms, freeze))


def freeze(model: Qwen3_5VisionModel) -> None:
    """No result needs a gradient."""
    model.requires_grad_(False)
