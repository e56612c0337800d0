"""Conversations with the demo checkpoint: what is answered, what is read, what is kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

import qwen35
from qwen35.generation.chat import Chat, ConversationFull, sampling_defaults

DEMO = Path(__file__).resolve().parents[3] / "demo"
JAPAN = "What is the capital of Japan?"
TOKYO = "The capital of Japan is Tokyo. People in Japan speak Japanese."
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris. People in France speak French."


@pytest.fixture(scope="module")
def params():
    return qwen35.load(DEMO)


@pytest.fixture(scope="module")
def tokenizer():
    return qwen35.Tokenizer.from_pretrained(DEMO)


@pytest.fixture
def make(params, tokenizer):
    """make(**options): a chat on an engine of its own that has read nothing."""

    def build(engine_options=None, **options):
        engine_options = {"slots": 1, "capacity": 512, "snapshot_every": 10_000} | (
            engine_options or {}
        )
        engine = qwen35.Engine(params, tokenizer, **engine_options)
        return Chat(engine, tokenizer, **options)

    return build


@pytest.fixture(scope="module")
def from_scratch(params, tokenizer):
    """from_scratch(messages, thinking): the answer's tokens by `generate`, which keeps nothing."""

    def run(messages, thinking):
        text = tokenizer.hf.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        [completion] = qwen35.generate(params, tokenizer, text, max_new_tokens=256)
        return completion.tokens

    return run


def say(chat, text):
    """Asks and waits; the request and the answer."""
    request = chat.ask(text)
    list(chat.engine.stream(request))
    return request, chat.finish(request)


def read(request):
    """How many tokens of the prompt were read for this request."""
    return len(request.tokens) - request.cached_tokens


def question_tokens(tokenizer, text):
    return len(tokenizer.encode(f"<|im_start|>user\n{text}<|im_end|>\n"))


@pytest.mark.parametrize("thinking", [False, True])
def test_turns_answer_as_from_scratch_and_read_only_what_changed(
    make, tokenizer, from_scratch, thinking
):
    """The template drops earlier thoughts: the turn after is read from the last message on."""
    chat = make(thinking=thinking)
    _, answer = say(chat, JAPAN)
    assert answer == TOKYO
    assert (JAPAN in chat.messages[-1].get("reasoning_content", "")) == thinking
    before = list(chat.messages)
    second, _ = say(chat, FRANCE)
    asked = [*before, {"role": "user", "content": FRANCE}]
    assert tuple(second.new_tokens) == from_scratch(asked, thinking)
    # The first question was not read again: its answer, the new question, the answer's start.
    assert second.cached_tokens == question_tokens(tokenizer, JAPAN)
    third, _ = say(chat, JAPAN)
    assert tuple(third.new_tokens) == from_scratch(chat.messages[:-1], thinking)
    assert third.cached_tokens > second.cached_tokens
    assert read(third) < read(second) + 5


def test_another_answer_reads_nothing(make):
    chat = make(thinking=False)
    first, _ = say(chat, JAPAN)
    again = chat.retry()
    list(chat.engine.stream(again))
    assert chat.finish(again) == TOKYO
    assert read(again) == 0 and again.new_tokens == first.new_tokens
    assert len(chat.messages) == 2


@pytest.mark.parametrize("thinking", [False, True])
def test_editing_the_last_message_reads_from_where_it_begins(
    make, tokenizer, from_scratch, thinking
):
    """The first edit already, thoughts of earlier turns or not: what stands before it is known."""
    chat = make(thinking=thinking, system="You are brief.")
    say(chat, FRANCE)
    say(chat, "A word: what is the opposite of hot?")
    edited = chat.edit(JAPAN)
    list(chat.engine.stream(edited))
    chat.finish(edited)
    assert tuple(edited.new_tokens) == from_scratch(chat.messages[:-1], thinking)
    assert [m["role"] for m in chat.messages] == ["system", *["user", "assistant"] * 2]
    before = tokenizer.decode(edited.tokens).rpartition(JAPAN)[0]
    assert edited.cached_tokens == len(tokenizer.encode(before)) > len(tokenizer.encode(PARIS))
    third = chat.edit(FRANCE)
    list(chat.engine.stream(third))
    # "What is the capital of" is where the two parted, which is known from the edit before.
    assert third.cached_tokens >= edited.cached_tokens


def test_a_thinking_budget_closes_the_thought(make, tokenizer):
    chat = make(thinking=True, thinking_tokens=4)
    request, answer = say(chat, JAPAN)
    thought = tokenizer.decode(request.new_tokens[:4])
    assert request.text.startswith(thought + "\n</think>\n\n")
    assert chat.messages[-1]["content"] == answer
    assert chat.messages[-1]["reasoning_content"] == thought.strip("\n")
    unlimited, _ = say(make(thinking=True), JAPAN)
    assert unlimited.new_tokens[:4] == request.new_tokens[:4] != unlimited.new_tokens


def test_an_answer_cut_short_stays_in_the_history(make):
    chat = make(thinking=False)
    request = chat.ask(JAPAN)
    while len(request.new_tokens) < 3:
        chat.engine.step()
    chat.engine.cancel(request)
    assert TOKYO.startswith(chat.finish(request)) and request.text
    assert chat.messages[-1]["role"] == "assistant"
    assert say(chat, FRANCE)[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_saved_conversation_goes_on_elsewhere(make, tokenizer, tmp_path, turns, thinking):
    """What would not be read again here is not read there."""
    chat = make(thinking=thinking)
    for question in [FRANCE, JAPAN][:turns]:
        say(chat, question)
    chat.save(tmp_path / "chat")
    other = make(thinking=thinking)
    say(other, "What is the opposite of hot?")
    other.load(tmp_path / "chat")
    assert other.messages == chat.messages
    ours, theirs = say(chat, FRANCE)[0], say(other, FRANCE)[0]
    assert ours.new_tokens == theirs.new_tokens and ours.tokens == theirs.tokens
    if turns:
        assert ours.cached_tokens == theirs.cached_tokens > len(tokenizer.encode(FRANCE))
        again = other.retry()
        list(other.engine.stream(again))
        small = make({"capacity": 8})
        with pytest.raises(ValueError, match="capacity of 8"):
            small.load(tmp_path / "chat")
        assert small.messages == []


def test_where_the_template_only_adds_all_is_saved(make, tokenizer, tmp_path):
    """The next question reads its own words, and the end token, which was chosen and never read."""
    only_adds = (
        "{% set answer = '<|im_start|>assistant\n<think>\n\n</think>\n\n' %}"
        "{% for message in messages %}"
        "{{ answer if message.role == 'assistant' else '<|im_start|>user\n' }}"
        "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
        "{{ answer if add_generation_prompt else '' }}"
    )
    hf = copy.copy(tokenizer.hf)
    hf.chat_template = only_adds
    adding = qwen35.Tokenizer(hf)
    chat, other = (Chat(make().engine, adding, thinking=False) for _ in range(2))
    request, _ = say(chat, JAPAN)
    chat.save(tmp_path / "chat")
    other.load(tmp_path / "chat")
    following, _ = say(other, FRANCE)
    assert following.cached_tokens == len(request.tokens) + len(request.new_tokens) - 1


def test_a_conversation_that_is_too_long_is_refused(make):
    chat = make({"capacity": 48}, thinking=False)
    with pytest.raises(
        ConversationFull, match=r"has \d+ tokens, and the engine holds 48, an answer"
    ):
        chat.ask("word " * 60)
    assert chat.messages == []
    assert say(chat, JAPAN)[1]


def test_refusals(make, params, tokenizer, tmp_path):
    chat = make()
    with pytest.raises(ValueError, match="no vision"):
        chat.ask("What is it?", images=["cat.png"])
    for call in (chat.retry, lambda: chat.edit("x")):
        with pytest.raises(ValueError, match="nothing has been asked"):
            call()
    for name, value in (("thinking_tokens", -1), ("sampling", "x"), ("template", 5),
                        ("max_new_tokens", "x")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} must be .*, not {value!r}"):
            make(**{name: value})
    state = qwen35.init_state(params, batch=1, capacity=4)
    qwen35.save_state(tmp_path / "state", params, state)
    with pytest.raises(qwen35.CheckpointError, match="not of a conversation"):
        chat.load(tmp_path / "state")


@pytest.mark.parametrize(
    "change",
    [
        {"keys": None}, {"keys": 3}, {"keys": ["a"]}, {"keys": [1.0]}, {"keys": [1, 2, 3]},
        {"messages": None}, {"messages": "text"}, {"messages": [3]}, {"messages": [{}]},
    ],
)  # fmt: skip
def test_a_damaged_conversation_is_refused_and_the_present_one_stays(
    make, params, tmp_path, change
):
    """Keys that the state has not read would stand for it in the cache."""
    chat = make()
    say(chat, JAPAN)
    before, file = list(chat.messages), tmp_path / "chat"
    chat.save(file)
    saved = qwen35.load_state(file, params)
    content = json.loads(saved.metadata["chat"]) | change
    metadata = {"chat": json.dumps(content)}
    qwen35.save_state(file, params, saved.state, logits=saved.logits, metadata=metadata)
    with pytest.raises(qwen35.CheckpointError, match="damaged: not the messages and keys"):
        chat.load(file)
    assert chat.messages == before


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, qwen35.Sampling()),
        ({"do_sample": False, "temperature": 0.7}, qwen35.Sampling()),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
            qwen35.Sampling(temperature=0.6, top_k=20, top_p=0.95),
        ),
        (
            {"do_sample": True, "min_p": 0.1, "repetition_penalty": 1.1},
            qwen35.Sampling(temperature=1.0, min_p=0.1, repetition_penalty=1.1),
        ),
    ],
)
def test_sampling_defaults(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert sampling_defaults(tmp_path) == expected


@pytest.mark.parametrize("content", ["{", "[]", '{"do_sample": true, "top_p": 7}'])
def test_damaged_sampling_defaults(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(qwen35.CheckpointError, match=r"generation_config\.json"):
        sampling_defaults(tmp_path)


def answered(chat, tokenizer, said, question=JAPAN):
    """A request of the chat whose answer is what is given here, its end token included."""
    request = chat.ask(question)
    chat.engine.cancel(request)
    for token in [*tokenizer.encode(said), *tokenizer.encode("<|im_end|>")]:
        request.push(token, None)
    return request


@pytest.mark.parametrize("thinking", [True, False])
def test_an_answer_may_speak_of_the_end_of_thoughts(make, tokenizer, thinking):
    """A thought ends at the first such token, where there is one; the template gets it apart."""
    chat = make(thinking=thinking)
    said = "A tag </think> closes what <think> opens; </think> again."
    thought = "What is it?\n</think>\n\n" if thinking else ""
    assert chat.finish(answered(chat, tokenizer, thought + said)) == said
    assert chat.messages[-1]["content"] == said
    assert chat.messages[-1]["reasoning_content"] == ("What is it?" if thinking else "")
    assert f"{said}<|im_end|>" in tokenizer.render(chat.messages)  # and so it is shown later


def test_a_thought_that_is_cut_short_is_no_answer(make, tokenizer):
    chat = make(thinking=True)
    assert chat.finish(answered(chat, tokenizer, "Well, <think> is")) == ""
    assert chat.messages[-1]["reasoning_content"] == "Well, <think> is"


@pytest.mark.parametrize(
    ("opening", "said", "thought", "answer"),
    [
        ("", "no thought, but </think>", "", "no thought, but </think>"),
        ("", "<think>\nhm\n</think>\n\nyes </think>", "hm", "yes </think>"),
        ("<think>\n", "hm\n</think>\n\nyes", "hm", "yes"),
        ("<think>\n\n</think>\n\n", "yes </think>", "", "yes </think>"),
    ],
)
def test_who_opens_the_thought_decides(make, tokenizer, opening, said, thought, answer):
    """The template, the model, or nobody; what the user writes does not."""
    hf = copy.copy(tokenizer.hf)
    hf.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
        "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
        "{{ '<|im_start|>assistant\n" + opening.replace("\n", "\\n") + "'"
        " if add_generation_prompt else '' }}"
    )
    chat = Chat(make().engine, qwen35.Tokenizer(hf), thinking=True)
    assert chat.finish(answered(chat, tokenizer, said, "What is <think>?")) == answer
    assert chat.messages[-1]["reasoning_content"] == thought


def test_where_the_tag_is_a_special_token_it_shows_nowhere_and_splits(params, tokenizer):
    hf = copy.deepcopy(tokenizer.hf)
    hf.add_special_tokens({"extra_special_tokens": ["</think>"]})
    assert hf.decode(hf.encode("a</think>"), skip_special_tokens=True) == "a"
    special = qwen35.Tokenizer(hf)
    chat = Chat(qwen35.Engine(params, special, slots=1, capacity=512), special, thinking=True)
    assert chat.finish(answered(chat, special, "hm\n</think>\n\nyes")) == "yes"
    assert chat.messages[-1]["reasoning_content"] == "hm"


def test_arguments_of_the_template_reach_it(make, tokenizer, params):
    hf = copy.copy(tokenizer.hf)
    hf.chat_template = "{{ reasoning_effort }}|{{ messages[0].content }}|{{ keep.deep }}"
    given = {"reasoning_effort": "low", "keep": {"deep": [1]}}
    ours = qwen35.Tokenizer(hf)
    wanted = hf.encode("low|" + JAPAN + "|[1]")
    chat = Chat(make().engine, ours, template=given)
    assert list(chat.ask(JAPAN).tokens) == wanted
    engine = qwen35.Engine(params, ours, slots=1, capacity=256)
    question = [{"role": "user", "content": JAPAN}]
    assert list(engine.submit(question, template=given).tokens) == wanted
    [by_ids] = qwen35.generate(params, ours, wanted, max_new_tokens=3)
    [said] = qwen35.generate(params, ours, question, max_new_tokens=3, template=given)
    assert said.tokens == by_ids.tokens
    with pytest.raises(ValueError, match="enable_thinking: a chat sets this itself"):
        Chat(chat.engine, ours, template={"enable_thinking": True})
    with pytest.raises(ValueError, match="prompt 0 is no messages"):
        qwen35.generate(params, ours, "text", template=given)


@pytest.mark.parametrize("text", [b"bytes", [1, 2], None, 5, "half \ud83d"])
def test_what_is_no_text_is_refused_and_the_conversation_stays(make, text):
    chat = make()
    with pytest.raises(ValueError, match="message"):
        chat.ask(text)
    assert chat.messages == []


def test_a_stop_text_cuts_the_answer_and_the_next_turn_goes_on(make, from_scratch):
    """The cache then holds what was read: the next answer is the one from scratch."""
    chat = make(thinking=False, sampling=qwen35.Sampling(stop=["Paris"]))
    request, answer = say(chat, FRANCE)
    assert answer == PARIS[: PARIS.index("Paris")] and request.finish_reason == "stop"
    chat.sampling = qwen35.Sampling()
    following, _ = say(chat, JAPAN)
    assert tuple(following.new_tokens) == from_scratch(chat.messages[:-1], False)


def test_tools_that_an_answer_calls_stand_in_the_history_and_their_results_are_answered(
    params, tokenizer
):
    """As OpenAI's API has them; a call that was cut short is left out."""
    hf = copy.copy(tokenizer.hf)
    hf.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
        "{% for call in message.tool_calls %}{{ call.function.name }}"
        "{{ call.function.arguments.at }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
    )
    ours = qwen35.Tokenizer(hf)
    tool = {"name": "look", "parameters": {"properties": {"at": {"type": "integer"}}}}
    engine = qwen35.Engine(params, ours, slots=1, capacity=512)
    chat = Chat(engine, ours, template={"tools": [{"type": "function", "function": tool}]})
    call = (
        "<tool_call>\n<function=look>\n<parameter=at>\n{}\n</parameter>\n</function>\n</tool_call>"
    )
    half = "<tool_call>\n<function=look>\n<parameter=at>\n3"
    said = "\n".join(["Let me see.", call.format(1), call.format(2), half])
    assert chat.finish(answered(chat, tokenizer, said)) == "Let me see."
    *_, message = chat.messages
    functions = [call["function"] for call in message["tool_calls"]]
    assert functions == [{"name": "look", "arguments": f'{{"at": {n}}}'} for n in (1, 2)]
    with pytest.raises(ValueError, match="1 results for 2 tools that were called"):
        chat.respond(["a door"])
    request = chat.respond(["a door", "a fox"])
    ids = [call["id"] for call in message["tool_calls"]]
    assert chat.messages[-2:] == [
        {"role": "tool", "tool_call_id": ids[0], "content": "a door"},
        {"role": "tool", "tool_call_id": ids[1], "content": "a fox"},
    ]
    turns = ["user\n" + JAPAN, "assistant\nLet me see.look1look2", "tool\na door", "tool\na fox"]
    text = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    assert list(request.tokens) == hf.encode(text)
    list(chat.engine.stream(request))
    chat.finish(request)
    with pytest.raises(ValueError, match="for 0 tools"):
        chat.respond(["nobody asked"])
