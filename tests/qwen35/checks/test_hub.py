"""A hub's names, against a stand-in hub on loopback that huggingface_hub itself talks to."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qwen35
from qwen35.checks import hub

DEMO = Path(__file__).resolve().parents[3] / "demo"
NAME, REVISION = "Someone/Demo-1.0", "0123456789abcdef0123456789abcdef01234567"


class StandIn(http.server.ThreadingHTTPServer):
    """Serves a folder as the one model of a hub, in the forms that huggingface_hub asks for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.asked = folder, []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_) -> None:
        """Says nothing on standard error."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        files = {file.name: file.read_bytes() for file in self.server.folder.iterdir()}
        api, names = f"/api/models/{NAME}", sorted(files)
        known = {
            f"{api}/revision/main": {
                "id": NAME,
                "sha": REVISION,
                "siblings": [{"rfilename": name} for name in names],
            },
            f"{api}/tree/{REVISION}": [
                {"type": "file", "path": name, "size": len(files[name]), "oid": _oid(files[name])}
                for name in names
            ],
        }
        headers = {"X-Repo-Commit": REVISION}
        *where, file = path.split("/")
        if path in known:
            content = json.dumps(known[path]).encode()
            headers["Content-Type"] = "application/json"
        elif "/".join(where) == f"/{NAME}/resolve/{REVISION}" and file in files:
            content = files[file]
            headers["ETag"] = f'"{_oid(content)}"'
        else:
            content = b""
            headers["X-Error-Code"] = "RepoNotFound" if NAME not in path else "EntryNotFound"
        self.send_response(404 if "X-Error-Code" in headers else 200)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def stand_in(tmp_path):
    """The demo on a hub, with files that nobody needs."""
    folder = tmp_path / "served"
    shutil.copytree(DEMO, folder)
    (folder / "pytorch_model.bin").write_bytes(b"not to be fetched")
    server = StandIn(folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(stand_in, tmp_path):
    """run(*arguments, down=False): the command in a process of its own; the hub may be away."""

    def command(*arguments, down=False):
        port = 9 if down else stand_in.server_address[1]  # where nobody listens
        away = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"}
        environment = {name: value for name, value in os.environ.items() if name not in away}
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(tmp_path / "home"),
        }
        return subprocess.run(
            [sys.executable, "-m", "qwen35", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env=environment,
        )

    return command


PROMPT = ["--prompt", "The capital of France is", "--device", "cpu", "--max-new-tokens", "4"]


def test_a_model_is_downloaded_once_and_then_taken_from_the_cache(run, stand_in):
    first = run("generate", "--model", NAME, *PROMPT)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(" Paris")
    assert "Download" in first.stderr or "Fetching" in first.stderr  # progress, on standard error
    fetched = {path.rpartition("/")[2] for kind, path in stand_in.asked if kind == "GET"}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "README.md"}
    stand_in.asked.clear()
    again = run("generate", "--model", NAME, *PROMPT)
    assert again.stdout == first.stdout
    assert not any("/resolve/" in path for kind, path in stand_in.asked if kind == "GET")
    offline = run("generate", "--model", NAME, *PROMPT, down=True)
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout == first.stdout


def test_results_have_the_name_that_was_asked_for(run, stand_in, tmp_path):
    """And not the folder in the cache, which is named after a revision on this machine."""
    shown = run("generate", "--model", NAME, "--json", *PROMPT)
    assert json.loads(shown.stdout)["model"] == NAME, shown.stderr
    text = DEMO.parent / "evals/story.txt"
    shown = run(
        *("eval", "perplexity", "--model", NAME, "--text", str(text), "--json", "--device", "cpu")
    )
    assert json.loads(shown.stdout)["model"] == NAME, shown.stderr
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    shown = run("batch", "--model", NAME, "--device", "cpu", "in.jsonl", "out.jsonl")
    [result] = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert result["response"]["body"]["model"] == NAME, shown.stderr


def test_sizes_need_no_weights(run, stand_in):
    result = run("info", NAME, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["hidden_size"] == 128
    assert not any("safetensors" in path for _, path in stand_in.asked)


def test_without_a_network_it_says_what_to_do(run):
    result = run("generate", "--model", NAME, *PROMPT, down=True)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert f"{NAME}: no such directory" in line and f"`hf download {NAME}`" in line
    assert "can't be reached" in line and "127.0.0.1" in line


def test_a_name_that_the_hub_does_not_know(run):
    result = run("info", "Someone/Else")
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert "Someone/Else: no such directory, and no model of that name on http://127.0.0.1" in line


def test_a_copy_that_is_not_whole_names_what_misses(run, stand_in):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "gone.safetensors"}}
    weights = stand_in.folder / "model.safetensors"
    weights.rename(stand_in.folder / "model-00001-of-00002.safetensors")
    (stand_in.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = run("generate", "--model", NAME, *PROMPT)
    assert result.returncode == 2
    assert f"{NAME}: gone.safetensors is not in" in result.stderr.splitlines()[-1]


def test_directories_win_over_names(tmp_path, monkeypatch):
    """Whatever they are called; and what looks like no name never asks a hub."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO, tmp_path / "Qwen" / "Qwen3.5-0.8B")
    assert hub.directory_of("Qwen/Qwen3.5-0.8B") == Path("Qwen/Qwen3.5-0.8B")
    assert qwen35.load("Qwen/Qwen3.5-0.8B").config.hidden_size == 128
    for path in ("nowhere", "./a/b", "../b", "/a/b", "a/b/c", str(tmp_path / "gone")):
        assert hub.directory_of(path) == Path(path)


def test_a_hubs_model_is_converted_with_what_stands_beside_it(run, stand_in, tmp_path):
    """In all three ways; a tokenizer that was not copied would end what is written in an error."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    lora = {name + "A.weight": torch.zeros(1, 256), name + "B.weight": torch.zeros(128, 1)}
    save_file(lora, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["down_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    ways = (["--adapter", str(adapter)], ["--weights", "int8"], ["--tp", "1", "--dtype", "float32"])
    for number, way in enumerate(ways):
        result = run("convert", *way, NAME, f"out-{number}")
        assert result.returncode == 0, result.stderr
        out = tmp_path / f"out-{number}"
        beside = {file.name for file in DEMO.iterdir()} - {"README.md", "prompts.txt"}
        assert {name for name in beside if name.endswith((".json", ".jinja"))} <= {
            file.name for file in out.iterdir()
        }
        said = run("generate", "--model", str(out), *PROMPT)
        assert said.stdout.startswith(" Paris"), said.stderr
