"""What stands where a checkpoint should: after a download that went wrong, or of another kind."""

from __future__ import annotations

import json
from pathlib import Path

from .values import shown

_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype html", b"<html")
# Of files that a model of another form has: which, what that is, and what to do about it.
_OTHERS = (
    ("*.gguf", "a GGUF file", "take the checkpoint that it was made of"),
    ("pytorch_model*.bin", "weights as pickles", "transformers saves them as safetensors"),
    ("*.distcp", "a checkpoint of training in parts", "save the model in Hugging Face's form"),
    ("global_step*", "a checkpoint of DeepSpeed", "its zero_to_fp32.py makes a model of it"),
    ("*.pt*", "weights as pickles", "transformers saves them as safetensors"),
)


def stand_in(file: Path) -> str | None:
    """Says what a file is that nobody can mean: a pointer of git-lfs, or a web page.

    Returns:
        A sentence's end with what to do about it, or None if it is neither.
    """
    try:
        with open(file, "rb") as content:
            start = content.read(1024)
    except OSError:
        return None
    if start.startswith(_POINTER):
        return f"a git-lfs pointer and not the file itself: run git lfs pull in {file.parent}"
    if start.lstrip().lower().startswith(_PAGE):
        return "a web page and not the file itself: download it again, by its own address"
    return None


def other_kind(directory: Path) -> str | None:
    """Says what a directory without a model's files holds instead.

    Returns:
        A sentence's end with what to do about it, or None if it is nothing that is known.
    """
    adapter = directory / "adapter_config.json"
    if adapter.is_file():
        base = _base_model(adapter)
        return f"a LoRA adapter{base}, not a model: load that with adapter={str(directory)!r}"
    for pattern, kind, advice in _OTHERS:
        found = sorted(path.name for path in directory.glob(pattern))
        if found:
            return f"{kind} ({found[0]}): {advice}"
    return None


def _base_model(adapter: Path) -> str:
    """Names the model that an adapter was made for, " of NAME", where its configuration tells."""
    try:
        name = json.loads(adapter.read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return f" of {shown(name)}" if isinstance(name, str) and name else ""
