"""Answers that have to call a tool: OpenAI's own examples of tools, and calls as the published chat
templates of Qwen3.5 write them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from openai_examples import TOOL as WEATHER

import qwen35
from qwen35.generation.answers import message_of, read_answer
from qwen35.generation.grammar import grammar_for
from qwen35.generation.openai_form import CHAT, read_request, reader_for
from qwen35.generation.tool_calls import CallReader

pytest.importorskip("llguidance")

DEMO = Path(__file__).resolve().parents[3] / "demo"
# Of OpenAI's guide to function calling.
SEARCH = {
    "type": "function",
    "function": {
        "name": "search_knowledge_base",
        "parameters": {
            "type": "object",
            "properties": {
                "options": {
                    "type": "object",
                    "properties": {
                        "num_results": {"type": "number"},
                        "domain_filter": {"type": ["string", "null"]},
                        "near": {"$ref": "#/$defs/place"},
                    },
                    "required": ["num_results", "domain_filter"],
                    "additionalProperties": False,
                },
                "query": {"type": ["string", "null"]},
                "pages": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
            },
            "required": ["options", "pages"],
            "$defs": {"place": {"enum": ["here", "there"]}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, SEARCH, NOW]
# As the templates write calls.
CALL = "<tool_call>\n<function={name}>\n{arguments}</function>\n</tool_call>"
ARGUMENT = "<parameter={key}>\n{value}\n</parameter>\n"


def written(name, **arguments):
    texts = [ARGUMENT.format(key=key, value=value) for key, value in arguments.items()]
    return CALL.format(name=name, arguments="".join(texts))


@pytest.fixture(scope="module")
def tokenizer():
    return qwen35.Tokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def params():
    return qwen35.load(DEMO)


def follows(tokenizer, grammar, text):
    """Whether a whole answer may be this text: token by token, and then the end."""
    ends = frozenset(tokenizer.end_token_ids)
    found = grammar_for(tokenizer, qwen35.Sampling(grammar=grammar), [5], 1280, ends)
    for token in [*tokenizer.encode(text), min(ends)]:
        words = found.allowed
        if not int(words[token // 32]) >> token % 32 & 1:
            return False
        found.take(token)
    return True


TWO = written("now") + "\n" + written("get_current_weather", location="Bern")
OPTIONS = '{"num_results": 3, "domain_filter": null, "near": "here"}'
RIGHT = [
    written("get_current_weather", location="Paris", unit="celsius"),
    written("get_current_weather", location="two\nlines, <b>x</b> and </parameter"),
    written("get_current_weather", location=""),
    written("search_knowledge_base", options=OPTIONS, query="a", pages="[1, 2]"),
    written("search_knowledge_base", options=OPTIONS, pages="[]"),
    written("now"),
]
WRONG = [
    "Let me see.",
    written("get_current_weather", unit="celsius"),
    written("get_current_weather", location="Paris", unit="kelvin"),
    written("get_current_weather", location="Paris", country="France"),
    written("search_knowledge_base", options='{"num_results": "3"}', pages="[]"),
    written("search_knowledge_base", options=OPTIONS.replace("here", "far"), pages="[]"),
    written("search_knowledge_base", options=OPTIONS, pages="[1, 2, 3]"),
    written("look"),
    written("now")[:-1],
    written("now") + "!",
]


@pytest.mark.parametrize("text", RIGHT)
def test_calls_as_templates_write_them_may_stand_there(tokenizer, text):
    assert follows(tokenizer, qwen35.tool_grammar(TOOLS), text)


@pytest.mark.parametrize("text", WRONG)
def test_nothing_else_may(tokenizer, text):
    assert not follows(tokenizer, qwen35.tool_grammar(TOOLS), text)


def test_one_tool_or_several_calls_are_asked_for(tokenizer):
    named = qwen35.tool_grammar(TOOLS, "now")
    assert follows(tokenizer, named, written("now"))
    assert not follows(tokenizer, named, RIGHT[0])
    assert not follows(tokenizer, qwen35.tool_grammar(TOOLS), TWO)
    assert follows(tokenizer, qwen35.tool_grammar(TOOLS, several=True), TWO)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {tool["function"]["name"] for tool in TOOLS}),
        ({"type": "function", "function": {"name": "search_knowledge_base"}},
         {"search_knowledge_base"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("thinking", [False, True])
def test_what_is_drawn_calls_a_tool_in_openai_s_form(params, tokenizer, choice, names, thinking):
    """The demo knows nothing of tools: the grammar alone makes it call one."""
    body = {"messages": [{"role": "user", "content": "Hello!"}], "tools": TOOLS}
    engine = qwen35.Engine(params, tokenizer, slots=4, capacity=512, prefill_sizes=1)
    asked, requests = [], []
    for seed in range(4):
        one = read_request(
            CHAT,
            {**body, "tool_choice": choice, "parallel_tool_calls": False, "seed": seed},
            max_new_tokens=200,
            sampling=qwen35.Sampling(1.0, top_k=8),
            template={"enable_thinking": thinking},
        )
        asked.append(one)
        how = {"sampling": one.sampling, "template": one.template}
        requests.append(engine.submit(one.prompt, max_new_tokens=one.max_new_tokens, **how))
    list(engine.run())
    whole = 0
    for one, request in zip(asked, requests, strict=True):
        assert request.error is None
        message = message_of(read_answer(reader_for(one, request, tokenizer, "x"), request))
        if request.finish_reason != "stop":  # a text may go on
            continue
        [call] = message["tool_calls"]
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        assert name in names and message["content"] is None
        [tool] = [tool for tool in TOOLS if tool["function"]["name"] == name]
        jsonschema.validate(arguments, tool["function"].get("parameters", {}))
        whole += 1
    assert whole or thinking


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tool_choice": "required"}, "no tools: there is nothing that could be called"),
        ({"tool_choice": "any", "tools": TOOLS}, "'required', or a function with a name"),
        ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "or a function with a name"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": TOOLS}, "or a function with a name"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "fly"}}, "tools": TOOLS},
            "no tool is named 'fly'; there are get_current_weather, search_knowledge_base, now",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls must be true or false"),
        (
            {"tool_choice": "required", "tools": TOOLS, "response_format": {"type": "json_object"}},
            "goes with no JSON schema",
        ),
        (
            {"tool_choice": "required", "tools": [{"type": "function", "function": {}}]},
            "need names without > and line ends",
        ),
        ({"tool_choice": "required", "tools": TOOLS, "ignore_eos": True}, "ignore_eos must be"),
        *(
            ({"tool_choice": "required", "tools": [{"type": "function", "function": f}]}, said)
            for f, said in (
                (-1e308, "a tool's function must be an object, not -1e"),
                ({"name": "x", "parameters": ["y"]}, "parameters of 'x' must be an object"),
                (
                    {"name": "x", "parameters": {"properties": 5}},
                    "properties of 'x' must be an object",
                ),
                ({"name": "x", "parameters": {"required": [{}]}}, "required of 'x' must be a list"),
                ({"name": "x", "parameters": {"required": 5}}, "required of 'x' must be a list"),
            )
        ),
    ],
)
def test_what_can_t_be_called_is_refused(body, said):
    messages = [{"role": "user", "content": "Hello!"}]
    how = {"max_new_tokens": 9, "sampling": qwen35.Sampling(), "template": {}}
    with pytest.raises(ValueError, match=said):
        read_request(CHAT, {"messages": messages, **body}, **how)


def test_a_grammar_is_one(params, tokenizer):
    for grammar, said in (("", "grammar must be a text"), (3, "grammar must be a text")):
        with pytest.raises(ValueError, match=said):
            qwen35.Sampling(grammar=grammar)
    with pytest.raises(ValueError, match="grammar must be None beside json_schema"):
        qwen35.Sampling(grammar="start: /a/", json_schema={})
    with pytest.raises(ValueError, match="the grammar, as of a tool_choice, can't be followed"):
        qwen35.generate(params, tokenizer, "a", sampling=qwen35.Sampling(grammar="start: ("))
    sampling = qwen35.Sampling(grammar='start: "Bern" | "Rome"')
    [said] = qwen35.generate(params, tokenizer, "The capital of Italy is", sampling=sampling)
    assert said.text in ("Bern", "Rome") and said.finish_reason == "stop"


@pytest.mark.parametrize(
    "parameters",
    [5, [], {"properties": 5}, {"properties": {"x": 5}}]
    + [{"properties": {"x": {word: odd}}} for word in ("type", "anyOf", "oneOf", "enum")
       for odd in (5, [{}], [[1]], {"a": 1}, None)],
)  # fmt: skip
def test_an_odd_schema_fails_over_no_call(parameters):
    """A model may call a tool whose schema is none: the argument is JSON, or else its text."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    said = "\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    assert json.loads("".join(CallReader(tools).push(said)))["x"] in (1, "1")
