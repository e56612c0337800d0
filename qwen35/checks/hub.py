"""Models by the names of a hub: a directory of its cache in place of "Qwen/Qwen3.5-0.8B".

The library huggingface_hub finds, downloads and keeps them. A directory wins over a name.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, causes
from .json_file import read_object

if TYPE_CHECKING:
    from tqdm import tqdm

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# What is asked for of a model: patterns of files at its top.
CONFIG = ("config.json",)
TOKENIZER = ("*.json", "*.jinja", "*.txt")  # and all settings, of generation and pictures too
WEIGHTS = (*TOKENIZER, "*.safetensors")


def directory_of(
    path: str | Path,
    files: tuple[str, ...] = WEIGHTS,
    *,
    network: bool = True,
    progress: bool = True,
) -> Path:
    """Finds the directory that a path or a hub's name ("owner/name") stands for.

    Args:
        path: a directory that is there is taken; what looks like no name comes back as it is.
        files: patterns of those that are needed.
        network: look whether the hub has a newer copy, and download what is missing. Where it
            can't be reached, the cache's copy is taken.
        progress: show bars while files are downloaded.

    Raises:
        CheckpointError: no model of that name is there, or it is not whole in the cache and the hub
            can't be reached; the text says what to do.
    """
    if Path(path).exists() or not _NAME.fullmatch(str(path)):
        return Path(path)
    from huggingface_hub import constants, errors, snapshot_download

    name, place = str(path), constants.ENDPOINT
    bars: dict[str, Any] = {} if progress else {"tqdm_class": _silent()}
    try:
        found = snapshot_download(
            name,
            allow_patterns=list(files),
            ignore_patterns=["*/*"],  # copies in other formats
            local_files_only=not network,
            **bars,
        )
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name}: no such directory here, and {place} asks for consent: give it on the model's "
            "page, then `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: no such directory, and no model of that name on {place} (or a private one, "
            "which `hf auth login` opens)"
        ) from None
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: no such directory, no whole copy in huggingface_hub's cache, and {place} "
            f"can't be reached ({_cause(error)}); where there is a network, `hf download {name}` "
            "fills the cache (HF_HOME says where), and the directory of any other copy will do"
        ) from None
    missing = _missing(Path(found)) if files == WEIGHTS else None
    if missing is not None:
        raise CheckpointError(
            f"{name}: {missing} is not in {found}; where there is a network, `hf download {name}` "
            "brings it if the hub has it"
        )
    return Path(found)


def _missing(directory: Path) -> str | None:
    """Names a file of weights, or of an adapter, that a copy should have and has not."""
    if any(directory.glob("*model.safetensors")):  # whole in itself
        return None
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return "model.safetensors"
    names = read_object(index, "an index of safetensors files").get("weight_map")
    listed = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    return next((name for name in listed if not (directory / name).is_file()), None)


def _cause(error: BaseException) -> str:
    """Names what went wrong in the first place, without the library's advice."""
    *_, first = causes(error)
    return type(first).__name__


def _silent() -> type[tqdm]:
    """Returns a kind of progress bar that shows nothing."""
    from tqdm import tqdm

    class Silent(tqdm):
        _lock = threading.RLock()  # tqdm's own outlives a forked process that dies holding it

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings.pop("name", None)  # of huggingface_hub's own bars
            super().__init__(*arguments, **settings | {"disable": True})

    return Silent
