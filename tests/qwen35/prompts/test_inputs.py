"""What a prompt may be: everything that transformers' tokenizers return, and nothing that iterates.

The right ids are those that transformers' own tokenizer returns as a list.
"""

from __future__ import annotations

from collections import UserDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch

import qwen35
from qwen35.evaluation.scoring import score, score_continuations
from qwen35.prompts.inputs import encode_prompts

DEMO = Path(__file__).resolve().parents[3] / "demo"
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
TEXTS = ["The capital of France is", "Once upon a time there was"]


@pytest.fixture(scope="module")
def params():
    return qwen35.load(DEMO)


@pytest.fixture(scope="module")
def tokenizer():
    return qwen35.Tokenizer.from_pretrained(DEMO)


def padded(tokenizer, side, **options):
    """Both texts as transformers pads them."""
    return tokenizer.hf(TEXTS, padding=True, padding_side=side, **options)


SEVERAL = {
    "lists": lambda tok: tok.hf(TEXTS),
    "left padded tensors": lambda tok: padded(tok, "left", return_tensors="pt"),
    "right padded arrays": lambda tok: padded(tok, "right", return_tensors="np"),
    "padded lists": lambda tok: padded(tok, "left"),
    "a list of encodings": lambda tok: [tok.hf(text, return_tensors="pt") for text in TEXTS],
    "arrays": lambda tok: [np.array(tok.hf(text).input_ids, np.uint16) for text in TEXTS],
    "rows of one": lambda tok: [tok.hf(text, return_tensors="pt").input_ids for text in TEXTS],
    "text and tensor": lambda tok: (TEXTS[0], torch.tensor(tok.hf(TEXTS[1]).input_ids)),
    "a mapping": lambda tok: UserDict(input_ids=tok.hf(TEXTS).input_ids),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_prompts_of_every_type_are_their_ids(params, tokenizer, kind):
    rows, seen = encode_prompts(params, tokenizer, SEVERAL[kind](tokenizer))
    assert rows == [tokenizer.hf(text).input_ids for text in TEXTS] and seen == [None, None]
    assert {type(token) for row in rows for token in row} == {int}


ONE = {
    "a chat as transformers 5 returns it": {},
    "as a list": {"return_dict": False},
    "as tensors": {"return_tensors": "pt"},
    "as an array [1, T]": {"return_tensors": "np", "return_dict": False},
}


@pytest.mark.parametrize("kind", ONE)
def test_one_prompt_is_its_ids_everywhere(params, tokenizer, kind):
    text = tokenizer.hf.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    wanted = tokenizer.hf(text).input_ids
    prompt = tokenizer.hf.apply_chat_template(QUESTION, add_generation_prompt=True, **ONE[kind])
    assert encode_prompts(params, tokenizer, prompt)[0] == [wanted]
    engine = qwen35.Engine(params, tokenizer, slots=1, capacity=256)
    assert list(engine.submit(prompt).tokens) == wanted
    [expected] = score(params, [wanted])
    [scores] = score(params, prompt)  # one row, whatever holds it
    assert torch.equal(scores.logprobs, expected.logprobs)
    [(_, after)] = score_continuations(params, [(prompt, np.array([1, 2]))])
    [(_, expected)] = score_continuations(params, [(wanted, [1, 2])])
    assert torch.equal(after.logprobs, expected.logprobs)


OTHERS = {
    "bytes": b"caf\xc3\xa9",
    "bytearray": bytearray(b"ab"),
    "set": {1, 2},
    "generator": (n for n in (1, 2)),
    "deque": deque([1, 2]).__iter__(),
    "dict": {"attention_mask": [1, 1]},
    "NoneType": None,
    "float": 1.5,
    "int": 7,
    "float32": np.ones(3, np.float32),
    "bool": torch.ones(3, dtype=torch.bool),
    "float64": [np.ones(3)],
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("nested", [False, True])
def test_whatever_else_is_refused_by_its_type(params, tokenizer, kind, nested):
    prompt = OTHERS[kind]
    wanted = "deque_iterator" if kind == "deque" else kind
    several = [[1, 2], prompt] if nested and not isinstance(prompt, list) else prompt
    with pytest.raises(ValueError, match=wanted):
        qwen35.generate(params, tokenizer, several, max_new_tokens=1)
    with pytest.raises(ValueError, match=wanted):
        score(params, several)
    if not isinstance(prompt, list):
        engine = qwen35.Engine(params, tokenizer, slots=1, capacity=256)
        with pytest.raises(ValueError, match=f"the prompt .*{wanted}"):
            engine.submit(prompt)
        with pytest.raises(ValueError, match=f"context 0 .*{wanted}"):
            score_continuations(params, [(prompt, [1])])


@pytest.mark.parametrize("values", [[1, True], [1, 2.0], [1, "2"], [1, None], [1, [2]]])
def test_values_that_are_no_ids_are_refused(params, tokenizer, values):
    with pytest.raises(ValueError, match="where a token id is needed"):
        qwen35.generate(params, tokenizer, values, max_new_tokens=1)


def test_an_engine_takes_one_prompt(params, tokenizer):
    engine = qwen35.Engine(params, tokenizer, slots=1, capacity=256)
    with pytest.raises(ValueError, match="the prompt has 2 rows"):
        engine.submit(tokenizer.hf(TEXTS))
    with pytest.raises(ValueError, match="differ in shape"):
        engine.submit({"input_ids": [1, 2], "attention_mask": [1]})
    with pytest.raises(ValueError, match="a message stands in a list"):
        engine.submit(QUESTION[0])
