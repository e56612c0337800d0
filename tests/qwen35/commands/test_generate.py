"""`qwen35 generate`: messages; pictures as a process, on one device and on four."""

import io
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

import qwen35
from qwen35.commands import cli

DEMO = Path(__file__).resolve().parents[3] / "demo"
PROMPT = "What is in them?"
STEPS = 32


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "qwen35", "generate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two images of sizes that are not resized, and a video."""
    av = pytest.importorskip("av")
    directory = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (64, 96, 3)), ("b.png", (96, 64, 3))):
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(directory / name)
    with av.open(directory / "clip.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "bgr0"
        for _ in range(9):
            frame = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return directory


@pytest.fixture(scope="module")
def expected(multimodal, files):
    """What transformers says to the two images: token ids."""
    images = [Image.open(files / name) for name in ("a.png", "b.png")]
    parts = [{"type": "image", "image": image} for image in images]
    inputs = multimodal.processor.apply_chat_template(
        [[{"role": "user", "content": [*parts, {"type": "text", "text": PROMPT}]}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        out = multimodal.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    said = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(said) == STEPS
    return said


def look(multimodal, files, *more):
    result = run(
        *("--model", multimodal.directory, "--image", files / "a.png", "--image", files / "b.png"),
        *("--prompt", PROMPT, "--max-new-tokens", STEPS, "--json", *more),
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["tokens"]


def test_two_images(multimodal, files, expected):
    assert look(multimodal, files, "--device", "cpu") == expected


@pytest.mark.slow
@pytest.mark.parametrize("tp", [1, 4])
def test_compiled_and_on_four_devices(multimodal, files, expected, tp):
    assert look(multimodal, files, "--tp", tp) == expected


def test_a_video_alone(multimodal, files):
    result = run(
        *("--model", multimodal.directory, "--video", files / "clip.mkv", "--prompt", ""),
        *("--max-new-tokens", 3, "--device", "cpu", "--json"),
    )
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["tokens"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "no.png"], "message 0, part 0 (image): no.png: no such image file"),
        (["--image", __file__], "not a picture that Pillow can read"),
        (["--video", __file__], "not a video that can be read"),
    ],
)
def test_a_bad_picture_is_one_line(multimodal, capfd, arguments, message):
    """And no weights are read for it."""
    common = ["generate", "--model", str(multimodal.directory), "--prompt", "?", "--device", "cpu"]
    with mock.patch("qwen35.load", side_effect=AssertionError):
        assert cli.main([*common, *arguments]) == 2
    out, error = capfd.readouterr()
    [line] = error.strip().splitlines()
    assert out == ""
    assert line.startswith("qwen35: error: ") and message in line


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.new("RGB", (64, 64)), "damaged or truncated"),
        (Image.new("1", (12000, 12000)), "12000 x 12000 is 144,000,000 pixels, over the limit"),
        (Image.new("1", (8, 4000)), "times"),
        (None, "no such image file"),
    ],
    ids=["truncated", "bomb", "sliver", "directory"],
)
def test_a_bad_picture_file_is_one_line(multimodal, tmp_path, capfd, picture, message):
    file = tmp_path / "bad.png"
    if picture is None:
        file.mkdir()
    else:
        picture.save(file)
    if "truncated" in message:
        file.write_bytes(file.read_bytes()[:-40])
    test_a_bad_picture_is_one_line(multimodal, capfd, ["--image", str(file)], message)


def test_a_place_without_a_picture_is_one_line(multimodal, capfd):
    """Though the command reads no tower where it is given no picture."""
    common = ["generate", "--model", str(multimodal.directory), "--device", "cpu"]
    assert cli.main([*common, "--prompt", "See <|image_pad|>?", "--max-new-tokens", "1"]) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert "qwen35: error: prompt 0 has 1 places for images or videos" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "template"),
    [
        (["--chat"], {}),
        (["--chat", "--no-thinking"], {"enable_thinking": False}),
        (["--chat", "--template-arg", "enable_thinking=false"], {"enable_thinking": False}),
        (
            ["--chat", "--reasoning-effort", "low", "--template-arg", 'more={"a": [1]}'],
            {"reasoning_effort": "low", "more": {"a": [1]}},
        ),
        (["--chat", "--template-arg", "reasoning_effort=x-high"], {"reasoning_effort": "x-high"}),
        (["--chat", "--stop", "Tok", "--no-thinking"], {"enable_thinking": False}),
    ],
)
def test_a_message_is_answered_as_transformers_renders_it(tmp_path, capsys, options, template):
    """With a template that shows what reaches it, in front of the chat."""
    for file in DEMO.iterdir():
        (tmp_path / file.name).symlink_to(file)
    template_file = tmp_path / "chat_template.jinja"
    source = template_file.read_text()
    template_file.unlink()
    template_file.write_text("{{ reasoning_effort }}{{ more | default(0) | tojson }}" + source)
    question, system = "What is the capital of Japan?", "You are brief."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    ids = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **template
    )
    params, tokenizer = qwen35.load(tmp_path), qwen35.Tokenizer.from_pretrained(tmp_path)
    [wanted] = qwen35.generate(params, tokenizer, ids, max_new_tokens=24)
    text, stop = wanted.text, "Tok" if "--stop" in options else "\0"
    arguments = ["--model", str(tmp_path), "--device", "cpu", "--prompt", question]
    arguments += ["--system", system, "--max-new-tokens", "24", *options, "--show-thoughts"]
    assert cli.main(["generate", *arguments]) == 0
    thinks = template.get("enable_thinking", True)
    mark = "<think>\n" if thinks else ""
    end = "" if not thinks or "</think>" in text else "\n</think>\n\n"
    assert capsys.readouterr().out == mark + text.partition(stop)[0] + end + "\n"


JAPAN = "What is the capital of Japan?"


@pytest.fixture(scope="module")
def thought():
    """What transformers' model thinks and says: its ids before and behind the one of "</think>"."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    model = Qwen3_5ForCausalLM.from_pretrained(DEMO).float().eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": JAPAN}], add_generation_prompt=True, return_dict=False
    )

    def written(*begun):
        out = model.generate(torch.tensor([[*ids, *begun]]), max_new_tokens=60, do_sample=False)
        said = out[0, len(ids) :].tolist()
        place = said.index(tokenizer.convert_tokens_to_ids("</think>"))
        texts = (said[:place], said[place + 1 :])
        return said, *(tokenizer.decode(one, skip_special_tokens=True).strip() for one in texts)

    return written


def answered(capsys, *options):
    common = ["generate", "--model", str(DEMO), "--prompt", JAPAN, "--max-new-tokens", "60"]
    assert cli.main([*common, "--chat", *options]) == 0
    return capsys.readouterr()


def test_a_thought_is_dimmed_in_a_terminal_and_left_out_elsewhere(thought, capsys, monkeypatch):
    _, thinks, says = thought()
    assert thinks and says
    cpu = ("--device", "cpu")
    assert answered(capsys, *cpu).out == says + "\n"
    marked = f"<think>\n{thinks}\n</think>\n\n{says}\n"
    assert answered(capsys, *cpu, "--show-thoughts").out == marked
    found = json.loads(answered(capsys, *cpu, "--json").out)
    assert (found["reasoning_content"], found["text"]) == (thinks, says)
    _, notes = answered(capsys, *cpu, "--max-new-tokens", "3")
    assert "3 tokens, length within the thought" in notes
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert answered(capsys, *cpu).out == f"\x1b[2m{thinks}\x1b[0m\n\n{says}\n"
    hidden = answered(capsys, *cpu, "--hide-thoughts").out
    assert hidden == f"\x1b[2mthinking …\x1b[0m\r\x1b[K{says}\n"


@pytest.mark.parametrize(
    "where",
    [
        ("--device", "cpu"),
        ("--device", "xla"),
        pytest.param(("--tp", "2"), marks=pytest.mark.slow),
    ],
)
def test_a_thinking_budget_closes_the_thought(thought, capsys, where):
    """By transformers' tokens up to there, and from there on."""
    free, _, _ = thought()
    budget = 5
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    begun = [*free[:budget], *tokenizer.encode("\n</think>\n\n", add_special_tokens=False)]
    said, thinks, says = thought(*begun)
    options = [*where, "--thinking-budget", str(budget), "--json"]
    if "--tp" in where:  # virtual devices are there from a process's start, or never
        common = ("--model", DEMO, "--prompt", JAPAN, "--max-new-tokens", 60, "--chat")
        result = run(*common, *options)
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
    else:
        found = json.loads(answered(capsys, *options).out)
    assert found["tokens"] == said[: len(found["tokens"])] and found["finish_reason"] == "stop"
    assert (found["reasoning_content"], found["text"]) == (thinks, says)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--thinking-budget", "5"], "--thinking-budget is for messages"),
        (["--show-thoughts"], "--show-thoughts is for messages"),
        (["--chat", "--show-thoughts", "--hide-thoughts"], "which of them?"),
        (["--chat", "--thinking-budget", "5", "--json", "--logprobs", "1"], "without logprobs"),
    ],
)
def test_options_of_thoughts_that_say_nothing_are_refused(capsys, options, said):
    command = ["generate", "--model", str(DEMO), "--device", "cpu", "--prompt", "a", *options]
    assert cli.main(command) == 2
    output, notes = capsys.readouterr()
    assert output == "" and said in notes


def demo_with(directory, **settings):
    """The demo with other settings in its generation_config.json."""
    for file in DEMO.iterdir():
        (directory / file.name).symlink_to(file)
    file = directory / "generation_config.json"
    content = json.loads(file.read_text()) | settings
    file.unlink()
    file.write_text(json.dumps(content))
    return directory


def test_tokens_are_chosen_as_the_checkpoint_recommends_unless_greedy(tmp_path, capsys):
    directory = demo_with(tmp_path, do_sample=True, temperature=4.0, top_k=40)
    params, tokenizer = qwen35.load(directory), qwen35.Tokenizer.from_pretrained(directory)
    prompt = "The capital of France is"

    def said(*options):
        arguments = ["--model", str(directory), "--device", "cpu", "--prompt", prompt, *options]
        assert cli.main(["generate", *arguments, "--max-new-tokens", "12"]) == 0
        return capsys.readouterr().out.removesuffix("\n")

    def wanted(sampling):
        [one] = qwen35.generate(params, tokenizer, prompt, max_new_tokens=12, sampling=sampling)
        return one.text

    recommended = wanted(qwen35.Sampling(4.0, top_k=40, seed=3))
    assert said("--seed", "3") == recommended != wanted(qwen35.Sampling())
    assert said("--greedy") == wanted(qwen35.Sampling())
    assert said("--top-k", "2", "--seed", "3") == wanted(qwen35.Sampling(4.0, top_k=2, seed=3))


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
@pytest.mark.parametrize("way", ["file", "input"])
def test_the_line_end_that_echo_adds_is_no_part_of_a_prompt(
    tmp_path, capsys, monkeypatch, end, way
):
    content = ("One line.\n\nThe capital of France is" + end).encode()
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    given = ["--prompt-file", str(file)] if way == "file" else ["--prompt", "-"]
    common = ["generate", "--model", str(DEMO), "--device", "cpu", "--max-new-tokens", "1"]
    assert cli.main([*common, "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == content.decode().removesuffix(end)


def test_log_probabilities_are_in_the_json(capsys):
    """Those of transformers, of the chosen tokens and of the three likeliest."""
    common = ["generate", "--model", str(DEMO), "--device", "cpu", "--max-new-tokens", "5"]
    common += ["--prompt", "The capital of France", "--logprobs", "3"]
    assert cli.main(common) == 2 and "--json" in capsys.readouterr().err
    assert cli.main([*common, "--json", "--temperature", "3", "--ignore-eos"]) == 0
    result = json.loads(capsys.readouterr().out)
    model = Qwen3_5ForCausalLM.from_pretrained(DEMO).float()
    prompt = AutoTokenizer.from_pretrained(DEMO).encode("The capital of France")
    with torch.no_grad():
        logits = model(torch.tensor([prompt + result["tokens"]])).logits
    places = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert len(result["logprobs"]) == len(result["tokens"]) == 5
    for entry, token, place in zip(result["logprobs"], result["tokens"], places, strict=True):
        assert entry["token"] == token
        assert entry["logprob"] == pytest.approx(float(place[token]), abs=1e-3)
        values, ids = place.topk(3)
        assert [token for token, _ in entry["top"]] == ids.tolist()
        assert [value for _, value in entry["top"]] == pytest.approx(values.tolist(), abs=1e-3)
