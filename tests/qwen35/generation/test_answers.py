"""Thoughts, answers and calls of tools, as one text and as it comes.

What is right comes from outside: a template of the published ones' structure writes the calls that
are read back here, and the forms are those of OpenAI's reference and its examples.
"""

from __future__ import annotations

import json
import random

import jinja2
import pytest

from qwen35.generation.answers import (
    AnswerReader,
    delta_of,
    is_whole,
    message_of,
)

# How the published template writes an assistant's message, in our words: the thought, what is said,
# and each call with a line for each mark; texts as they are, other values as JSON.
TEMPLATE = """\
{%- set mapped = messages -%}
{%- for message in mapped -%}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' + message.content -}}
{%- for call in message.tool_calls -%}
{{- '\\n' if not loop.first else '\\n\\n' if message.content else '' -}}
{{- '<tool_call>\\n<function=' + call.name + '>\\n' -}}
{%- for name, value in call.arguments.items() -%}
{{- '<parameter=' + name + '>\\n' -}}
{{- (value if value is string else value | tojson) + '\\n</parameter>\\n' -}}
{%- endfor -%}
{{- '</function>\\n</tool_call>' -}}
{%- endfor -%}
{%- endfor -%}"""


def tool(name, **properties):
    """A tool as OpenAI's API has it; a property is its JSON type or its whole schema."""
    schemas = {
        key: {"type": kind} if isinstance(kind, str) else kind for key, kind in properties.items()
    }
    parameters = {"type": "object", "properties": schemas}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("get_current_weather", location="string", unit={"enum": ["celsius", "fahrenheit"]}),
    tool(
        "everything",
        **{"s": "string", "i": "integer", "n": "number", "b": "boolean", "a": "array"},
        **{"o": "object", "m": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        **{"t": {"type": ["string", "null"]}, "u": {}},
    ),
    tool("now"),
]
WORDS = [
    "{",
    "}",
    "<",
    ">",
    "</",
    "\n",
    "Grüße ",
    "日本",
    '"',
    "\\",
    "parameter",
    "function",
    " ",
    "x",
]
MARKS = ["</parameter>", "<tool_call>", "</tool_call>", "</function> ", "<parameter=a>", "</think>"]


class Marks:
    """A tokenizer of characters in which the ends of a thought are one token each."""

    def __init__(self, special=False):
        self._special = special
        self._marks = {0x110000: "<think>", 0x110001: "</think>"}

    def encode(self, text):
        for token, mark in self._marks.items():
            if mark in text:
                before, _, after = text.partition(mark)
                return [*self.encode(before), token, *self.encode(after)]
        return [ord(letter) for letter in text]

    def decode(self, tokens, skip_special_tokens=False):
        hidden = self._marks if self._special and skip_special_tokens else {}
        shown = (token for token in tokens if token not in hidden)
        return "".join(self._marks.get(token) or chr(token) for token in shown)


class Plain(Marks):
    """A tokenizer that knows no marks."""

    def __init__(self):
        super().__init__()
        self._marks = {}


def parts_of(said, tokenizer=None, prompt="", rng=None, **options):
    """The parts of an answer that comes token by token; texts come late where `rng` says so."""
    tokenizer = tokenizer or Marks()
    reader = AnswerReader(tokenizer, tokenizer.encode(prompt), **options)
    parts, held = [], ""
    for token in tokenizer.encode(said):
        held += tokenizer.decode([token], skip_special_tokens=True)
        text, held = ("", held) if rng and rng.random() < 0.3 else (held, "")
        parts += reader.push(token, text)
    return parts + reader.finish(held)


def read(said, **options):
    return message_of(parts_of(said, **options))


def calls_of(message):
    return [
        {"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"])}
        for c in message.get("tool_calls", ())
    ]


def text_of(rng, marks=False):
    words = rng.choices(WORDS + (MARKS if marks else []), k=rng.randrange(0, 9))
    return "".join(words)


def call_of(rng):
    values = {
        **{"s": text_of(rng, marks=True), "i": rng.randrange(-9, 99), "n": rng.random()},
        **{
            "b": rng.random() < 0.5,
            "a": [1, {"x": text_of(rng)}],
            "o": {"k": text_of(rng), "l": {}},
        },
        **{"m": rng.choice([None, 7]), "t": text_of(rng), "u": text_of(rng)},
    }
    chosen = rng.sample(sorted(values), rng.randrange(0, len(values) + 1))
    return {"name": "everything", "arguments": {key: values[key] for key in chosen}}


def ambiguous(call):
    """Whether a text of the call can't be told from the marks around it, by anybody."""
    texts = [value for value in call["arguments"].values() if isinstance(value, str)]
    return any(
        mark + end in text.replace("\n", "").replace(" ", "") + "</parameter>"
        for text in texts
        for mark in ("</parameter>",)
        for end in ("<parameter=", "</function>")
    )


@pytest.mark.parametrize("seed", range(40))
def test_what_a_template_writes_is_read_back(seed):
    """Thought, text and calls, whatever they say, however the text comes."""
    rng = random.Random(seed)
    environment = jinja2.Environment()
    # As transformers has it: Jinja's own is for HTML.
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    render = environment.from_string(TEMPLATE).render
    calls = [call_of(rng) for _ in range(rng.randrange(0, 4))]
    calls = [call for call in calls if not ambiguous(call)]
    # At the ends line ends are the template's, and a thought ends at the first such token.
    message = {
        "reasoning_content": text_of(rng).strip("\n"),
        "content": text_of(rng).strip("\n"),
        "tool_calls": calls,
    }
    said = render(messages=[message])
    for late in (None, rng):
        found = read(said, tools=TOOLS, rng=late)
        assert found.get("reasoning_content", "") == message["reasoning_content"]
        assert (found["content"] or "") == message["content"]
        assert calls_of(found) == calls
        assert len({call["id"] for call in found.get("tool_calls", ())}) == len(calls)


def test_a_call_is_streamed_as_in_openai_s_guide():
    """Its example of a streamed call: the name with empty arguments, then pieces of their JSON."""
    said = "<tool_call>\n<function=get_current_weather>\n<parameter=location>\nParis, France\n"
    said += "</parameter>\n<parameter=unit>\ncelsius\n</parameter>\n</function>\n</tool_call>"
    deltas = [delta_of(part) for part in parts_of(said, tools=TOOLS, name="a")]
    [first] = deltas[0]["tool_calls"]
    assert first.pop("id").startswith("call_")
    assert first == {
        "index": 0,
        "type": "function",
        "function": {"name": "get_current_weather", "arguments": ""},
    }
    for delta in deltas[1:]:
        [call] = delta["tool_calls"]
        assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
    pieces = [delta["tool_calls"][0]["function"]["arguments"] for delta in deltas[1:]]
    assert len(pieces) >= 3
    assert json.loads("".join(pieces)) == {"location": "Paris, France", "unit": "celsius"}
    message = message_of(parts_of(said, tools=TOOLS))
    assert message["content"] is None and message["role"] == "assistant"


@pytest.mark.parametrize(
    ("said", "content", "names"),
    [
        ("Say <tool_call> to call.", "Say <tool_call> to call.", []),
        ("<tool_call>\n{}\n</tool_call>", "<tool_call>\n{}\n</tool_call>", []),
        ("a\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n", "a", ["now"]),
        ("<tool_call><function=now></function></tool_call>b", "b", ["now"]),
        ("<tool_call>\n<function=now>\n</function>\n", "", ["now"]),  # cut short behind its end
        ("a <tool_call>\n<func", "a <tool_call>\n<func", []),
        ("a <tool_c", "a <tool_c", []),
        ("a\n<tool_call>\n<function=unknown>\n<parameter=x>\n1\n</parameter>\n</function>\n"
         "</tool_call>", "a", ["unknown"]),
    ],
)  # fmt: skip
def test_what_is_no_call_is_text(said, content, names):
    message = read(said, tools=TOOLS)
    assert (message["content"] or "") == content
    assert [call["name"] for call in calls_of(message)] == names
    without = read(said)  # where there are no tools, all is text
    assert "tool_calls" not in without and without["content"] == said.rstrip("\n")


def test_a_call_that_is_cut_short_is_not_whole():
    said = "<tool_call>\n<function=everything>\n<parameter=i>\n1\n</parameter>\n<parameter=s>\nhalf"
    [call] = read(said, tools=TOOLS)["tool_calls"]
    assert call["function"] == {"name": "everything", "arguments": '{"i": 1'}
    assert not is_whole(call)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("s", "1", "1"),
        ("i", "1", 1),
        ("i", "one", "one"),
        ("n", "1e3", 1000.0),
        ("b", "true", True),
        ("a", "[1, 2]", [1, 2]),
        ("m", "null", None),
        ("t", "null", None),
        ("s", "null", "null"),
        ("u", "1", "1"),
        ("other", "1", "1"),
        ("s", "\n two lines\n", "\n two lines\n"),
        ("s", "", ""),
    ],
)
def test_the_schema_says_what_a_value_is(key, text, value):
    said = f"<tool_call>\n<function=everything>\n<parameter={key}>\n{text}\n</parameter>\n"
    said += "</function>\n</tool_call>"
    assert calls_of(read(said, tools=TOOLS))[0]["arguments"] == {key: value}


@pytest.mark.parametrize("tokenizer", [Marks(), Marks(special=True), Plain()])
@pytest.mark.parametrize(
    ("prompt", "said", "thought", "text"),
    [
        ("<think>\n", "hm\n</think>\n\nyes", "hm", "yes"),
        ("<think>", "hm</think>yes\n", "hm", "yes"),
        ("", "<think>\nhm\n\n</think>\n\nyes", "hm", "yes"),
        ("", "yes, <b>", "", "yes, <b>"),
        ("<think>\n\n</think>\n\n", "yes", "", "yes"),
        ("What is <think>?<|im_end|>\n", "yes", "", "yes"),
        ("<think>\n", "well,\n\n hm", "well,\n\n hm", ""),
        ("<think>\n", "\n</think>\n\n", "", ""),
        ("", "", "", ""),
    ],
)
def test_a_thought_is_told_from_the_answer(tokenizer, prompt, said, thought, text):
    for late in (None, random.Random(3)):
        message = read(said, tokenizer=tokenizer, prompt=prompt, rng=late)
        assert message.get("reasoning_content", "") == thought and message["content"] == text
    whole = read(said, tokenizer=tokenizer, prompt=prompt, thinking=False)
    assert "reasoning_content" not in whole


def test_nothing_is_held_back_that_can_be_given_out():
    """A thought and a text come as they are made, but for what may be a mark or the last line."""
    reader = AnswerReader(Marks(), [], tools=TOOLS)
    said = "<think>\nab\n\nc</think>\nd <e <tool"
    given = []
    for token in Marks().encode(said):
        text = Marks().decode([token])
        given.append("".join(part.text for part in reader.push(token, text)))
    assert given[:3] == ["", "", "a"]
    assert given == ["", "", "a", "b", "", "", "\n\nc", "", "", "d", " ", "", "<e", " ", *[""] * 5]
