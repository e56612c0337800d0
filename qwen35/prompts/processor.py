"""Messages with text, images and videos to what `prefill` and `encode_images` take."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import hub
from ..checks.errors import CheckpointError
from ..checks.values import shown
from ..files import aside
from ..files.extras import PROCESSOR_FILES, TOKENIZER_FILES
from ..model.config import Config
from .images import MAX_SOURCE_PIXELS, image_patches, read_image
from .message_parts import known_part
from .messages import for_template, render
from .part_options import check_keys, frames_wanted, image_settings, video_settings
from .settings import PatchSettings, VideoSettings, read_settings, write_settings
from .tokenizer import Tokenizer
from .video import read_video

# Where a part of a message keeps its picture: Hugging Face's keys and OpenAI's.
_SOURCES = {kind: (kind, "path", "url", "base64", kind + "_url") for kind in ("image", "video")}


class Images(NamedTuple):
    """The pictures of a prompt, in the order of their places.

    patches [N, patch_dim] float32, those of all images and videos one after the other; grid, their
    (t, h, w) in patches; index [N / merge_factor] int64, the prompt's token that each row of
    `encode_images(vision, patches, grid)` stands at.
    """

    patches: Tensor
    grid: tuple[tuple[int, int, int], ...]
    index: Tensor  # type: ignore[assignment]  # the field takes the place of tuple.index


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt for `prefill`.

    Attributes:
        text: the rendered chat, one placeholder for each image and each frame of a video.
        tokens: [1, T] int64.
        positions: [3, 1, T] int64, the rotary positions (t, h, w).
        images: its pictures; without any, no patches and no grid.
    """

    text: str
    tokens: Tensor
    positions: Tensor
    images: Images

    def embeds(self, vision: Tensor) -> Tensor:
        """Puts what `encode_images` made of `images`, [n, H], at its tokens: [1, T, H], else zeros.

        Raises:
            ValueError: n is another number than that of the places.
        """
        if vision.shape[0] != self.images.index.shape[0]:
            raise ValueError(
                f"{vision.shape[0]} image tokens for {self.images.index.shape[0]} places in the "
                "prompt"
            )
        index = self.images.index.to(vision.device)
        empty = vision.new_zeros(self.tokens.shape[1], vision.shape[1])
        return empty.index_copy(0, index, vision)[None]


class Picture(NamedTuple):
    """An image or a video, read: patches [n, patch_dim], their grid (t, h, w) and, of a video, the
    second of each temporal patch."""

    patches: Tensor
    grid: tuple[int, int, int]
    timestamps: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Processor:
    """A checkpoint's tokenizer, chat template and picture settings.

    Calling it with messages gives a `Prompt`; in `generate` and `stream` it stands where a
    tokenizer does, and lets prompts be messages.

    Attributes:
        tokenizer: the checkpoint's.
        config: the model's configuration, for the placeholders' ids.
        images: settings of images.
        videos: settings of videos, or None: the checkpoint takes none.
        max_source_pixels: the most pixels that a picture or a frame may have before resizing.
        wrap_videos: whether a video's frames, each between its own vision_start and vision_end,
            stand together between the pair that the chat template writes. transformers 5.23 keeps
            that pair; in earlier versions the frames' own replaced it, which is False.
    """

    tokenizer: Tokenizer
    config: Config
    images: PatchSettings
    videos: VideoSettings | None = None
    max_source_pixels: int = MAX_SOURCE_PIXELS
    wrap_videos: bool = True

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Processor:
        """Reads the files of a checkpoint directory, or of a hub's model by its name.

        Raises:
            CheckpointError: a file is missing or damaged, the files don't fit each other, or the
                checkpoint has no vision tower.
        """
        directory = hub.directory_of(path, hub.TOKENIZER)
        config = Config.from_pretrained(directory)
        if config.vision is None:
            raise CheckpointError(f"{directory}: a text-only checkpoint takes no pictures")
        images, videos = read_settings(directory, config.vision)
        tokenizer = Tokenizer.from_pretrained(directory)
        processor = cls(tokenizer, config, images, videos)
        for name, token in processor._special.items():
            wanted = getattr(config, name + "_token_id")
            found = tokenizer.hf.convert_tokens_to_ids(token)
            if found != wanted:
                raise CheckpointError(
                    f"{directory}: the tokenizer's {token} is {found}, config.json's "
                    f"{name}_token_id {wanted}"
                )
        return processor

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the tokenizer's files and the settings of pictures, in their published form.

        They take the place of others' as one switch (`aside`).

        Args:
            directory: made if it is not there; other files in it stay.

        Raises:
            OSError: it can't be written; then nothing has changed.
        """
        directory = Path(directory)
        aside.make_directory(directory)
        old = (*TOKENIZER_FILES, *PROCESSOR_FILES)
        with aside.switched(directory, "tokenizer.json", old) as new:
            self.tokenizer.write_files(new)
            write_settings(new, self.images, self.videos)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generation."""
        return self.tokenizer.end_token_ids

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text."""
        return self.tokenizer.encode(text)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of token ids."""
        return self.tokenizer.decode(tokens, skip_special_tokens)

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **template: Any,
    ) -> Prompt:
        """Renders a chat and prepares its pictures.

        Args:
            messages: dicts with a `role` and a `content`: a text, or a list of parts. A part is
                `{"type": "text", "text": …}`,
                `{"type": "image", "image": …}` (or `path`, `url`, `base64`),
                `{"type": "image_url", "image_url": {"url": …}}`,
                `{"type": "video", "video": …}` (or `path`, `url`, `base64`), with `fps`,
                `sample_fps` or `timestamps` if it is given as frames, or
                `{"type": "video_url", "video_url": {"url": …}}`.
                Pictures are what `read_image` and `read_video` take, or what `read` returned. A
                part may also have the keys of `part_options.OPTIONS`, which qwen-vl-utils
                documents: `max_pixels`, `resized_height`, `nframes`, `video_start`, …
            add_generation_prompt: end with the start of the assistant's turn.
            **template: further variables of the chat template, e.g. `enable_thinking=False`.

        Raises:
            ValueError: a message, a part or a picture can't be used, or a part has a key that is
                not known; a text writes a placeholder itself, or the template makes no place for a
                picture.
        """
        pictures: dict[str, list[Picture]] = {"image": [], "video": []}
        plain = [
            self._read_message(number, message, pictures)
            for number, message in enumerate(for_template(messages))
        ]
        text = render(self.tokenizer.hf, plain, add_generation_prompt, template)
        for kind, found in pictures.items():
            places = text.count(self._special[kind])
            if places != len(found):
                raise ValueError(
                    f"the messages have {len(found)} {kind}s, but the rendered chat has {places} "
                    f"places for one ({self._special[kind]}): a text must not write it, and the "
                    "chat template must, once each"
                )
        text = self._spread_videos(text, pictures["video"])
        return self._expand(text, pictures)

    @property
    def _special(self) -> dict[str, str]:
        names = {"image": "image_pad", "video": "video_pad"}
        names |= {name: name for name in ("vision_start", "vision_end")}
        return {name: f"<|{token}|>" for name, token in names.items()}

    def _read_message(
        self, number: int, message: dict[str, Any], pictures: dict[str, list[Picture]]
    ) -> dict[str, Any]:
        """Returns the message as templates know it, and adds its pictures to `pictures`."""
        content = message.get("content")
        if content is None or isinstance(content, str):
            return message
        if not isinstance(content, Sequence):
            raise ValueError(f"message {number}: content must be a text or a list of parts")
        parts = []
        for place, part in enumerate(content):
            where = f"message {number}, part {place}"
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                raise ValueError(f"{where}: a dict with a type is needed, not {shown(part)}")
            kind = part["type"]
            if kind == "text" and isinstance(part.get("text"), str):
                check_keys(where, part, "text", ("text",))
                parts.append({"type": "text", "text": part["text"]})
            elif kind in _SOURCES:
                try:
                    pictures[kind].append(self.read(part))
                except ValueError as error:
                    raise ValueError(f"{where} ({kind}): {error}") from None
                parts.append({"type": kind})
            else:
                raise ValueError(
                    f"{where}: type {shown(kind)} is not known, or has no text: known are text, "
                    "image, image_url, video, video_url, input_text, input_image"
                )
        if all(part["type"] == "text" for part in parts):  # some templates know only texts
            return {**message, "content": "".join(part["text"] for part in parts)}
        return {**message, "content": parts}

    def read(self, part: Mapping[str, Any]) -> Picture:
        """Reads the picture of a message's part, which can stand in for its source afterwards: a
        conversation that is rendered again and again then reads it once.

        Raises:
            ValueError: it can't be read.
        """
        part = known_part(part)
        kind, names = part["type"], _SOURCES[part["type"]]
        check_keys("the part", part, kind, names)
        keys = [key for key in names if part.get(key) is not None]
        if len(keys) != 1:
            raise ValueError(f"exactly one of {', '.join(names)} is needed")
        source = part[keys[0]]
        if isinstance(source, Picture):
            return source
        if isinstance(source, Mapping):  # OpenAI's {"url": …}
            source = source.get("url")
        if keys[0] == "base64":
            source = f"data:;base64,{source}"
        limit = self.max_source_pixels
        if kind == "image":
            settings = image_settings(part, self.images)
            image = read_image(source, max_source_pixels=limit)
            return Picture(*image_patches(image, settings))
        if self.videos is None:
            raise ValueError(
                "the checkpoint has no video_preprocessor_config.json, so how to sample and "
                "resize videos is not known"
            )
        settings, frames = video_settings(part, self.videos), frames_wanted(part)
        return Picture(*read_video(source, settings, **frames, max_source_pixels=limit))

    def _spread_videos(self, text: str, videos: list[Picture]) -> str:
        """Puts one placeholder per frame, each after its time, instead of one per video."""
        start, end = self._special["vision_start"], self._special["vision_end"]
        place = self._special["video"]
        if not self.wrap_videos:
            text = text.replace(start + place + end, place)
        pieces = text.split(place)
        spread = [
            "".join(f"<{second:.1f} seconds>{start}{place}{end}" for second in video.timestamps)
            for video in videos
        ]
        return pieces[0] + "".join(
            frames + piece for frames, piece in zip(spread, pieces[1:], strict=True)
        )

    def _expand(self, text: str, pictures: dict[str, list[Picture]]) -> Prompt:
        """Puts a token per merged patch in place of each placeholder, and counts positions."""
        ids = {self.config.image_token_id: "image", self.config.video_token_id: "video"}
        frames = {kind: _frames(found) for kind, found in pictures.items()}
        merge = self.images.merge_size
        tokens: list[int] = []
        positions, index, ordered = [], [], []
        following = 0
        for is_place, group in itertools.groupby(self.tokenizer.encode(text), ids.__contains__):
            run = list(group)
            if not is_place:
                tokens += run
                positions.append(following + torch.arange(len(run)).expand(3, -1))
                following += len(run)
                continue
            for token in run:
                picture, (_, rows, columns) = next(frames[ids[token]])
                if picture is not None:
                    ordered.append(picture)
                rows, columns = rows // merge, columns // merge
                index.append(torch.arange(len(tokens), len(tokens) + rows * columns))
                tokens += [token] * (rows * columns)
                positions.append(following + _grid_positions(rows, columns))
                following += max(rows, columns)
        if not tokens:
            raise ValueError("the rendered chat is empty: at least one token is needed")
        assert self.config.vision is not None  # `from_pretrained` refuses a model without
        empty = torch.zeros(0, self.config.vision.patch_dim)
        images = Images(
            torch.cat([picture.patches for picture in ordered] or [empty]),
            tuple(picture.grid for picture in ordered),
            torch.cat(index or [torch.zeros(0, dtype=torch.int64)]),
        )
        return Prompt(text, torch.tensor([tokens]), torch.cat(positions, 1)[:, None], images)


def user_message(
    text: str, images: Iterable[Any] = (), videos: Iterable[Any] = ()
) -> dict[str, Any]:
    """Makes a turn of the user: images first, then videos, then the text, if any."""
    parts = [{"type": "image", "image": image} for image in images]
    parts += [{"type": "video", "video": video} for video in videos]
    if not parts:
        return {"role": "user", "content": text}
    parts += [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": parts}


def _frames(pictures: list[Picture]) -> Iterator[tuple[Picture | None, tuple[int, int, int]]]:
    """Yields every frame's grid, with the picture at its first one."""
    for picture in pictures:
        for number in range(picture.grid[0]):
            yield (picture if number == 0 else None), picture.grid


def _grid_positions(rows: int, columns: int) -> Tensor:
    """Gives rotary positions (t, h, w) of a frame's tokens from its first: [3, rows * columns]."""
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    return torch.stack([torch.zeros_like(row), row, column])
