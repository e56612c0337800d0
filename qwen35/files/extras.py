"""What stands beside weights in a checkpoint and is taken over as it is."""

from __future__ import annotations

from pathlib import Path

from . import aside

# Of tokenizer and processor, and how others sample.
_EXTRAS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)


def copy_extras(source: Path, directory: Path) -> None:
    """Copies those of the files that are there, each as `aside.write` writes."""
    for extra in _EXTRAS:
        if (source / extra).is_file():
            aside.write(directory / extra, (source / extra).read_bytes())
