"""Lets atheris look for headers and configurations that break their readers, guided by the lines
that it reaches: `test_guided` starts it, since modules are instrumented as they are imported.

    python guided.py headers|configurations DIRECTORY SECONDS SEED
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))

READERS = ["qwen35.files.header", "qwen35.checks", "qwen35.model"]
with atheris.instrument_imports(include=READERS):
    import safetensors
    from oracle import LONGEST, Fault
    from test_configs import SEEDS, check_values
    from test_tensors import HEADERS, framed, stricter

    import qwen35
    from qwen35.checks.json_file import parse_object
    from qwen35.files.header import read_header


def refusal(error: ValueError) -> None:
    """A sentence of our own is what a reader may end in."""
    if not str(error).strip() or len(str(error)) > LONGEST:
        raise Fault(f"an error of {len(str(error))} characters") from error


def header(data: bytes) -> None:
    """The first byte is how many the tensors have, the others are the header."""
    content = framed(data[1:], bytes(data[0] if data else 0))
    try:
        ours = read_header(io.BytesIO(content), len(content))[0]
    except ValueError as error:
        ours = None
        refusal(error)
    try:
        theirs = dict(safetensors.deserialize(content))
    except (safetensors.SafetensorError, OverflowError):
        theirs = None
    if ours is None and theirs is not None and not stricter(content):
        raise Fault("the library takes it")
    if ours is not None and theirs is None and b"-0" not in content:
        raise Fault("the library refuses it")
    if (
        ours
        and theirs
        and {n: list(e.shape) for n, e in ours.items()}
        != {name: tensor["shape"] for name, tensor in theirs.items()}
    ):
        raise Fault("the library sees other tensors")


def configuration(data: bytes) -> None:
    """The bytes of a config.json."""
    try:
        config = qwen35.Config.from_dict(parse_object(data, "config.json", "an object"))
    except ValueError as error:
        refusal(error)
        return
    check_values(config)
    again = qwen35.Config.from_dict(json.loads(json.dumps(config.to_dict())))
    if again != config or again.extra != config.extra:
        raise Fault("written, it reads back as another")


def words(content: object) -> set[str]:
    """The texts in a JSON value, by which the fuzzer puts others together."""
    if isinstance(content, dict):
        return set(content) | set().union(*map(words, content.values()), set())
    if isinstance(content, list):
        return set().union(*map(words, content), set())
    return {content} if isinstance(content, str) else set()


def main() -> None:
    kind, directory, seconds, seed = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:5]
    corpus = directory / "corpus"
    corpus.mkdir()
    if kind == "headers":
        seeds = [bytes([size]) + json.dumps(content).encode() for content, size in HEADERS]
        contents: list[object] = [content for content, _ in HEADERS]
    else:
        seeds, contents = [json.dumps(content).encode() for content in SEEDS], list(SEEDS)
    for number, content in enumerate(seeds):
        (corpus / str(number)).write_bytes(content)
    known = sorted(set().union(*map(words, contents)) | {"null", "true", "NaN", "1e400", "{}"})
    lines = [f'"{word}"' for word in known if word.isascii() and '"' not in word]
    (directory / "words").write_text("\n".join(lines))
    options = [f"-max_total_time={seconds}", f"-seed={int(seed) + 1}", "-max_len=4096"]
    options += [f"-artifact_prefix={directory}/", f"-dict={directory / 'words'}"]
    options += ["-print_final_stats=1", "-timeout=20", "-rss_limit_mb=4000"]
    run = header if kind == "headers" else configuration
    atheris.Setup([sys.argv[0], str(corpus), *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
