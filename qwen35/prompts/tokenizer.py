"""The checkpoint's tokenizer, and text that grows token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..checks import hub
from ..checks.errors import CheckpointError
from ..checks.json_file import read_object
from ..checks.stand_ins import stand_in
from ..checks.values import as_integer, check_text, integer, is_number, shown, told
from ..files import aside
from ..files.extras import TOKENIZER_FILES
from ..xla.importing import collection_paused
from .messages import render, words_only
from .tokenizer_file import check_merges

_OLDER_TEMPLATE = "chat_template.json"
_REPLACED = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 4  # bytes of a character in UTF-8
_OPEN = _LONGEST - 1  # of them without the last are replaced by one character each, at most


class TokenizerLike(Protocol):
    """What generation needs of a tokenizer; transformers' tokenizers have it too."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str: ...


class Tokenizer:
    """A checkpoint's tokenizer, as its tokenizer.json says, whatever class is named beside it.

    Attributes:
        hf: transformers' tokenizer, for everything that this class does not pass on.
        end_token_ids: ids that end a generation: of `generation_config.json` and the tokenizer's
            own end token.
    """

    def __init__(self, hf: Any, end_token_ids: tuple[int, ...] = ()) -> None:
        self.hf = hf
        self.end_token_ids = end_token_ids

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Tokenizer:
        """Loads the tokenizer files of a checkpoint directory, or of a hub's model by its name.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        directory = hub.directory_of(path, hub.TOKENIZER)
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory; a checkpoint is a directory")
        aside.settle(directory)
        if not (directory / "tokenizer.json").is_file():
            raise CheckpointError(f"{directory}: no tokenizer.json, so text can't be tokenized")
        for name in TOKENIZER_FILES:
            other = stand_in(directory / name) if (directory / name).is_file() else None
            if other is not None:
                raise CheckpointError(f"{directory / name}: {other}")
        # Importing transformers takes seconds; only text needs it.
        with collection_paused():
            from transformers import PreTrainedTokenizerFast

        # Not AutoTokenizer: the classes that a tokenizer_config.json may name put a
        # pre-tokenizer and a normalizer of their own in place of the file's.
        try:
            check_merges(directory / "tokenizer.json")
            with _panics_are_errors():
                hf = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        except CheckpointError:
            raise
        except Exception as error:  # as in `encode`
            raise CheckpointError(
                f"{directory}: tokenizer files are damaged ({told(error)})"
            ) from None
        if not is_number(hf.model_max_length):  # else it fails over the first text
            raise CheckpointError(
                f"{directory / 'tokenizer_config.json'}: model_max_length must be a number, not "
                f"{shown(hf.model_max_length)}"
            )
        if not hf.chat_template:
            hf.chat_template = _older_template(directory / _OLDER_TEMPLATE)
        ends = (*_end_tokens(directory / "generation_config.json"), *own_end_tokens(hf))
        return cls(hf, tuple(dict.fromkeys(ends)))

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes the tokenizer's files, with the chat template, for `from_pretrained` and others.

        They take the place of another's as one switch (`aside`). Its end tokens are those of a
        generation_config.json, which `qwen35.save` writes.

        Args:
            directory: made if it is not there; other files in it stay.

        Raises:
            OSError: it can't be written; then nothing has changed.
        """
        directory = Path(directory)
        aside.make_directory(directory)
        with aside.switched(directory, "tokenizer.json", TOKENIZER_FILES) as new:
            self.write_files(new)

    def write_files(self, directory: Path) -> None:
        """Writes the files into a new directory that the caller switches: see `save_pretrained`."""
        # Several templates would get a folder beside one in a file of its own.
        several = isinstance(self.hf.chat_template, dict)
        try:
            self.hf.save_pretrained(directory, save_jinja_files=not several)
        except Exception as error:  # as in `encode`, of a full disk too
            if isinstance(error, OSError):
                raise
            raise OSError(f"the tokenizer can't be written ({told(error)})") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **template: Any,
    ) -> str:
        """Renders a chat of words with the checkpoint's template.

        Args:
            messages: dicts with a `role` and a `content`, a text or a list of parts of type
                "text"; and `tool_calls`, as OpenAI's API has them.
            add_generation_prompt: end with the start of the assistant's turn.
            **template: further variables of the chat template, e.g. `enable_thinking=False`.

        Raises:
            CheckpointError: there is no chat template.
            ValueError: a message can't be used, or the template refuses them.
        """
        return render(self.hf, words_only(messages), add_generation_prompt, template)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text; special tokens written in it are recognised.

        Raises:
            ValueError: it is no text of Unicode characters, or the tokenizer fails over it.
        """
        check_text("the text", text)
        return encode(self.hf, text)

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of token ids."""
        with _panics_are_errors():
            return self.hf.decode(
                list(tokens),
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,  # which rewrites what the tokens say
            )


def encode(hf: Any, text: str, **options: Any) -> list[int]:
    """Returns the token ids of a text, by transformers' tokenizer.

    Raises:
        ValueError: it fails over the text, as one does whose files are damaged.
    """
    try:
        with _panics_are_errors():
            return hf.encode(text, **options)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ValueError(
            f"the tokenizer fails over {shown(text)} ({told(error)}); is its tokenizer.json "
            "damaged?"
        ) from None


@contextlib.contextmanager
def _panics_are_errors() -> Iterator[None]:
    """Makes a RuntimeError of a panic in the library's Rust, which is no Exception: it would pass
    every handler, and end an engine and a batch."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a module that can't be imported
            raise
        raise RuntimeError(str(error)) from None


def _older_template(file: Path) -> str | None:
    """Reads the chat template of a processor as transformers wrote it before version 5."""
    if not file.is_file():
        return None
    template = read_object(file, "a chat template").get("chat_template")
    if not isinstance(template, str):
        raise CheckpointError(f"{file}: chat_template must be a text, not {shown(template)}")
    return template


def own_end_tokens(hf: Any) -> tuple[int, ...]:
    """Returns the end token that a tokenizer of transformers names, if it names one."""
    token = as_integer(getattr(hf, "eos_token_id", None))
    return () if token is None else (token,)


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

    A multi-byte character can span tokens: what may still become one is held back, which are at
    most three replacement characters, since a character has four bytes. The text of a token may
    depend on the one before it (a leading space), so each piece is the difference of two decodings
    that share their start. (`tokenizers.decoders.DecodeStream` does the like, but holds back bytes
    that never become a character for good, has no way to give them out when a row ends, and takes
    no tokenizer without a Rust half.)
    """

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []  # those that are still decoded
        self._known = 0  # how many of them came with the last whole piece or before
        self._given = 0  # characters of their text that have been given out

    def push(self, token: int) -> str:
        """Adds a token and returns the text that it completes, maybe none."""
        self._tokens.append(token)
        text, given = self._decode(self._tokens), self._given
        # Of bytes that are no character yet, some tokenizers make nothing at all.
        if len(text) > given and not text.endswith(_REPLACED):
            self._keep(self._known)
            self._given = len(self._decode(self._tokens))
            return text[given:]
        open_ = min(_OPEN, len(text) - len(text.rstrip(_REPLACED)))
        self._given = max(given, len(text) - open_)
        if len(self._tokens) - self._known > 2 * _LONGEST:
            return text[given : self._cut(text)]
        return text[given : self._given]

    def finish(self) -> str:
        """Returns the text still held back, incomplete characters replaced."""
        text = self._decode(self._tokens)[self._given :]
        self._given += len(text)
        return text

    def _keep(self, start: int) -> None:
        """Forgets the tokens before `start`; those after are known from now on."""
        self._tokens = self._tokens[start:]
        self._known = len(self._tokens)

    def _cut(self, text: str) -> int:
        """Forgets tokens of a long run that completes nothing, where no character spans the cut,
        and returns how many characters of its text have been given out: each step would decode
        the whole run again."""
        given = self._given
        for place in range(len(self._tokens) - _LONGEST, len(self._tokens)):
            left = self._decode(self._tokens[:place])
            if left + self._decode(self._tokens[place:]) == text:
                given = max(given, len(left))
                self._keep(place)
                self._known, self._given = 0, given - len(left)
                break
        return given

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
