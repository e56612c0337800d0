"""Pictures to patches: opening, colour, size and normalisation, as the published processor does."""

from __future__ import annotations

import base64
import importlib.util
import io
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .settings import SIZE_TOKENS, PatchSettings

# Of the file, before resizing. A bomb of a few kilobytes can claim billions of pixels.
MAX_SOURCE_PIXELS = 2**27
_MAX_ASPECT_RATIO = 200
# Brands of ISO/IEC 23008-12 whose pictures are HEVC, and the one that phones write for them.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def read_image(source: Any, *, max_source_pixels: int = MAX_SOURCE_PIXELS) -> Image.Image:
    """Any picture as an upright RGB image.

    The orientation that EXIF notes is applied, transparency is laid on white, palettes and other
    colour spaces are converted, 16-bit values are scaled to 8. Of an animation the first frame.

    Args:
        source: a Pillow image; a path; a `file:` or `data:` URL; the bytes of a file or a binary
            file object (HEIC by pillow-heif); or an array [H, W], [H, W, C] or [C, H, W] with C 1,
            3 or 4 (the fourth is alpha), of bool, integers 0 to 255, uint16, or floats 0 to 1.
        max_source_pixels: the most that the picture may have, looked up in the file's header.

    Raises:
        ValueError: it is not a picture, or damaged, empty, too large, or has values out of range.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, "the image", max_source_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _open(io.BytesIO(source), "the image's bytes", max_source_pixels)
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        content = data_url(text, "image") if isinstance(source, str) else None
        if content is not None:
            return _open(io.BytesIO(content), "the data: URL", max_source_pixels)
        path = local_path(text, "image")
        with path.open("rb") as file:
            return _open(file, str(path), max_source_pixels)
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return _open(source, name if isinstance(name, str) else "the file", max_source_pixels)
    if hasattr(source, "__array__"):
        return _upright_rgb(_from_array(np.asarray(source)), "the array", max_source_pixels)
    raise ValueError(
        f"a {type(source).__name__} is no picture: give a Pillow image, a path, bytes, a binary "
        "file or an array"
    )


def local_path(text: str, kind: str) -> Path:
    """The existing file that a path or a `file:` URL names."""
    url = urlparse(text)
    if url.scheme in ("http", "https"):
        raise ValueError(f"{text}: nothing is downloaded; save the {kind} and give its path")
    path = Path(unquote(url.path) if url.scheme == "file" else text)
    try:
        found = path.is_file()
    except (OSError, ValueError):  # too long for a name, or a NUL in it: no path at all
        found = False
    if not found:
        name = text if len(text) <= 200 else text[:200] + "…"
        raise ValueError(f"{name}: no such {kind} file")
    return path


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The size that a picture is brought to: sides in multiples of `factor`, aspect about kept.

    Each side is rounded to the nearest multiple (halves to even); where that leaves the range of
    pixels, both are scaled into it instead, rounded down at the upper end and up at the lower.

    Raises:
        ValueError: a side is 0, or one is more than 200 times the other.
    """
    return fit(1, 1, height, width, factor, min_pixels, max_pixels)


def fit(
    frames: int,
    padded_frames: int,
    height: int,
    width: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """`smart_resize` for the range of pixels of all frames together.

    The range is checked with `padded_frames`, and scaled into with `frames`: so does the published
    processor.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {width} x {height} pixels is empty")
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"a picture of {width} x {height} pixels is too long: one side may be at most "
            f"{_MAX_ASPECT_RATIO} times the other"
        )
    sides = [round(side / factor) * factor for side in (height, width)]
    pixels = padded_frames * sides[0] * sides[1]
    if pixels > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        sides = [
            max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
        ]
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return sides[0], sides[1]


def image_patches(
    image: Image.Image, settings: PatchSettings
) -> tuple[Tensor, tuple[int, int, int]]:
    """A picture as the vision tower's input.

    Args:
        image: RGB.
        settings: sizes and normalisation.

    Returns:
        patches [h * w, patch_dim] float32, and the grid (1, h, w) in patches.
    """
    if settings.size is not None:
        return patchify([image], *exact_size(settings), settings)
    height, width = smart_resize(
        image.height,
        image.width,
        factor=settings.factor,
        min_pixels=settings.min_pixels,
        max_pixels=settings.max_pixels,
    )
    return patchify([image], height, width, settings)


def exact_size(settings: PatchSettings) -> tuple[int, int]:
    """The size nearest to the one that a message asks for, as qwen-vl-utils finds it: from 4 to
    16,384 tokens, whatever the checkpoint's range."""
    assert settings.size is not None
    low, high = (tokens * settings.factor**2 for tokens in SIZE_TOKENS)
    height, width = (max(settings.factor, side) for side in settings.size)
    return smart_resize(height, width, factor=settings.factor, min_pixels=low, max_pixels=high)


def patchify(
    frames: Iterable[Image.Image], height: int, width: int, settings: PatchSettings
) -> tuple[Tensor, tuple[int, int, int]]:
    """Frames of RGB, resized to height x width, as patches in merge order.

    The last frame is repeated until the frames fill the temporal patches: a still image becomes a
    pair. A patch is flattened as (channel, frame, row, column); the patches that the merger joins
    stand together, and their groups row by row.

    Returns:
        patches [t * h * w, patch_dim] float32, and the grid (t, h, w) in patches.
    """
    planes = torch.from_numpy(np.stack([_planes(frame, height, width) for frame in frames]))
    mean, std = (255 * torch.tensor(v)[:, None, None] for v in (settings.mean, settings.std))
    pixels = planes.float().sub_(mean).div_(std)  # [T, 3, height, width]
    size, merge, span = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    missing = -len(pixels) % span
    if missing:
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    grid = len(pixels) // span, height // size, width // size
    blocks = pixels.view(
        grid[0], span, 3, grid[1] // merge, merge, size, grid[2] // merge, merge, size
    )
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), -1), grid


def _planes(frame: Image.Image, height: int, width: int) -> np.ndarray:
    """[3, height, width] uint8."""
    if frame.size != (width, height):
        frame = frame.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(frame).transpose(2, 0, 1))


def _open(file: Any, name: str, max_source_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow's own limit warns; the one below refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _open_heic(file, name) if _is_heic(file) else Image.open(file)
    except _NoReader as error:
        raise ValueError(str(error)) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}") from None
    except Exception as error:  # damaged headers make Pillow raise nearly anything
        raise ValueError(f"{name}: not a picture that Pillow can read ({error})") from None
    with image:
        return _upright_rgb(image, name, max_source_pixels)


class _NoReader(Exception):
    """A picture's form needs a package that is not installed."""


def _is_heic(file: Any) -> bool:
    """Tells whether a picture is of HEIF's kinds that hold HEVC, as phones save them."""
    start = file.tell()
    head = file.read(64)
    file.seek(start)
    # The last two brands are of any picture in HEIF; what is AVIF as well, Pillow reads.
    return head[4:8] == b"ftyp" and head[8:12] in _HEIC and b"avif" not in head


def _open_heic(file: Any, name: str) -> Image.Image:
    """Opens a HEIC picture, upright already; Pillow's own list of readers stays as it is."""
    if importlib.util.find_spec("pillow_heif") is None:
        raise _NoReader(
            f"{name}: a HEIC picture, which needs pillow-heif: pip install 'qwen35[heic]'"
        )
    from pillow_heif import HeifImageFile

    return HeifImageFile(file)


def _upright_rgb(image: Image.Image, name: str, max_source_pixels: int) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"{name}: a picture of {width} x {height} pixels is empty")
    if width * height > max_source_pixels:
        raise ValueError(
            f"{name}: {width} x {height} is {width * height:,} pixels, over the limit of "
            f"{max_source_pixels:,}; scale it down first"
        )
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # damaged data makes Pillow raise nearly anything
        raise ValueError(f"{name}: the picture is damaged or truncated ({error})") from None
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_array(_sixteen_bits(np.asarray(image), image.mode, name))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _sixteen_bits(values: np.ndarray, mode: str, name: str) -> np.ndarray:
    """Pillow's integer modes hold 16-bit files (mode I in 32 bits); F could mean anything."""
    if mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"{name}: mode {mode} with values from {values.min()} to {values.max()} has no "
            "agreed meaning as grey; convert it to 8 or 16 bits first"
        )
    return values.astype(np.uint16)


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"an array of shape {list(shape)} is no picture: [H, W], [H, W, C] or [C, H, W] with "
            "C 1, 3 or 4"
        )
    if array.size == 0:
        raise ValueError(f"an array of shape {list(shape)} has no pixels")
    return Image.fromarray(_eight_bits(array.squeeze(2) if array.shape[2:] == (1,) else array))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if kind == "b":
        return array.astype(np.uint8) * 255
    if kind not in "iuf":
        raise ValueError(f"an array of {array.dtype} is no picture: integers or floats are")
    if kind == "f" and not np.isfinite(array).all():
        raise ValueError(
            f"the picture has {int((~np.isfinite(array)).sum())} values that are NaN or infinite"
        )
    highest = 1 if kind == "f" else 255
    if array.min() < 0 or array.max() > highest:
        raise ValueError(
            f"the picture's {array.dtype} values go from {array.min()} to {array.max()}; they "
            f"must be from 0 to {highest}"
        )
    return np.rint(array * (255 // highest)).astype(np.uint8)


def data_url(text: str, kind: str) -> bytes | None:
    """Returns what a base64 `data:` URL holds, and None of any other text.

    Line ends and percent signs in it are undone, as browsers do, and letters' case in its header
    does not count.

    Raises:
        ValueError: it is a `data:` URL, but not of base64.
    """
    text = text.strip()
    if text[:5].lower() != "data:":
        return None
    header, comma, data = text.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ValueError(f"a data: URL must be data:{kind}/...;base64,...")
    try:
        return base64.b64decode("".join(unquote(data).split()), validate=True)
    except ValueError as error:
        raise ValueError(f"the data: URL is not base64 ({error})") from None
