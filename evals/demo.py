"""What the tasks beside this file ask: the facts and stories that the demo checkpoint has learnt.

lm-eval calls these functions for a task's documents (`custom_dataset`), with what it knows of the
task as keywords. The facts are those of scripts/demos/corpus.py; nothing is downloaded.
"""

import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

CHOICES = 4
_CORPUS = Path(__file__).resolve().parents[1] / "scripts/demos/corpus.py"


def facts(**_: Any) -> datasets.DatasetDict:
    """The facts whose answer is one of a kind: prompt, choices, gold (index of the right one)."""
    documents = []
    for topic in ("capital", "opposite", "colour", "sound", "young", "day", "month"):
        chosen = [fact for fact in _corpus()["facts"]() if fact.topic == topic]
        kinds = list(dict.fromkeys(map(_first_sentence, chosen)))
        documents += [_choice(fact.prompt, _first_sentence(fact), kinds) for fact in chosen]
    return _test_split(documents)


def inverted_facts(**_: Any) -> datasets.DatasetDict:
    """The capitals' facts the other way round, which nobody taught: documents as `facts`."""
    countries = _corpus()["COUNTRIES"]
    kinds = [f"{country}." for country, *_ in countries]
    return _test_split(
        _choice(f"{capital} is the capital of", f"{country}.", kinds)
        for country, capital, *_ in countries
    )


def answers(**_: Any) -> datasets.DatasetDict:
    """All facts but the stories: prompt and answer, question and reply."""
    return _test_split(
        {
            "prompt": fact.prompt,
            "answer": _first_sentence(fact).removesuffix("."),
            "question": fact.question,
            "reply": fact.reply,
        }
        for fact in _corpus()["facts"]()
        if fact.topic != "story"
    )


def stories(**_: Any) -> datasets.DatasetDict:
    """The stories: text."""
    chosen = (fact for fact in _corpus()["facts"]() if fact.topic == "story")
    return _test_split({"text": fact.prompt + fact.answer} for fact in chosen)


def _corpus() -> dict[str, Any]:
    return runpy.run_path(str(_CORPUS))


def _first_sentence(fact: Any) -> str:
    return fact.answer.strip().split(". ")[0].removesuffix(".") + "."


def _choice(prompt: str, right: str, kinds: list[str]) -> dict[str, Any]:
    """A question with the right answer and those that follow it among its kind."""
    place = kinds.index(right)
    choices = [kinds[(place + step) % len(kinds)] for step in range(CHOICES)]
    gold = place % CHOICES
    choices[0], choices[gold] = choices[gold], choices[0]
    return {"prompt": prompt, "choices": choices, "gold": gold}


def _test_split(documents: Iterable[dict[str, Any]]) -> datasets.DatasetDict:
    return datasets.DatasetDict(test=datasets.Dataset.from_list(list(documents)))
