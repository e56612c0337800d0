"""`qwen35 batch`: answers beside `generate`'s, runs that are killed and gone on with."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import qwen35
from qwen35.commands import batch_progress, cli, launch, loading
from qwen35.files.journal import opened
from qwen35.generation import openai_form
from qwen35.sharding.mesh import Mesh

DEMO = Path(__file__).resolve().parents[3] / "demo"
COUNTRIES = ("France", "Japan", "Italy", "Spain")
SETTINGS = ["--model", str(DEMO), "--device", "cpu", "--no-thinking", "--slots", "3"]
SETTINGS += ["--capacity", "256", "--max-new-tokens", "16"]


def chat(country, **body):
    return {"messages": [{"role": "user", "content": f"What is the capital of {country}?"}], **body}


def enveloped(custom_id, url, body):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
GOOD = [
    enveloped("a", CHAT, {"model": "gpt-3.5-turbo-0125", **chat("France")}),
    enveloped("b", COMPLETIONS, {"model": "demo", "prompt": "The capital of France is"}),
    "Once upon a time, there was",
    {"custom_id": "mine", "prompt": "The opposite of hot is", "max_tokens": 3},
    chat("Japan", logprobs=True, top_logprobs=2),
    enveloped("c", COMPLETIONS, {"prompt": "The capital of Japan is", "logprobs": 1}),
]


def write(path, lines):
    text = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    path.write_bytes(b"\n".join(text) + b"\n")
    return path


def read(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def batch(source, target, *options):
    return cli.main(["batch", str(source), str(target), *SETTINGS, *options])


@pytest.fixture(scope="module")
def say():
    """say(prompt): what `generate` makes of a prompt or messages, 16 tokens at most."""
    params, tokenizer = qwen35.load(DEMO), qwen35.Tokenizer.from_pretrained(DEMO)

    def run(prompt, most=16):
        template = None if isinstance(prompt, str) else {"enable_thinking": False}
        [said] = qwen35.generate(params, tokenizer, prompt, max_new_tokens=most, template=template)
        return said

    return run


def test_answers_are_those_of_generate_in_openai_s_form(tmp_path, say, capsys):
    source, target = write(tmp_path / "in", [*GOOD, b""]), tmp_path / "out"
    assert batch(source, target, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert {name: summary[name] for name in ("lines", "left", "done", "errors")} == {
        **{"lines": 6, "left": 0, "done": 6, "errors": 0}
    }
    found = read(target)
    assert [line["custom_id"] for line in found] == ["a", "b", "line-3", "mine", "line-5", "c"]
    one, two, three, four, five, six = found
    # The line and the body that OpenAI's Batch guide shows have these fields.
    assert set(one) == {"id", "custom_id", "response", "error"} and one["error"] is None
    assert set(one["response"]) == {"status_code", "request_id", "body"}
    body, wanted = one["response"]["body"], say(GOOD[0]["body"]["messages"])
    assert body["object"] == "chat.completion" and body["model"] == "gpt-3.5-turbo-0125"
    assert abs(body["created"] - time.time()) < 600
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": wanted.text, "refusal": None},
            "logprobs": None,
            "finish_reason": wanted.finish_reason,
        }
    ]
    usage = body["usage"]
    assert usage["completion_tokens"] == len(wanted.tokens)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    body, wanted = two["response"]["body"], say("The capital of France is")
    assert body["object"] == "text_completion" and body["choices"][0]["text"] == wanted.text
    # Lines without an envelope.
    assert three["text"] == say(GOOD[2]).text and three["error"] is None
    assert four["text"] == say("The opposite of hot is", 3).text
    assert four["finish_reason"] in ("stop", "length") and four["usage"]["completion_tokens"] <= 3
    assert five["message"]["content"] == say(GOOD[4]["messages"]).text
    entries = five["logprobs"]["content"]
    assert len(entries) == five["usage"]["completion_tokens"]
    for entry in entries:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert entry["top_logprobs"][0]["token"] == entry["token"]  # it is greedy
        assert bytes(entry["bytes"]).decode() == entry["token"] and len(entry["top_logprobs"]) == 2
    flat = six["response"]["body"]["choices"][0]["logprobs"]
    assert len(flat["tokens"]) == len(flat["token_logprobs"]) == len(flat["top_logprobs"])
    assert flat["text_offset"][:2] == [0, len(flat["tokens"][0])]


def test_a_line_in_error_says_so_and_the_others_are_answered(tmp_path, say):
    bad = [
        (b'{"custom_id": "torn", "bo', None, "the line is not JSON"),
        (b"[1, 2]", None, "must be an object or a text"),
        (b'{"custom_id": 7, "prompt": "a"}', None, "custom_id must be a text, not 7"),
        ({"url": CHAT, "body": chat("France")}, None, "a line with a body needs a custom_id"),
        ({"prompt": "a", "magic": 1}, None, "'magic' is no field"),
        ({"prompt": "a", "max_tokens": 999}, None, "over the engine's capacity of 256"),
        ({"messages": [{"content": "a"}]}, None, "message 0 must be a dict with role"),
        (enveloped("get", CHAT, chat("France")) | {"method": "GET"}, None, "method must be POST"),
        (enveloped("url", "/v1/embeddings", {"input": "a"}), 400, "url must be"),
        (enveloped("hot", CHAT, chat("France", temperature=-1)), 400, "temperature must be"),
        (enveloped("n", COMPLETIONS, {"prompt": "a", "n": 3}), 400, "n must be 1"),
    ]
    good = {"prompt": "The capital of Spain is"}
    source = write(tmp_path / "in", [good, *(line for line, _, _ in bad), good])
    assert batch(source, tmp_path / "out") == 0
    first, *failed, last = read(tmp_path / "out")
    assert first["text"] == last["text"] == say("The capital of Spain is").text
    for number, (line, (_, status, said)) in enumerate(zip(failed, bad, strict=True), 2):
        if status is None:
            assert said in line["error"]["message"] and line["response"] is None
        else:
            assert line["error"] is None and line["response"]["status_code"] == status
            assert said in line["response"]["body"]["error"]["message"]
        assert line["custom_id"] in (f"line-{number}", "get", "url", "hot", "n")


def test_an_answer_has_what_the_capacity_leaves(tmp_path):
    """Without a limit of one's own; the demo has fewer positions than the command's capacity."""
    source = write(tmp_path / "in", [{"prompt": "Once upon a time"}, chat("France")])
    command = ["batch", str(source), "--model", str(DEMO), "--device", "cpu", "--slots", "2"]
    assert cli.main([*command, str(tmp_path / "out")]) == 0
    assert [line["error"] for line in read(tmp_path / "out")] == [None, None]
    assert cli.main([*command, str(tmp_path / "long"), "--capacity", "64", "--ignore-eos"]) == 0
    for line in read(tmp_path / "long"):
        assert line["finish_reason"] == "length" and line["usage"]["total_tokens"] == 64


def test_rates_leave_out_what_is_compiled(tmp_path, capsys, monkeypatch):
    """Which is little for few lines: one size of prefill steps."""
    clock = itertools.count()  # a second each time that it is read
    sizes = []

    def compile_long(engine):
        nonlocal clock
        sizes.append(engine.settings.prefill_sizes)
        clock = itertools.count(next(clock) + 10_000)

    monkeypatch.setattr(qwen35.Engine, "warm_up", compile_long)
    monkeypatch.setattr(batch_progress, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert batch(write(tmp_path / "in", GOOD), tmp_path / "out", "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["done"] == len(GOOD) and 0 < numbers["seconds"] < 10_000
    assert sizes == [1]


def test_a_run_goes_on_where_the_last_one_ended(tmp_path, capsys):
    """Lines that are there stay as they are, a torn one and those in error are done again."""
    source, target = (
        write(tmp_path / "in", [*GOOD, {"prompt": "", "custom_id": "e"}]),
        tmp_path / "o",
    )
    assert batch(source, target) == 0
    whole = target.read_bytes().splitlines(keepends=True)
    kept = [whole[4], whole[1], whole[6]]  # in another order, one in error
    target.write_bytes(b"".join(kept) + whole[2][:-9])
    capsys.readouterr()
    assert batch(source, target, "--json") == 0
    output, notes = capsys.readouterr()
    assert json.loads(output)["done"] == 5 and json.loads(output)["errors"] == 1
    assert "7 of 7 lines, 1 in error" in notes and "tokens per second" in notes
    again = target.read_bytes().splitlines(keepends=True)
    assert (again[4], again[1]) == (whole[4], whole[1])
    without = [[{**json.loads(line), "response": None} for line in some] for some in (whole, again)]
    assert without[0] == without[1]
    before = target.stat().st_mtime_ns, target.read_bytes()
    assert batch(source, target, "--json") == 0  # all but the one in error is there
    assert json.loads(capsys.readouterr().out)["done"] == 1
    assert target.read_bytes() == before[1]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda lines: [{**lines[0], "prompt": "Another"}, *lines[1:]], [], "an answer to 'x0'"),
        (lambda lines: lines[1:], [], "'x0', which"),
        (lambda lines: lines, ["--temperature", "1"], "with other options"),
        (lambda lines: lines, ["--weights", "int8"], "with other options"),
        (lambda lines: [*lines, lines[0]], [], "lines 1 and 4 have the same custom_id 'x0'"),
    ],
)
def test_answers_of_something_else_are_not_gone_on_with(tmp_path, capsys, change, options, said):
    lines = [{"custom_id": f"x{n}", "prompt": "Once upon", "max_tokens": 1} for n in range(3)]
    source, target = write(tmp_path / "in", lines), tmp_path / "out"
    assert batch(source, target) == 0
    before = target.read_bytes()
    write(source, change(lines))
    capsys.readouterr()
    assert batch(source, target, *options) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert target.read_bytes() == before


def test_a_line_in_error_may_be_mended(tmp_path):
    lines = [{"custom_id": "x", "prompt": "Once", "max_tokens": 0}, "Once upon a time"]
    source, target = write(tmp_path / "in", lines), tmp_path / "out"
    assert batch(source, target) == 0
    first = read(target)
    assert "max_tokens" in first[0]["error"]["message"]
    write(source, [{**lines[0], "max_tokens": 2}, *lines[1:], "The capital of France is"])
    assert batch(source, target) == 0
    found = read(target)
    assert len(found) == 3 and found[0]["error"] is None and found[1] == first[1]


def test_what_can_not_be_written_to_is_refused_before_the_model_is_read(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("qwen35.commands.loading.load_params", None)
    source, target = write(tmp_path / "in", GOOD), tmp_path / "out"
    assert batch(source, source) == 2
    assert "can't be the output too" in capsys.readouterr().err
    assert batch(tmp_path / "nothing", target) == 2
    assert "nothing" in capsys.readouterr().err
    with opened(target, dict, b"{"):
        assert batch(source, target) == 2
    assert "is being written by another process" in capsys.readouterr().err
    target.write_text("my notes")
    assert batch(source, target) == 2
    assert target.read_text() == "my notes"
    assert batch(source, target, "--system", "You are brief.") == 2
    assert "--system is for --chat" in capsys.readouterr().err


def test_a_prompt_may_be_a_message(tmp_path, say):
    source = write(tmp_path / "in", ["What is the capital of Italy?"])
    assert batch(source, tmp_path / "out", "--chat", "--system", "You are brief.") == 0
    messages = [{"role": "system", "content": "You are brief."}, *chat("Italy")["messages"]]
    [line] = read(tmp_path / "out")
    assert line["message"]["content"] == say(messages).text


def test_each_line_has_a_seed_of_its_own(tmp_path):
    """Those of the rows of one `generate`, also for what is done later."""
    source, target = write(tmp_path / "in", ["Once upon a time"] * 4), tmp_path / "out"
    options = ["--temperature", "3", "--seed", "5"]
    assert batch(source, target, *options) == 0
    lines = target.read_bytes().splitlines(keepends=True)
    texts = [json.loads(line)["text"] for line in lines]
    assert len(set(texts)) == 4
    params, tokenizer = qwen35.load(DEMO), qwen35.Tokenizer.from_pretrained(DEMO)
    said = qwen35.generate(
        params, tokenizer, ["Once upon a time"] * 4, max_new_tokens=16,
        sampling=qwen35.Sampling(3.0, seed=5), capacity=256,
    )  # fmt: skip
    assert texts == [one.text for one in said]
    target.write_bytes(lines[1])
    assert batch(source, target, *options) == 0
    assert [line["text"] for line in read(target)] == texts


def test_thoughts_stand_apart_and_may_have_a_budget(tmp_path):
    """The demo thinks before it answers, by its own template, unless a body forbids it."""
    think = {"chat_template_kwargs": {"enable_thinking": True}}
    lines = [enveloped("a", CHAT, chat("Japan", max_tokens=64, **think)), chat("Japan")]
    source = write(tmp_path / "in", lines)
    assert batch(source, tmp_path / "out") == 0
    body, plain = read(tmp_path / "out")
    message = body["response"]["body"]["choices"][0]["message"]
    assert message["content"].startswith("The capital of Japan is Tokyo.")
    assert "What is the capital of Japan?" in message["reasoning_content"]
    assert "reasoning_content" not in plain["message"]
    assert batch(source, tmp_path / "brief", "--thinking-budget", "4") == 0
    brief = read(tmp_path / "brief")[0]["response"]["body"]["choices"][0]["message"]
    assert 0 < len(brief["reasoning_content"]) < len(message["reasoning_content"])
    assert message["reasoning_content"].startswith(brief["reasoning_content"])


def test_calls_of_tools_are_in_openai_s_form():
    """Of an answer that calls one; the demo knows no tools."""
    tool = {"name": "look", "parameters": {"properties": {"at": {"type": "integer"}}}}
    body = chat("Japan", tools=[{"type": "function", "function": tool}])
    how = {"max_new_tokens": 99, "sampling": qwen35.Sampling(), "template": {}}
    asked = openai_form.read_request(CHAT, body, **how)
    params, tokenizer = qwen35.load(DEMO), qwen35.Tokenizer.from_pretrained(DEMO)
    engine = qwen35.Engine(params, tokenizer, slots=1, capacity=256)
    request = engine.submit("Look!", max_new_tokens=99)
    said = (
        "<tool_call>\n<function=look>\n<parameter=at>\n1\n</parameter>\n</function>\n</tool_call>"
    )
    for token in [*tokenizer.encode(said), *tokenizer.encode("<|im_end|>")]:
        request.push(token, None)
    named = {"id": "x", "model": "m", "created": 0}
    [choice] = openai_form.answer_body(asked, request, tokenizer, **named)["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_loses_no_line_that_was_written(tmp_path, end, say):
    """Killed again and again while it writes, until it gets to its end."""
    rng = random.Random(0)
    lines = [f"The capital of {COUNTRIES[n % 4]} is" for n in range(60)]
    source, target = write(tmp_path / "in", lines), tmp_path / "out"
    command = [sys.executable, "-m", "qwen35", "batch", str(source), str(target), *SETTINGS]
    written, kills = b"", 0
    while True:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        more = rng.randrange(1, 20)
        while process.poll() is None:
            now = target.read_bytes().count(b"\n") if target.exists() else 0
            if written.count(b"\n") + more <= now < 55 and kills < 4:
                process.send_signal(end)
                break
            time.sleep(0.01)
        _, notes = process.communicate(timeout=120)
        found = target.read_bytes()
        if process.returncode == 0:
            break
        kills += 1
        assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(end, -end)
        assert b"Traceback" not in notes
        # What was there is there, but for half of a line.
        assert found.startswith(written[: written.rfind(b"\n") + 1])
        written = found
    assert kills >= 2
    wanted = {country: say(f"The capital of {country} is").text for country in COUNTRIES}
    assert [line["text"] for line in read(target)] == [wanted[COUNTRIES[n % 4]] for n in range(60)]
    kept = written.splitlines()[: written.count(b"\n")]
    assert set(kept) <= set(found.splitlines())
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_slots_that_replicas_cannot_share_are_refused_before_the_model_is_read(
    tmp_path, capsys, monkeypatch
):
    """Of all replicas in this process; its virtual devices need not even be there."""
    runtime = qwen35.Runtime(mesh=Mesh(dp=2), rank=None)
    ranks = contextlib.nullcontext(launch.Launch(runtime, "xla", True, 1))
    monkeypatch.setattr(launch, "launch", lambda *_: ranks)
    monkeypatch.setattr(loading, "load_params", lambda *_: pytest.fail("it was loaded"))
    source = write(tmp_path / "in", GOOD)
    assert batch(source, tmp_path / "out", "--dp", "2") == 2
    assert "slots = 3 can't be split evenly over dp = 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
