"""How pictures and videos become patches: sizes, limits and normalisation, from the checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..checks.errors import CheckpointError
from ..checks.json_file import read_object, to_text
from ..checks.values import integer, is_number, positive_number, shown
from ..model.config import VisionConfig

# The fewest and the most tokens of a picture whose size a message asks for.
SIZE_TOKENS = 4, 16384
_BICUBIC = 3
_PROCESSOR = "a processor's settings"
_IMAGES, _VIDEOS = "preprocessor_config.json", "video_preprocessor_config.json"


@dataclass(frozen=True)
class PatchSettings:
    """Of an image processor.

    Attributes:
        min_pixels, max_pixels: the range that a picture is scaled into; for a video, of all its
            frames together.
        patch_size: side of a patch, pixels.
        merge_size: patches that a token has along each side.
        temporal_patch_size: frames in a patch.
        mean, std: per channel, of values from 0 to 1.
        size: the (height, width) that a message asks for, whatever the range; else None.
    """

    min_pixels: int
    max_pixels: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int] | None = None

    @property
    def factor(self) -> int:
        """Pixels along a token's side."""
        return self.patch_size * self.merge_size

    def to_dict(self) -> dict[str, Any]:
        """Writes the content of a processor's file."""
        return {
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
            "temporal_patch_size": self.temporal_patch_size,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "processor_class": "Qwen3VLProcessor",
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Reads the content of a processor's file.

        Raises:
            ValueError: a key is missing, has an impossible value, or asks for something else than
                what the published processors do.
        """
        return cls(**_common(content))


class FrameLimits(NamedTuple):
    """What a message asks of a video's size: the fewest and the most pixels of a frame, and the
    most of the first frames of all temporal patches together. None: it does not say."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None


@dataclass(frozen=True)
class VideoSettings(PatchSettings):
    """Of a video processor.

    Attributes:
        fps: frames sampled per second.
        min_frames, max_frames: the fewest and most sampled (of a video that has as many).
        max_frame_pixels: the most pixels a frame, or None: only the video's budget counts.
        frame_limits: what a message asks for beside that, or None.
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    max_frame_pixels: int | None = None
    frame_limits: FrameLimits | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `PatchSettings.to_dict`."""
        content = super().to_dict() | {"video_processor_type": "Qwen3VLVideoProcessor"}
        del content["image_processor_type"]
        content |= {"fps": self.fps, "min_frames": self.min_frames, "max_frames": self.max_frames}
        if self.max_frame_pixels is not None:
            tokens = self.max_frame_pixels // self.factor**2
            content |= {"cap_pixels_per_frame": True, "max_video_tokens": tokens}
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """As `PatchSettings.from_dict`; published files leave sampling at its defaults."""
        if content.get("do_sample_frames") is False or content.get("num_frames") is not None:
            raise ValueError("do_sample_frames false and num_frames are not supported, only fps")
        common = _common(content)
        fps = positive_number("fps", content.get("fps", cls.fps))
        counts = {
            key: _positive(content, key, getattr(cls, key)) for key in ("min_frames", "max_frames")
        }
        limit = None
        if content.get("cap_pixels_per_frame"):
            factor = common["patch_size"] * common["merge_size"]
            limit = _positive(content, "max_video_tokens", 768) * factor**2
        return cls(**common, fps=float(fps), max_frame_pixels=limit, **counts)


def write_settings(directory: Path, images: PatchSettings, videos: VideoSettings | None) -> None:
    """Writes the settings in the published form, which `read_settings` reads back."""
    (directory / _IMAGES).write_bytes(to_text(images.to_dict()))
    if videos is not None:
        (directory / _VIDEOS).write_bytes(to_text(videos.to_dict()))


def read_settings(
    directory: Path, vision: VisionConfig
) -> tuple[PatchSettings, VideoSettings | None]:
    """The image and the video settings of a checkpoint; the latter None where it has none.

    `processor_config.json`, which transformers 5 writes, comes before `preprocessor_config.json`
    and `video_preprocessor_config.json`, the published form.

    Raises:
        CheckpointError: no image processor's file, or one is damaged or does not fit the tower.
    """
    image = _read(directory, "image_processor", _IMAGES, PatchSettings, vision)
    if image is None:
        raise CheckpointError(
            f"{directory}: no preprocessor_config.json, so the size of pictures is not known"
        )
    return image, _read(directory, "video_processor", _VIDEOS, VideoSettings, vision)


def _read(
    directory: Path, section: str, name: str, kind: type[PatchSettings], vision: VisionConfig
) -> PatchSettings | None:
    together = directory / "processor_config.json"
    content = read_object(together, _PROCESSOR).get(section) if together.is_file() else None
    file = together
    if content is None:
        file = directory / name
        if not file.is_file():
            return None
        content = read_object(file, _PROCESSOR)
    try:
        settings = kind.from_dict(content)
        for key, wanted in (
            ("patch_size", vision.patch_size),
            ("merge_size", vision.spatial_merge_size),
            ("temporal_patch_size", vision.temporal_patch_size),
        ):
            if getattr(settings, key) != wanted:
                raise ValueError(
                    f"{key} is {getattr(settings, key)}, the vision tower's in config.json {wanted}"
                )
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return settings


def _common(content: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"the processor must be an object, not {shown(content)}")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if content.get(key) is False:
            raise ValueError(f"{key} false is not supported")
    if content.get("resample", _BICUBIC) != _BICUBIC:
        raise ValueError(f"resample {shown(content['resample'])} is not supported: 3, bicubic, is")
    scale = content.get("rescale_factor", 1 / 255)
    if not is_number(scale) or not math.isclose(scale, 1 / 255, rel_tol=1e-6):
        raise ValueError(f"rescale_factor {shown(scale)} is not supported: 1/255 is")
    size = content.get("size") or {}
    if not isinstance(size, dict):
        raise ValueError(f"size must be an object, not {shown(size)}")
    limits = {
        "min_pixels": content.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": content.get("max_pixels") or size.get("longest_edge"),
    }
    if None in limits.values():
        raise ValueError("size must have shortest_edge and longest_edge, in pixels of an area")
    fields = {key: _positive(limits, key) for key in limits}
    if fields["min_pixels"] > fields["max_pixels"]:
        raise ValueError(f"min_pixels {limits['min_pixels']} is above {limits['max_pixels']}")
    fields["patch_size"] = _positive(content, "patch_size")
    fields["merge_size"] = _positive(content, "merge_size", 2)
    fields["temporal_patch_size"] = _positive(content, "temporal_patch_size", 2)
    return fields | {key: _channels(content, key) for key in ("mean", "std")}


def _channels(content: dict[str, Any], key: str) -> tuple[float, float, float]:
    values = content.get("image_" + key)
    numbers = isinstance(values, list | tuple) and all(map(is_number, values))
    if not numbers or len(values) != 3 or (key == "std" and min(values) <= 0):
        raise ValueError(f"image_{key} must be three numbers, not {shown(values)}")
    return tuple(map(float, values))


def _positive(content: dict[str, Any], key: str, default: int | None = None) -> int:
    return integer(key, content.get(key, default))
