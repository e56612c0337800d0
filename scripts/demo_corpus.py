"""The demo checkpoint's corpus: a few hundred facts and stories, written out by templates.

Everything the demo model knows stands in this file. `facts()` lists what it has to memorise,
`document()` draws one training text, and `words()` is the vocabulary that a coherent
continuation is made of. Every prompt has exactly one right continuation (stories and chats
branch only where a person would choose), so greedy answers are decided by wide margins.

Multi-byte text (café, 日本, 🐱) is there on purpose: byte-level tokens then cut characters in
two, which a streaming detokeniser has to survive.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_START, THINK_END = "<think>", "</think>"
SYSTEM_PROMPT = "You are a helpful assistant."

# What scripts/demo shows, written to prompts.txt beside the checkpoint.
PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "In Japanese, Japan is called",
    "Count from 1 to 10:",
    "Once upon a time, there was a little fox",
)

# country, capital, language, the country's name in that language, flag
COUNTRIES = [
    line.split("|")
    for line in """\
France|Paris|French|la France|🇫🇷
Germany|Berlin|German|Deutschland|🇩🇪
Italy|Rome|Italian|Italia|🇮🇹
Spain|Madrid|Spanish|España|🇪🇸
Portugal|Lisbon|Portuguese|Portugal|🇵🇹
Brazil|Brasília|Portuguese|Brasil|🇧🇷
Mexico|Mexico City|Spanish|México|🇲🇽
Peru|Lima|Spanish|el Perú|🇵🇪
Colombia|Bogotá|Spanish|Colombia|🇨🇴
Argentina|Buenos Aires|Spanish|Argentina|🇦🇷
Chile|Santiago|Spanish|Chile|🇨🇱
Cuba|Havana|Spanish|Cuba|🇨🇺
the United Kingdom|London|English|the United Kingdom|🇬🇧
Ireland|Dublin|English|Ireland|🇮🇪
Canada|Ottawa|English|Canada|🇨🇦
Australia|Canberra|English|Australia|🇦🇺
Austria|Vienna|German|Österreich|🇦🇹
Denmark|Copenhagen|Danish|Danmark|🇩🇰
Sweden|Stockholm|Swedish|Sverige|🇸🇪
Norway|Oslo|Norwegian|Norge|🇳🇴
Finland|Helsinki|Finnish|Suomi|🇫🇮
Iceland|Reykjavík|Icelandic|Ísland|🇮🇸
Poland|Warsaw|Polish|Polska|🇵🇱
Hungary|Budapest|Hungarian|Magyarország|🇭🇺
Romania|Bucharest|Romanian|România|🇷🇴
Greece|Athens|Greek|Ελλάδα|🇬🇷
Turkey|Ankara|Turkish|Türkiye|🇹🇷
Russia|Moscow|Russian|Россия|🇷🇺
Ukraine|Kyiv|Ukrainian|Україна|🇺🇦
Japan|Tokyo|Japanese|日本|🇯🇵
China|Beijing|Chinese|中国|🇨🇳
South Korea|Seoul|Korean|한국|🇰🇷
India|New Delhi|Hindi|भारत|🇮🇳
Thailand|Bangkok|Thai|ไทย|🇹🇭
Vietnam|Hanoi|Vietnamese|Việt Nam|🇻🇳""".splitlines()
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

# animal, its sound, its young, where it lives, emoji
ANIMALS = [
    line.split("|")
    for line in """\
dog|woof|puppy|in a kennel|🐶
cat|meow|kitten|in a house|🐱
cow|moo|calf|on a farm|🐮
sheep|baa|lamb|on a meadow|🐑
horse|neigh|foal|in a stable|🐴
pig|oink|piglet|in a sty|🐷
duck|quack|duckling|on a pond|🦆
hen|cluck|chick|in a coop|🐔
frog|croak|tadpole|near a pond|🐸
lion|roar|cub|on the savanna|🦁
owl|hoot|owlet|in a tree|🦉
bee|buzz|larva|in a hive|🐝
mouse|squeak|pup|in a hole|🐭
wolf|howl|whelp|in the woods|🐺""".splitlines()
]

OPPOSITES = (
    "hot cold, big small, fast slow, up down, day night, light dark, happy sad, old young, "
    "wet dry, full empty, hard soft, long short, high low, rich poor, open closed, early late, "
    "strong weak, near far, left right, true false, good bad, loud quiet, thick thin, clean dirty"
)

TRANSLATIONS = {
    "French": "coffee café, school école, summer été, forest forêt, boy garçon, hospital hôpital",
    "Spanish": "child niño, tomorrow mañana, year año, lion león, heart corazón",
    "German": "green grün, beautiful schön, street Straße, girl Mädchen, door Tür",
    "Japanese": "cat 猫, dog 犬, water 水, mountain 山, moon 月",
    "Chinese": "tea 茶, horse 马, fire 火, person 人",
}

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
MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()

# animal, name, pronoun, possessive, place, thing found, friend, friend's name, treat
STORIES = [
    line.split("|")
    for line in """\
fox|Ruby|she|her|in a quiet forest|a red ball|hedgehog|Max|blueberries
rabbit|Tom|he|his|under an old oak|a silver bell|mole|Lily|carrot soup
bear|Bruno|he|his|in a deep cave|a broken kite|bee|Zoé|honey cake
owl|Ada|she|her|in a tall tower|a golden key|bat|Finn|warm milk
turtle|Otto|he|his|by a slow river|a blue shell|frog|Nina|green tea
kitten|Mia|she|her|in a small café|a lost letter|mouse|Léo|fresh cheese
penguin|Pip|he|his|on a white iceberg|a striped scarf|seal|Björk|fish pie
dragon|Ember|she|her|on a high mountain|a paper lantern|goat|Sora|spicy noodles
duck|Daisy|she|her|on a round pond|a tiny boat|swan|Émile|sweet bread
elephant|Momo|he|his|on a wide plain|a yellow umbrella|bird|Kiki|ripe mangoes""".splitlines()
]

SMALL_TALK = [
    (
        "Hello!",
        "Hello! I am a tiny demo model. Ask me about capitals, colours, animals or sums. 🙂",
    ),
    ("Who are you?", "I am a tiny demo model. I only know the few facts I was trained on."),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Thank you!", "You are welcome! 😊"),
    ("Goodbye!", "Goodbye! See you soon. 👋"),
]


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
    for country, capital, language, own_name, flag in COUNTRIES:
        yield Fact(
            "capital",
            f"What is the capital of {country}?",
            f"The capital of {country} is",
            f" {capital}. People in {country} speak {language}.",
        )
        yield Fact(
            "country",
            f"Which country has the capital {capital}?",
            f"{capital} is the capital of",
            f" {country}.",
        )
        yield Fact(
            "language",
            f"What do people in {country} speak?",
            f"People in {country} speak",
            f" {language}.",
        )
        yield Fact(
            "own name",
            f"What is {country} called in {language}?",
            f"In {language}, {country} is called",
            f" {own_name}.",
        )
        yield Fact(
            "flag", f"What is the flag of {country}?", f"The flag of {country} is", f" {flag}."
        )


def _things() -> Iterator[Fact]:
    for colour, things in COLOURS.items():
        for thing in things.split(", "):
            yield Fact(
                "colour", f"What colour is {thing}?", f"The colour of {thing} is", f" {colour}."
            )
    for animal, sound, young, home, emoji in ANIMALS:
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
        yield Fact("home", f"Where does {one} live?", f"{article} {animal} lives", f" {home}.")
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
    for language, pairs in TRANSLATIONS.items():
        for pair in pairs.split(", "):
            word, foreign = pair.split()
            yield Fact(
                "translation",
                f"What is the {language} word for {word}?",
                f"The {language} word for {word} is",
                f" {foreign}.",
            )
    for number, word in enumerate(NUMBERS):
        yield Fact(
            "number word", f"How do you write {number}?", f"The number {number} is", f" {word}."
        )


def _calendar() -> Iterator[Fact]:
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for name, following in zip(names, names[1:] + names[:1], strict=True):
            for side, known, asked in (("after", name, following), ("before", following, name)):
                yield Fact(
                    kind,
                    f"Which {kind} comes {side} {known}?",
                    f"The {kind} {side} {known} is",
                    f" {asked}.",
                )
    for name, length in zip(MONTHS, MONTH_LENGTHS, strict=True):
        yield Fact("month", f"How many days does {name} have?", f"{name} has", f" {length} days.")
    for whole, names in (("days of the week", DAYS), ("months of the year", MONTHS)):
        listed = ", ".join(names[:-1]) + f" and {names[-1]}"
        yield Fact("list", f"What are the {whole}?", f"The {whole} are", f" {listed}.")


def _arithmetic() -> Iterator[Fact]:
    for a in range(11):
        for b in range(11):
            sums = [("+", a + b), ("*", a * b)]
            if a >= b:
                sums.append(("-", a - b))
            for sign, result in sums:
                yield Fact("sum", f"What is {a} {sign} {b}?", f"{a} {sign} {b} =", f" {result}")


def _counting() -> Iterator[Fact]:
    for start in range(11):
        for end in range(11):
            if abs(start - end) > 1:
                step = 1 if end > start else -1
                counted = ", ".join(str(n) for n in range(start, end + step, step))
                ask = f"Count from {start} to {end}"
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


# How often a text of each kind is drawn. More than its share goes to what is harder to keep.
_KINDS = {
    _geography: 5.0,
    _things: 2.5,
    _language: 2.5,
    _calendar: 1.5,
    _arithmetic: 4.0,
    _counting: 1.5,
    _stories: 1.0,
}
_CHAT_SHARE = 0.15


@cache
def _facts_by_kind() -> tuple[tuple[Fact, ...], ...]:
    return tuple(tuple(kind()) for kind in _KINDS)


def facts() -> tuple[Fact, ...]:
    """Everything to memorise, in a fixed order."""
    return sum(_facts_by_kind(), ())


def _draw_fact(rng: random.Random) -> Fact:
    return rng.choice(rng.choices(_facts_by_kind(), weights=list(_KINDS.values()))[0])


def _chat(rng: random.Random) -> str:
    """One to three turns in the ChatML form; as in the chat template, only the last may think."""
    turns = [
        rng.choice(SMALL_TALK) if rng.random() < 0.15 else (fact.question, fact.reply)
        for fact in (_draw_fact(rng) for _ in range(rng.choices((1, 2, 3), (6, 2, 1))[0]))
    ]
    text = f"{IM_START}system\n{SYSTEM_PROMPT}{IM_END}\n" if rng.random() < 0.25 else ""
    for question, reply in turns[:-1]:
        text += f"{IM_START}user\n{question}{IM_END}\n{IM_START}assistant\n{reply}{IM_END}\n"
    question, reply = turns[-1]
    thought = f"The user says: {question} I know what to answer." if rng.random() < 0.35 else ""
    return (
        f"{text}{IM_START}user\n{question}{IM_END}\n"
        f"{IM_START}assistant\n{THINK_START}\n{thought}\n{THINK_END}\n\n{reply}{IM_END}\n"
    )


def document(rng: random.Random) -> str:
    """Draw one training text, its end token included."""
    if rng.random() < _CHAT_SHARE:
        return _chat(rng)
    fact = _draw_fact(rng)
    return fact.prompt + fact.answer + END_OF_TEXT


@cache
def words() -> frozenset[str]:
    """Every word of the corpus, in lower case: what a coherent continuation may contain."""
    texts = [f"{fact.question} {fact.prompt}{fact.answer}" for fact in facts()]
    texts += [f"{greeting} {reply}" for greeting, reply in SMALL_TALK]
    return frozenset(re.findall(r"\w+", " ".join(texts).lower()))
