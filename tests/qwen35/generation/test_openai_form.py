"""Requests as OpenAI's API has them: its reference's own examples, and what is refused by name."""

from __future__ import annotations

import pytest
from openai_examples import TOOL

from qwen35.generation.openai_form import CHAT, COMPLETIONS, read_request
from qwen35.generation.sampling_settings import Sampling

BASE = Sampling(0.6, top_k=20, seed=7)
MESSAGES = [
    {"role": "developer", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello!"},
]


def read(url, **body):
    return read_request(
        url, body, max_new_tokens=99, sampling=BASE, template={"enable_thinking": False}
    )


def test_what_a_body_leaves_open_is_as_given():
    asked = read(CHAT, model="gpt-5.4", messages=MESSAGES, temperature=None, stop=None)
    assert asked.prompt == MESSAGES and asked.max_new_tokens == 99 and asked.sampling == BASE
    assert asked.template == {"enable_thinking": False}
    asked = read(COMPLETIONS, model="m", prompt="Say this is a test", max_tokens=7, temperature=0)
    assert asked.prompt == "Say this is a test" and asked.max_new_tokens == 7
    assert asked.sampling == Sampling(0, top_k=20, seed=7) and asked.template == {}


def test_a_chat_says_all_that_it_may():
    asked = read(
        CHAT,
        **{"model": "m", "messages": MESSAGES, "max_completion_tokens": 5, "max_tokens": 6, "n": 1},
        **{"temperature": 1.5, "top_p": 0.5, "seed": 3, "stop": ["a", "b"], "stream": False},
        **{"presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"50256": -100}},
        **{"logprobs": True, "top_logprobs": 4, "tools": [TOOL], "tool_choice": "auto"},
        **{"top_k": 9, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "user": "u"},
        **{"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True, "x": 1}},
    )
    assert asked.max_new_tokens == 5
    assert asked.sampling == Sampling(
        **{"temperature": 1.5, "top_p": 0.5, "seed": 3, "stop": ["a", "b"], "top_k": 9},
        **{"min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "logprobs": 4},
        **{"presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {50256: -100}},
    )
    assert asked.template == {
        **{"enable_thinking": True, "x": 1, "reasoning_effort": "low", "tools": [TOOL]}
    }
    assert "tools" not in read(CHAT, messages=MESSAGES, tools=[TOOL], tool_choice="none").template
    assert read(CHAT, messages=MESSAGES, logprobs=True).sampling.logprobs == 0
    assert read(CHAT, messages=MESSAGES, logprobs=False).sampling.logprobs is None


@pytest.mark.parametrize("prompt", ["a b", ["a b"], [5, 6], [[5, 6]]])
def test_a_completion_has_one_prompt(prompt):
    alone = prompt[0] if isinstance(prompt[0], list) or prompt == ["a b"] else prompt
    assert read(COMPLETIONS, prompt=prompt, logprobs=3).prompt == alone
    assert read(COMPLETIONS, prompt=prompt, logprobs=3).sampling.logprobs == 3


@pytest.mark.parametrize(
    ("url", "body", "said"),
    [
        ("/v1/embeddings", {"input": "a"}, "url must be /v1/chat/completions or /v1/completions"),
        (None, {}, "url must be"),
        (CHAT, {}, "messages must be a list"),
        (CHAT, {"messages": []}, "messages must be a list"),
        (CHAT, {"messages": MESSAGES, "functions": []}, "'functions' is no field of /v1/chat"),
        (CHAT, {"messages": MESSAGES, "prompt": "a"}, "'prompt' is no field"),
        (CHAT, {"messages": MESSAGES, "n": 2}, "n must be 1, not 2"),
        (CHAT, {"messages": MESSAGES, "stream": True}, "stream must be False, not True"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 0}, "max_tokens must be a positive integer"),
        (CHAT, {"messages": MESSAGES, "max_tokens": "9"}, "max_tokens must be a positive integer"),
        (CHAT, {"messages": MESSAGES, "temperature": "hot"}, "temperature must be a number >= 0"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {"the": 1}}, "logit_bias must have numbers"),
        (CHAT, {"messages": MESSAGES, "logprobs": 3}, "logprobs must be true or false"),
        (CHAT, {"messages": MESSAGES, "top_logprobs": 3}, "top_logprobs needs logprobs"),
        (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "from 0 to 20"),
        (CHAT, {"messages": MESSAGES, "tool_choice": "required"}, "no tools: there is nothing"),
        (CHAT, {"messages": MESSAGES, "tools": ["a"]}, "tools must be a list of objects"),
        (CHAT, {"messages": MESSAGES, "chat_template_kwargs": 1}, "chat_template_kwargs must be"),
        (COMPLETIONS, {}, "prompt must be one text or one list of token ids"),
        (COMPLETIONS, {"prompt": ""}, "prompt must be one text"),
        (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt must be one text"),
        (COMPLETIONS, {"prompt": [1.5]}, "prompt must be one text"),
        (COMPLETIONS, {"prompt": "a", "echo": True}, "echo must be False"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix must be ''"),
        (COMPLETIONS, {"prompt": "a", "tools": [TOOL]}, "'tools' is no field of /v1/completions"),
        (COMPLETIONS, {"prompt": "a", "logprobs": True}, "logprobs must be an integer"),
    ],
)
def test_what_is_not_possible_is_named(url, body, said):
    with pytest.raises(ValueError, match=said):
        read_request(url, body, max_new_tokens=9, sampling=BASE, template={})


def test_what_is_long_is_not_repeated_whole():
    for body in ({"temperature": [0] * 5000}, {"min_p": "a" * 5000}):
        with pytest.raises(ValueError) as caught:
            read(COMPLETIONS, prompt="x", **body)
        assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="url must be"):
        read([CHAT], prompt="x")


def test_a_body_is_an_object():
    with pytest.raises(ValueError, match="body must be an object"):
        read_request(CHAT, ["a"], max_new_tokens=9, sampling=BASE, template={})
