"""The demo checkpoints' tokenizers: byte-level BPEs of Qwen3.5's kind, trained on their texts.

Normaliser, splitting pattern and decoder are those that transformers' tokenizer class for
Qwen3.5 sets up (and sets up again whenever it loads a checkpoint); only the merges are learned.
The special tokens carry the published names and, as in the published vocabulary, close it.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from corpus import END_OF_TEXT, IM_END, IM_START, THINK_END, THINK_START
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import Qwen3_5Tokenizer

_SPECIAL = [
    END_OF_TEXT,
    IM_START,
    IM_END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
_MARKERS = [THINK_START, THINK_END]  # whole tokens, but kept when special tokens are left out
_CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int) -> Qwen3_5Tokenizer:
    """Learns the merges from `texts`; at most `vocab_size` tokens, special ones included.

    A pair must occur twice to be merged, so rare characters (日本, most emojis) stay cut into
    bytes. `context_length` is what the tokenizer's files name as the model's.
    """
    learned = Qwen3_5Tokenizer().backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(_SPECIAL) - len(_MARKERS),
        min_frequency=2,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    model = json.loads(learned.to_str())["model"]
    tokenizer = Qwen3_5Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        chat_template=_CHAT_TEMPLATE.read_text(encoding="utf-8"),
        model_max_length=context_length,
    )
    tokenizer.add_special_tokens({"extra_special_tokens": _SPECIAL})
    tokenizer.add_tokens([AddedToken(marker, special=False) for marker in _MARKERS])
    return tokenizer
