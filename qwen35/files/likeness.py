"""Whether the checkpoints that ranks read are one: on several machines each has its own files.

Ranks of two checkpoints would compute together what belongs to neither. Their configurations and
norms, which every rank has whole, tell many apart, but not a model from one that an adapter has
been merged into. So of each tensor a little is compared.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..checks import hub
from ..checks.json_file import read_object
from ..sharding import process
from .adapter import Adapter
from .checkpoint_files import CheckpointFiles
from .presharded import is_presharded

_BYTES = 4096  # of a tensor


def check_same_checkpoint(path: str | Path, adapter: str | Path | None = None) -> None:
    """Checks that all processes, which have met, are about to load the same.

    Raises:
        ValueError: they are not; or files can't be read, as `load` has it. In all processes, if in
            one (`process.call_on_all_ranks`).
    """
    process.check_equal_on_ranks(checkpoint=process.call_on_all_ranks(digest, path, adapter))


def digest(path: str | Path, adapter: str | Path | None = None) -> str:
    """Returns a name of a checkpoint's content, however it is divided into files: of each tensor's
    name, dtype and shape, and of the bytes in its middle; and of an adapter's files.

    Of rank files it is what their conversion noted of the checkpoint, so far as it did.
    """
    directory, content = hub.directory_of(path), hashlib.sha256()
    if is_presharded(directory):
        records = sorted(directory.glob("rank-*-of-*.json"))
        noted = {str(read_object(record, "a rank's record").get("content")) for record in records}
        content.update(json.dumps(sorted(noted)).encode())
    else:
        files = CheckpointFiles(directory, tower=True, sparse=True)
        for name, (file, own_name) in sorted(files.tensors.items()):
            tensor = files.handles[file].get_slice(own_name)
            content.update(f"{name} {tensor.get_dtype()} {tensor.get_shape()}".encode())
            content.update(tensor.middle(_BYTES))
    if adapter is not None:
        content.update(Adapter(adapter).digest().encode())
    return content.hexdigest()[:16]
