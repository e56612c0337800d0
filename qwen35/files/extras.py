"""What stands beside weights in a checkpoint and is taken over as it is, and what may not."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..checks.errors import CheckpointError
from . import aside

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Settings of pictures, in the published form and in transformers 5's: not all stand side by side.
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
_EXTRAS = (*TOKENIZER_FILES, *PROCESSOR_FILES, "generation_config.json")  # how others sample, too


class Extras:
    """A checkpoint's files that are no weights, which `save` takes as it takes a tokenizer."""

    def __init__(self, source: Path) -> None:
        self._source = source

    def save_pretrained(self, directory: Path) -> None:
        """Writes them as they are."""
        copy_extras(self._source, directory)


def copy_extras(source: Path, directory: Path) -> None:
    """Copies those of the files that are there, each as `aside.write` writes. Where some are of a
    tokenizer, or of a processor, no others of one stay."""
    there = [extra for extra in _EXTRAS if (source / extra).is_file()]
    for extra in there:
        aside.write(directory / extra, (source / extra).read_bytes())
    for names in (TOKENIZER_FILES, PROCESSOR_FILES):
        if any(name in there for name in names):
            for name in names:
                if name not in there:
                    (directory / name).unlink(missing_ok=True)


def check_free(source: Path, directory: Path, own: Collection[str]) -> None:
    """Checks that a conversion overwrites no other weights, nor stands beside some.

    Args:
        source: the checkpoint's directory.
        directory: where it is converted to, if that is there.
        own: names of the conversion's own files of tensors.

    Raises:
        ValueError: both directories are one.
        CheckpointError: there are other weights.
    """
    if directory.exists() and directory.samefile(source):
        raise ValueError(f"{directory}: converting a checkpoint into itself would lose it")
    found = [path.name for path in directory.glob("[!.]*.safetensors*")]  # leftovers are hidden
    others = sorted(name for name in found if name.removesuffix(".index.json") not in own)
    if others:
        raise CheckpointError(
            f"{directory}: holds {others[0]}, which is no part of this conversion; another "
            "directory is needed"
        )
