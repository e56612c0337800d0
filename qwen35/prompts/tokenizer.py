"""The checkpoint's tokenizer, and text that grows token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..checks.errors import CheckpointError
from ..checks.json_file import read_object
from ..checks.values import integer


class TokenizerLike(Protocol):
    """What generation needs of a tokenizer; transformers' tokenizers have it too."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str: ...


class Tokenizer:
    """A checkpoint's tokenizer and the end tokens that its `generation_config.json` names.

    Attributes:
        hf: transformers' tokenizer, for everything that this class does not pass on.
        end_token_ids: ids that end a generation.
    """

    def __init__(self, hf: Any, end_token_ids: tuple[int, ...] = ()) -> None:
        self.hf = hf
        self.end_token_ids = end_token_ids

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Tokenizer:
        """Loads the tokenizer files of a checkpoint directory.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; a checkpoint is a directory")
        if not (directory / "tokenizer.json").is_file():
            raise CheckpointError(f"{directory}: no tokenizer.json, so text can't be tokenized")
        # Importing transformers takes seconds; only text needs it.
        from transformers import AutoTokenizer

        try:
            hf = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # the tokenizers library raises plain Exception
            raise CheckpointError(f"{directory}: tokenizer files are damaged ({error})") from None
        return cls(hf, _end_tokens(directory / "generation_config.json"))

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text; special tokens written in it are recognised."""
        return self.hf.encode(text)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of token ids."""
        return self.hf.decode(list(tokens), skip_special_tokens=skip_special_tokens)


def _end_tokens(file: Path) -> tuple[int, ...]:
    if not file.is_file():
        return ()
    ids = read_object(file, "settings of generation").get("eos_token_id")
    if ids is None:
        return ()
    try:
        each = ids if isinstance(ids, list) else [ids]
        return tuple(integer("eos_token_id", token, 0) for token in each)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None


class TextStream:
    """Turns tokens into pieces of text as they come, special tokens left out.

    A multi-byte character can span tokens: text is held back until its bytes are complete. The
    text of a token may depend on the one before it (a leading space), so each piece is the
    difference of two decodings that share their start. (`tokenizers.decoders.DecodeStream` does the
    same, but has no way to give out what it holds back when a row ends, and takes no tokenizer
    without a Rust half.)
    """

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # where both decodings begin
        self._done = 0  # tokens whose text has been given out

    def push(self, token: int) -> str:
        """Adds a token and returns the text that it completes, maybe none."""
        self._tokens.append(token)
        text = self._pending()
        # Of bytes that are no character yet, some tokenizers make nothing at all.
        if not text or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._start, self._done = self._done, len(self._tokens)
        return text

    def finish(self) -> str:
        """Returns the text still held back, incomplete characters replaced."""
        text = self._pending()
        self._start = self._done = len(self._tokens)
        return text

    def _pending(self) -> str:
        given = self._decode(self._tokens[self._start : self._done])
        return self._decode(self._tokens[self._start :])[len(given) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
