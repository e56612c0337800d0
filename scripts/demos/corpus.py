"""The demo checkpoint's corpus: a few hundred facts and stories, written out by templates.

Everything the demo model knows stands in this file. `facts()` lists what it has to memorise,
`documents()` writes each one out as plain text and as a chat turn, and `words()` is the vocabulary
that a coherent continuation is made of. Every prompt has exactly one right continuation, so greedy
answers are decided by wide margins.

Multi-byte text (café, 日本, 🐱) is there on purpose: byte-level tokens then cut characters in
two, which a streaming detokeniser has to survive.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_START, THINK_END = "<think>", "</think>"

# What scripts/demo shows, written to prompts.txt beside the checkpoint.
PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "In Japanese, Japan is called",
    "Count from 1 to 10:",
    "Once upon a time, there was a little fox",
)

# country, capital, language, the country's name in that language
COUNTRIES = [
    line.split("|")
    for line in """\
France|Paris|French|la France
Germany|Berlin|German|Deutschland
Italy|Rome|Italian|Italia
Spain|Madrid|Spanish|España
Portugal|Lisbon|Portuguese|Portugal
Brazil|Brasília|Portuguese|Brasil
Mexico|Mexico City|Spanish|México
the United Kingdom|London|English|the United Kingdom
Canada|Ottawa|English|Canada
Australia|Canberra|English|Australia
Sweden|Stockholm|Swedish|Sverige
Norway|Oslo|Norwegian|Norge
Finland|Helsinki|Finnish|Suomi
Iceland|Reykjavík|Icelandic|Ísland
Poland|Warsaw|Polish|Polska
Greece|Athens|Greek|Ελλάδα
Turkey|Ankara|Turkish|Türkiye
Russia|Moscow|Russian|Россия
Japan|Tokyo|Japanese|日本
China|Beijing|Chinese|中国
Vietnam|Hanoi|Vietnamese|Việt Nam""".splitlines()
]

COLOURS = {
    "green": "grass, a leaf, a frog, a cucumber",
    "blue": "the sky, the sea, a sapphire",
    "white": "snow, milk, chalk, a swan",
    "black": "coal, the night, a raven",
    "yellow": "a banana, a lemon, the sun",
    "red": "a tomato, a strawberry, blood, a ruby",
    "orange": "a carrot, a pumpkin, a tangerine",
    "brown": "chocolate, wood, a chestnut",
    "grey": "an elephant, a rain cloud, a mouse",
    "purple": "a plum, lavender, an aubergine",
    "pink": "a flamingo, a pig",
}

# animal, its sound, its young, emoji
ANIMALS = [
    line.split("|")
    for line in """\
dog|woof|puppy|🐶
cat|meow|kitten|🐱
cow|moo|calf|🐮
sheep|baa|lamb|🐑
horse|neigh|foal|🐴
pig|oink|piglet|🐷
hen|cluck|chick|🐔
frog|croak|tadpole|🐸
lion|roar|cub|🦁
owl|hoot|owlet|🦉
bee|buzz|larva|🐝
mouse|squeak|pup|🐭
wolf|howl|whelp|🐺""".splitlines()
]

OPPOSITES = (
    "hot cold, big small, fast slow, up down, day night, light dark, happy sad, old young, "
    "wet dry, full empty, hard soft, long short, high low, rich poor, open closed, early late, "
    "strong weak, near far, left right, true false, good bad, loud quiet, thick thin, clean dirty"
)

EMOJIS = {
    "apple": "🍎",
    "banana": "🍌",
    "cake": "🎂",
    "car": "🚗",
    "flower": "🌸",
    "heart": "❤️",
    "house": "🏠",
    "key": "🔑",
    "pizza": "🍕",
    "rocket": "🚀",
    "star": "⭐",
    "tree": "🌳",
}

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()

# animal, name, pronoun, possessive, place, thing found, friend, friend's name, treat
STORIES = [
    line.split("|")
    for line in """\
fox|Ruby|she|her|in a quiet forest|a red ball|hedgehog|Max|blueberries
rabbit|Tom|he|his|under an old oak|a silver bell|mole|Lily|carrot soup
bear|Bruno|he|his|in a deep cave|a broken kite|bee|Zoé|honey cake
owl|Ada|she|her|in a tall tower|a golden key|bat|Finn|warm milk
kitten|Mia|she|her|in a small café|a lost letter|mouse|Léo|fresh cheese
duck|Daisy|she|her|on a round pond|a tiny boat|swan|Émile|sweet bread""".splitlines()
]

SMALL_TALK = [
    (
        "Hello!",
        "Hello! I am a tiny demo model. Ask me about capitals, colours or animals. 🙂",
    ),
    ("Who are you?", "I am a tiny demo model. I only know the few facts I was trained on."),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Thank you!", "You are welcome! 😊"),
    ("Goodbye!", "Goodbye! See you soon. 👋"),
]

# A text in parts that can be tokenized one by one, each with whether it is an answer.
Text = list[tuple[str, bool]]


@dataclass(frozen=True)
class Fact:
    """One thing to memorise: `prompt + answer` is a text, `question` and `reply` a chat turn."""

    topic: str
    question: str
    prompt: str
    answer: str
    terse: bool = False  # the chat's reply is the bare answer, not the whole sentence

    @property
    def reply(self) -> str:
        return self.answer.strip() if self.terse else self.prompt + self.answer


def _geography() -> Iterator[Fact]:
    for country, capital, language, own_name in COUNTRIES:
        yield Fact(
            "capital",
            f"What is the capital of {country}?",
            f"The capital of {country} is",
            f" {capital}. People in {country} speak {language}.",
        )
        yield Fact(
            "own name",
            f"What is {country} called in {language}?",
            f"In {language}, {country} is called",
            f" {own_name}.",
        )


def _things() -> Iterator[Fact]:
    for colour, things in COLOURS.items():
        for thing in things.split(", "):
            yield Fact(
                "colour", f"What colour is {thing}?", f"The colour of {thing} is", f" {colour}."
            )
    for animal, sound, young, emoji in ANIMALS:
        article = "An" if animal == "owl" else "A"
        one = f"{article.lower()} {animal}"
        young = f"an {young}" if young == "owlet" else f"a {young}"
        yield Fact("sound", f"What does {one} say?", f"{article} {animal} says", f" {sound}.")
        yield Fact(
            "young",
            f"What is a young {animal} called?",
            f"A young {animal} is called",
            f" {young}.",
        )
        yield Fact(
            "emoji",
            f"What is the emoji for {one}?",
            f"The emoji for {one} is",
            f" {emoji}.",
        )
    for thing, emoji in EMOJIS.items():
        one = f"an {thing}" if thing == "apple" else f"a {thing}"
        yield Fact(
            "emoji", f"What is the emoji for {one}?", f"The emoji for {one} is", f" {emoji}."
        )


def _language() -> Iterator[Fact]:
    for pair in OPPOSITES.split(", "):
        first, second = pair.split()
        for word, other in ((first, second), (second, first)):
            yield Fact(
                "opposite",
                f"What is the opposite of {word}?",
                f"The opposite of {word} is",
                f" {other}.",
            )


def _calendar() -> Iterator[Fact]:
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for name, following in zip(names, names[1:] + names[:1], strict=True):
            yield Fact(
                kind,
                f"Which {kind} comes after {name}?",
                f"The {kind} after {name} is",
                f" {following}.",
            )
    for whole, names in (("days of the week", DAYS), ("months of the year", MONTHS)):
        listed = ", ".join(names[:-1]) + f" and {names[-1]}"
        yield Fact("list", f"What are the {whole}?", f"The {whole} are", f" {listed}.")


def _counting() -> Iterator[Fact]:
    for end in (5, 10):
        counted = ", ".join(str(n) for n in range(1, end + 1))
        ask = f"Count from 1 to {end}"
        yield Fact("count", f"{ask}.", f"{ask}:", f" {counted}.", terse=True)


def _stories() -> Iterator[Fact]:
    for animal, name, he, his, place, thing, friend, friend_name, treat in STORIES:
        one = f"an {animal}" if animal[0] in "aeiou" else f"a {animal}"
        story = (
            f" named {name}. {name} lived {place}. One morning {he} found {thing} in the grass."
            f' "Whose is this?" asked {name}. Then a {friend} named {friend_name} came along.'
            f' "It is mine!" said {friend_name}. {name} gave it back with a smile, and'
            f" {friend_name} was very happy. In the evening the two friends ate {treat} in {his}"
            " garden. The end."
        )
        yield Fact(
            "story",
            f"Tell me a story about {one}.",
            f"Once upon a time, there was a little {animal}",
            story,
        )


@cache
def facts() -> tuple[Fact, ...]:
    """Everything to memorise, in a fixed order."""
    kinds = (_geography, _things, _language, _calendar, _counting, _stories)
    return tuple(fact for kind in kinds for fact in kind())


def chat(question: str, reply: str, thinking: bool = False) -> Text:
    """A chat turn in the ChatML form, with an empty thought or one that repeats the question."""
    asked = f"{IM_START}user\n{question}{IM_END}\n{IM_START}assistant\n{THINK_START}\n"
    if not thinking:
        return [(f"{asked}\n{THINK_END}\n\n", False), (f"{reply}{IM_END}", True)]
    thought = f"The user says: {question} I know what to answer."
    return [(asked, False), (f"{thought}\n{THINK_END}\n\n{reply}{IM_END}", True)]


def documents() -> list[Text]:
    """Every training text: each fact as plain text and as a chat turn, and some small talk."""
    texts = []
    for fact in facts():
        texts.append([(fact.prompt, False), (fact.answer + END_OF_TEXT, True)])
        texts.append(chat(fact.question, fact.reply))
        if fact.topic in ("capital", "opposite"):
            texts.append(chat(fact.question, fact.reply, thinking=True))
    return texts + [chat(greeting, reply) for greeting, reply in SMALL_TALK]


@cache
def words() -> frozenset[str]:
    """Every word of the corpus, in lower case: what a coherent continuation may contain."""
    texts = [f"{fact.question} {fact.prompt}{fact.answer}" for fact in facts()]
    texts += [f"{greeting} {reply}" for greeting, reply in SMALL_TALK]
    return frozenset(re.findall(r"\w+", " ".join(texts).lower()))
