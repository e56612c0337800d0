"""Answers that are JSON of a schema: jsonschema says whether they are, and brute force which token
may come next."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from transformers import Qwen3_5ForCausalLM

import qwen35
from qwen35.generation.grammar import Grammar, grammar_for, stacked
from qwen35.generation.sampling import _unpacked
from qwen35.sharding.mesh import Mesh
from qwen35.sharding.split import Split

pytest.importorskip("llguidance")

DEMO = Path(__file__).resolve().parents[3] / "demo"
PROMPT = "The capital of France is"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["old", "new", None]},
        "more": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["city", "kind", "more"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return qwen35.Tokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def params():
    return {device: qwen35.load(DEMO, device=device) for device in ("cpu", "xla")}


def check(text, schema=SCHEMA):
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("device", ["cpu", pytest.param("xla", marks=pytest.mark.slow)])
def test_what_is_drawn_is_of_the_schema_and_other_rows_stay_free(params, tokenizer, device):
    """Alone, in a batch and in an engine, with one set of tokens."""
    seeds = range(3) if device == "cpu" else range(2)
    limited = [qwen35.Sampling(3.0, seed=seed, json_schema=SCHEMA) for seed in seeds]
    limited.append(qwen35.Sampling(json_schema=json.dumps(SCHEMA)))
    free = qwen35.Sampling(3.0, seed=1)
    rows = [sampling for one in limited for sampling in (one, free)]
    how = {"max_new_tokens": 200, "capacity": 256}
    said = qwen35.generate(params[device], tokenizer, [PROMPT] * len(rows), sampling=rows, **how)
    assert all(one.finish_reason == "stop" for one in said[::2])
    for one in said[::2]:
        check(one.text)
    assert len({one.text for one in said[::2]}) == len(limited)
    [alone] = qwen35.generate(params[device], tokenizer, PROMPT, sampling=free, **how)
    assert {one.tokens for one in said[1::2]} == {alone.tokens}
    engine = qwen35.Engine(params[device], tokenizer, slots=2, capacity=256, prefill_sizes=1)
    requests = [engine.submit(PROMPT, max_new_tokens=200, sampling=sampling) for sampling in rows]
    list(engine.run())
    assert [request.completion().tokens for request in requests] == [one.tokens for one in said]


def test_the_likeliest_of_the_tokens_that_may_come_is_taken(params, tokenizer):
    """By transformers' logits, and by trying each token of the vocabulary."""
    words = ["Paris", "Parma", "Rome", 'a "quoted" word']
    texts = [json.dumps(word) for word in words]
    model = Qwen3_5ForCausalLM.from_pretrained(DEMO).float()
    pieces = [tokenizer.decode([token]) for token in range(model.config.vocab_size)]
    ids, written = tokenizer.encode(PROMPT), ""
    wanted = []
    while written not in texts:
        with torch.no_grad():
            logits = model(torch.tensor([ids + wanted])).logits[0, -1]
        possible = [
            token
            for token, piece in enumerate(pieces)
            if piece and any(text.startswith(written + piece) for text in texts)
        ]
        wanted.append(max(possible, key=lambda token: float(logits[token])))
        written += pieces[wanted[-1]]
    sampling = qwen35.Sampling(json_schema={"enum": words})
    [said] = qwen35.generate(params["cpu"], tokenizer, PROMPT, max_new_tokens=40, sampling=sampling)
    assert said.text == written and list(said.tokens[:-1]) == wanted
    assert said.tokens[-1] in tokenizer.end_token_ids and said.finish_reason == "stop"


def test_a_thought_is_free_and_the_answer_is_json(params, tokenizer):
    """The demo's template begins one; a budget may close it."""
    messages = [{"role": "user", "content": "What is the capital of Japan?"}]
    sampling = qwen35.Sampling(json_schema=SCHEMA)
    [free] = qwen35.generate(params["cpu"], tokenizer, messages, max_new_tokens=200)
    [said] = qwen35.generate(
        params["cpu"], tokenizer, messages, max_new_tokens=200, sampling=sampling
    )
    thought, _, answer = said.text.partition("</think>")
    assert thought == free.text.partition("</think>")[0] and "Japan" in thought
    check(answer)
    engine = qwen35.Engine(params["cpu"], tokenizer, slots=1, capacity=512)
    chat = qwen35.Chat(engine, tokenizer, thinking_tokens=3, sampling=sampling)
    request = chat.ask(messages[0]["content"])
    list(engine.stream(request))
    check(chat.finish(request))
    assert 0 < len(chat.messages[-1]["reasoning_content"]) < len(thought)


def test_bits_are_those_of_each_rank_s_block():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (3, 5), generator=generator).to(torch.int32)
    whole = [[bool(word >> bit & 1) for word in row for bit in range(32)] for row in words.tolist()]
    wanted = torch.tensor(whole)[:, :156]
    assert _unpacked(words, Split(156)).equal(wanted)
    compiled = qwen35.jit(lambda words: _unpacked(words, Split(156)))
    there = compiled(qwen35.device_put(words, "xla"))
    assert qwen35.device_put(there, "cpu").equal(wanted)
    for rank in range(4):
        block = Split(156, Mesh(tp=4), torch.tensor([rank], dtype=torch.int32))
        assert _unpacked(words, block).equal(wanted[:, 39 * rank : 39 * (rank + 1)])
    assert stacked([None, None], 156) is None
    bits = stacked([None, words[0]], 156)
    assert bits[1].equal(words[0]) and _unpacked(bits, Split(156))[0].all()


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "json_schema is no JSON"),
        ("[1]", "json_schema must be an object"),
        ({"type": object}, "json_schema is no JSON"),
        ({"type": "number", "if": {}}, "the JSON schema can't be followed: Unimplemented"),
        ({"type": 5}, "the JSON schema can't be followed: type must be"),
    ],
)
def test_what_is_no_schema_is_refused(params, tokenizer, schema, said):
    with pytest.raises(ValueError, match=said):
        sampling = qwen35.Sampling(json_schema=schema)
        qwen35.generate(params["cpu"], tokenizer, PROMPT, sampling=sampling)
    if "followed" in said:
        engine = qwen35.Engine(params["cpu"], tokenizer, slots=1, capacity=64)
        with pytest.raises(ValueError, match=said):
            engine.submit(PROMPT, max_new_tokens=8, sampling=sampling)
        assert engine.idle


def test_what_it_needs_is_said(params, tokenizer, letters, monkeypatch):
    sampling = qwen35.Sampling(json_schema=SCHEMA)
    with pytest.raises(ValueError, match=r"needs a tokenizer\.json, not a _Letters"):
        qwen35.generate(params["cpu"], letters, [5, 6], sampling=sampling)
    with pytest.raises(ValueError, match="needs an end token"):
        grammar_for(tokenizer, sampling, [5], 1280, frozenset())
    with pytest.raises(ValueError, match="ignore_eos must be False beside json_schema"):
        qwen35.Sampling(json_schema=SCHEMA, ignore_eos=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'qwen35\[structured\]'"):
        qwen35.generate(params["cpu"], tokenizer, PROMPT, sampling=sampling)


def test_a_token_that_may_not_stand_there_ends_its_row_alone(params, tokenizer):
    """All that may come is banned: nothing is made up."""
    engine = qwen35.Engine(params["cpu"], tokenizer, slots=2, capacity=64)
    brace = [token for token in range(1280) if tokenizer.decode([token]).startswith("{")]
    limited = qwen35.Sampling(json_schema=SCHEMA, banned=brace)
    bad = engine.submit(PROMPT, max_new_tokens=8, sampling=limited)
    good = engine.submit(PROMPT, max_new_tokens=8)
    list(engine.run())
    assert bad.finish_reason == "error" and "does not follow its JSON schema" in str(bad.error)
    [alone] = qwen35.generate(params["cpu"], tokenizer, PROMPT, max_new_tokens=8)
    assert good.completion().tokens == alone.tokens


def test_a_grammar_begins_behind_the_thought(tokenizer):
    sampling = qwen35.Sampling(json_schema={"enum": [1]})
    ends = frozenset(tokenizer.end_token_ids)
    for opening, free in (("<think>\n", True), ("", False), ("<think>\n\n</think>\n\n", False)):
        prompt = tokenizer.encode("<|im_start|>assistant\n" + opening)
        grammar = grammar_for(tokenizer, sampling, prompt, 1280, ends)
        assert isinstance(grammar, Grammar)
        assert grammar.allowed.equal(grammar.anything) == free
        if free:
            for token in tokenizer.encode("well {</think>"):
                assert grammar.allowed.equal(grammar.anything)
                grammar.take(token)
        bits = _unpacked(grammar.allowed[None], Split(1280))[0]
        possible = {tokenizer.decode([int(token)]) for token in bits.nonzero()}
        assert {text.strip() for text in possible} == ({"1", ""} if free else {"1"})
        assert not free or "\n" in "".join(possible)


def test_the_warm_up_compiles_what_a_schema_needs(params, tokenizer):
    """Alone, beside a row that is drawn, and from all tokens."""
    engine = qwen35.Engine(params["xla"], tokenizer, slots=2, capacity=64, prefill_sizes=1)
    engine.warm_up()
    before = engine.compile_count
    for free in (
        qwen35.Sampling(),
        qwen35.Sampling(1.0, top_k=5, repetition_penalty=1.2),
        qwen35.Sampling(1.0, top_p=0.9),
    ):
        limited = qwen35.Sampling(temperature=free.temperature, json_schema={"enum": ["a", "b"]})
        requests = [engine.submit(PROMPT, max_new_tokens=8, sampling=s) for s in (limited, free)]
        list(engine.run())
        assert requests[0].text in ('"a"', '"b"') and engine.compile_count == before
