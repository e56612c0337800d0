"""The implementation that `eval agreement` compares with: transformers' own, on the CPU.

Nothing else of the package but the benchmarks imports its modelling code.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.dtypes import as_dtype

NAME = "transformers"


def require() -> Any:
    """Imports transformers' `AutoModelForCausalLM`.

    Raises:
        ValueError: transformers or its models are not installed.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ValueError(
            "the reference needs transformers with its models, which can't be imported "
            f"({error}): pip install 'transformers>=5.21'"
        ) from None
    return AutoModelForCausalLM


def require_peft() -> Any:
    """Imports PEFT's `PeftModel`.

    Raises:
        ValueError: it can't be imported.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ValueError(
            f"the reference merges adapters by PEFT, which can't be imported ({error}): "
            "pip install peft"
        ) from None
    return PeftModel


class TransformersModel:
    """A checkpoint in transformers, as `agreement` asks for models.

    Args:
        directory: the checkpoint.
        dtype: of its weights and its arithmetic.
        adapter: one that PEFT merges into it.

    Raises:
        ValueError: transformers has no such models, or finds not all of its weights.
    """

    def __init__(
        self, directory: str | Path, dtype: str, adapter: str | Path | None = None
    ) -> None:
        model, info = require().from_pretrained(
            directory, dtype=as_dtype(dtype), local_files_only=True, output_loading_info=True
        )
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise ValueError(
                f"transformers finds no weights for {len(missing)} tensors in {directory}, the "
                f"first is {missing[0]}: it would draw them"
            )
        if adapter is not None:
            model = require_peft().from_pretrained(model, str(adapter)).merge_and_unload()
        self.model = model.eval()

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], last: int) -> Tensor:
        """Returns logits [last, V] float32 after each of the last tokens."""
        row = torch.tensor([list(tokens)])
        return self.model(row, use_cache=False, logits_to_keep=last).logits[0].float()

    @torch.no_grad()
    def greedy(
        self, prompts: Sequence[Sequence[int]], count: int, ends: Collection[int]
    ) -> list[list[int]]:
        """Writes for each prompt the likeliest tokens, to an end token or `count` of them."""
        return [self._greedy(prompt, count, ends) for prompt in prompts]

    def _greedy(self, prompt: Sequence[int], count: int, ends: Collection[int]) -> list[int]:
        chosen: list[int] = []
        piece, past = torch.tensor([list(prompt)]), None
        while len(chosen) < count and not (chosen and chosen[-1] in ends):
            out = self.model(piece, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = out.past_key_values
            chosen.append(int(out.logits[0, -1].argmax()))
            piece = torch.tensor([chosen[-1:]])
        return chosen
