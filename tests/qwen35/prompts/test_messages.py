"""Messages to text: what transformers renders, of messages in the form that its templates know.

Tool calls are OpenAI's own: the example of its page on function calling.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import qwen35
from qwen35.prompts.inputs import encode_prompts

DEMO = Path(__file__).resolve().parents[3] / "demo"
# As the family's templates go over tool calls: arguments are a mapping.
TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function if call.function is defined else call %}
{{- '<function=' + call.name + '>' }}
{%- for name, value in call.arguments | items %}
{{- '<parameter=' + name + '>' + (value | tojson if value is mapping else value | string) }}
{%- endfor %}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}"""
QUESTION = {"role": "user", "content": "What is the weather like in Paris today?"}
ARGUMENTS = {"location": "Paris, France", "units": {"temperature": "°C"}, "days": 2}


@pytest.fixture(scope="module")
def theirs():
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def conversation(arguments, wrapped=True, content=None):
    function = {"name": "get_weather", "arguments": arguments}
    call = {"id": "call_12345xyz", "type": "function", "function": function}
    said = {"role": "assistant", "content": content, "tool_calls": [call if wrapped else function]}
    return [QUESTION, said, {"role": "tool", "tool_call_id": "call_12345xyz", "content": "14"}]


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (json.dumps(ARGUMENTS), ARGUMENTS),
        (json.dumps(ARGUMENTS, indent=2), ARGUMENTS),
        (ARGUMENTS, ARGUMENTS),
        ("", {}),
        (" \n", {}),
        (None, {}),
        ("null", {}),
        ("{}", {}),
    ],
)
def test_arguments_of_tool_calls_are_rendered_as_their_object(theirs, arguments, known, wrapped):
    messages = conversation(arguments, wrapped)
    before = copy.deepcopy(messages)
    rendered = qwen35.Tokenizer(theirs).render(messages)
    assert rendered == theirs.apply_chat_template(
        conversation(known, wrapped, content=""), tokenize=False, add_generation_prompt=True
    )
    assert messages == before


@pytest.mark.parametrize("arguments", ["{", "[1]", "1", '"text"', [1], 5, '{"a": 1,}'])
def test_arguments_that_are_no_object_are_refused_with_the_messages_number(theirs, arguments):
    with pytest.raises(ValueError, match=r"^message 1, tool call 0: its arguments"):
        qwen35.Tokenizer(theirs).render(conversation(arguments))


@pytest.mark.parametrize("messages", [False, -1e308, "text", b"text", {"role": "user"}])
def test_messages_that_are_no_list(messages):
    with pytest.raises(ValueError, match="messages must be a list of dicts with a role, not "):
        qwen35.Tokenizer.from_pretrained(DEMO).render(messages)


def test_what_a_template_says_is_cut():
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    with pytest.raises(ValueError, match="the chat template refuses the messages") as caught:
        tokenizer.render([{"role": [0] * 5000, "content": "Hello"}])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("calls", ["text", 5, ["get_weather"], [{"function": {}}], [None]])
def test_tool_calls_of_another_form_are_refused(theirs, calls):
    messages = [QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(ValueError, match=r"^message 1[:,]"):
        qwen35.Tokenizer(theirs).render(messages)


@pytest.mark.parametrize(
    "failing",
    ["{{ raise_exception('no') }}", "{{ messages[0].content + 1 }}", "{{ messages[9].role }}",
     "{{ 1 / 0 }}", "{% if %}"],
)  # fmt: skip
def test_a_template_that_fails_is_a_sentence(theirs, failing):
    other = copy.copy(theirs)
    other.chat_template = failing
    with pytest.raises(ValueError, match=r"^the chat template (refuses|fails over) the messages"):
        qwen35.Tokenizer(other).render([QUESTION])


def test_a_tokenizer_with_a_template_takes_messages():
    """Ours and transformers' own; parts of text are one text."""
    params, ours = qwen35.load(DEMO), qwen35.Tokenizer.from_pretrained(DEMO)
    theirs = AutoTokenizer.from_pretrained(DEMO)
    ids = theirs.apply_chat_template([QUESTION], add_generation_prompt=True, return_dict=False)
    first, second = QUESTION["content"][:9], QUESTION["content"][9:]
    parts = [{"type": "text", "text": first}, {"type": "text", "text": second}]
    for tokenizer in (ours, theirs):
        for messages in ([QUESTION], [[QUESTION]], [{"role": "user", "content": parts}]):
            assert encode_prompts(params, tokenizer, messages)[0] == [ids]
    rows, _ = encode_prompts(params, ours, [[QUESTION], "a text"])
    assert rows == [ids, theirs.encode("a text")]
    picture = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    with pytest.raises(ValueError, match="message 0, part 0: only text can be shown"):
        encode_prompts(params, ours, picture)
    theirs.chat_template = None
    with pytest.raises(qwen35.CheckpointError, match="no chat template"):
        encode_prompts(params, theirs, [QUESTION])


def test_a_call_in_openai_s_older_form_is_one(theirs):
    called = {"name": "get_weather", "arguments": json.dumps(ARGUMENTS)}
    said = {"role": "assistant", "content": None, "function_call": called}
    result = {"role": "tool", "content": "14"}
    wanted = conversation(ARGUMENTS, content="")[1]
    rendered = theirs.apply_chat_template([QUESTION, wanted, result], tokenize=False)
    tokenizer = qwen35.Tokenizer.from_pretrained(DEMO)
    tokenizer.hf.chat_template = TEMPLATE
    messages = [QUESTION, said, result]
    before = copy.deepcopy(messages)
    assert tokenizer.render(messages, add_generation_prompt=False) == rendered
    assert messages == before and "Paris" in rendered
    with pytest.raises(ValueError, match="message 1 has tool_calls and a function_call"):
        tokenizer.render([QUESTION, {**said, "tool_calls": [{"function": called}]}])
