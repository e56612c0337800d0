"""What stands in a tokenizer.json that would end the process in the tokenizers library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..checks.errors import CheckpointError
from ..checks.json_file import parse_object
from ..checks.values import shown

# A prefix that is there, and a key that may be one written otherwise. One pattern for both would
# take nine times as long: alone, each begins with bytes that are searched for.
_PREFIXED = re.compile(rb'"continuing_subword_prefix"\s*+:\s*+(?!null|"")')
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")


def check_merges(file: Path) -> None:
    """Refuses merges whose second half lacks the prefix of tokens that continue a word.

    The library (0.23) takes as many bytes off it unseen. What is left of a character that is cut
    so is text to it, and the process is aborted where Python is to get that in an error
    (huggingface/tokenizers, pull request 2398). Published vocabularies have no such prefix: their
    files are searched, and not parsed.

    Raises:
        CheckpointError: such a merge, the first one is in the text; or the file has a prefix and is
            no JSON object with unlike keys.
        OSError: it can't be read.
    """
    text = file.read_bytes()
    if not (_PREFIXED.search(text) or _ESCAPED_LETTER.search(text)):
        return
    model = parse_object(text, str(file), "a tokenizer", unique=True).get("model")
    if not isinstance(model, dict):
        return  # which the library refuses, as it does whatever else is not of its kind
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not isinstance(prefix, str) or not isinstance(merges, list):
        return
    for number, merge in enumerate(merges):
        second = _second(merge)
        if second is not None and not second.startswith(prefix):
            raise CheckpointError(
                f"{file}: merge {number}, {shown(merge)}, joins {shown(second)} to what is before "
                f"it, which does not begin with the continuing_subword_prefix {shown(prefix)}"
            )


def _second(merge: Any) -> str | None:
    """Returns the second half of a merge in either form of the file; None of what is neither."""
    halves = merge.split(" ") if isinstance(merge, str) else merge
    if isinstance(halves, list) and len(halves) == 2 and isinstance(halves[1], str):
        return halves[1]
    return None
