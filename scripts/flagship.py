"""Runs a model of a published size on this machine, and holds it to transformers' own layers.

    scripts/flagship.py DIR [--preset 27b] [--weights int4] [--layers 4] [--report docs]

DIR gets a checkpoint with random weights in a quantised published form, or has one from an earlier
call. The model loads it onto XLA, reads a prompt of 128 tokens and one with a picture, and decodes.
Then transformers' layers, one at a time and in float32, read what both prompts have become, and
hidden states, logits and tokens are compared. Each of the three happens in a process of its own.

Weights that files have in bfloat16 stay so; hidden states and caches are float32, as the
reference's are, so that what is compared is arithmetic and no rounding of results.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import flagship_files
import flagship_reference
import torch
from PIL import Image
from torch import Tensor
from torch.utils import _pytree as pytree

import qwen35
from qwen35.bench import machine
from qwen35.forms import QuantizedWeight
from qwen35.reports.page import about, write_report
from qwen35.reports.provenance import processor_name
from qwen35.reports.tables import gigabytes, markdown_table
from qwen35.xla.observers import on_compile
from qwen35.xla.trees import tensors

PROMPT = 128  # tokens
TOLERANCE = 1e-3  # relative, of hidden states and logits
_PICTURE = 256  # pixels


class Computed(NamedTuple):
    """What the model computed, on the CPU, and what that took.

    tokens [2, PROMPT + n]: the prompts, of text and with a picture, and what followed. hidden: by
    number of layers, [rows, PROMPT, H] after the final norm, the last rows of the two. logits
    [2, n + 1, V], of the prompts' ends and each token after. image [N, H]. prompt: the one with
    the picture. figures: seconds, bytes.
    """

    tokens: Tensor
    hidden: dict[int, Tensor]
    logits: Tensor
    image: Tensor
    prompt: qwen35.Prompt
    figures: dict[str, Any]


def cut(config: qwen35.Config, layers: int) -> qwen35.Config:
    """The model's first layers."""
    kinds = config.layer_types[:layers]
    return dataclasses.replace(config, num_hidden_layers=len(kinds), layer_types=kinds)


def compute(directory: Path, steps: int, depths: Sequence[int]) -> Computed:
    """Loads the checkpoint, reads both prompts and decodes `steps` tokens after each."""
    start = time.perf_counter()
    runtime = qwen35.Runtime(segments="auto")  # to compile 64 layers at once takes 2 GB more
    params = qwen35.load(directory, device="xla", runtime=runtime, progress=True)
    figures: dict[str, Any] = {"load_s": time.perf_counter() - start}
    figures |= {"load_peak_bytes": machine.peak_memory(), "weights": weights_by_kind(params)}
    params = with_float32_results(params)
    assert params.vision is not None
    prompt = picture_prompt(qwen35.Processor.from_pretrained(directory))
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 256, prompt.tokens.shape, generator=generator)
    decode = qwen35.jit(qwen35.decode, donate=("state",))
    forward = qwen35.jit(_forward, donate=("state",))

    def timed(name: str, call: Callable[[], Any]) -> Any:
        with on_compile() as compilations:
            begun = time.perf_counter()
            result = call()
            taken = time.perf_counter() - begun
        figures.setdefault(f"{name}_compile_s", 0.0)
        figures[f"{name}_compile_s"] += compilations.seconds
        figures.setdefault(f"{name}_s", []).append(taken - compilations.seconds)
        return result

    def on_host(tree: Any) -> Any:
        return qwen35.device_put(tree, "cpu")

    image = timed(
        "tower",
        lambda: qwen35.encode_images(params.vision, prompt.images.patches, prompt.images.grid),
    )
    pictures = {"embeds": prompt.embeds(image), "positions": prompt.positions}
    hidden, tokens, logits = {}, [], []
    for name, row, given in (("text", words, {}), ("picture", prompt.tokens, pictures)):
        row, state = row.clone(), qwen35.init_state(params, 1, _capacity(steps))
        given = qwen35.device_put({"tokens": row, **given}, "xla")

        def read(state=state, given=given):
            hidden, logits, state = forward(params, state, **given)
            return *on_host((hidden, logits)), state

        states, last, state = timed(f"prefill_{name}", read)
        hidden[name], after = states, [last]
        for _ in range(steps):
            token = after[-1].argmax(-1)
            row = torch.cat([row, token[:, None]], dim=1)

            def step(state=state, token=token):
                logits, state = decode(params, state, qwen35.device_put(token, "xla"))
                return on_host(logits), state

            last, state = timed("decode", step)
            after.append(last)
        tokens.append(row)
        logits.append(torch.stack(after, dim=1))
    figures |= {"state_bytes": sum(t.nbytes for t in tensors(state)), "decoded": steps}
    figures["peak_bytes"] = machine.peak_memory()
    by_depth = {len(params.layers): torch.cat([hidden["text"], hidden["picture"]])}
    for depth in depths:
        config = cut(params.config, depth)
        first = dataclasses.replace(params, layers=params.layers[:depth], config=config)
        state = qwen35.init_state(first, 1, _capacity(steps))
        by_depth[depth] = on_host(forward(first, state, **given)[0])
    return Computed(torch.cat(tokens), by_depth, torch.cat(logits), image, prompt, figures)


def _forward(
    params: qwen35.Params,
    state: qwen35.State,
    tokens: Tensor,
    embeds: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor, qwen35.State]:
    """All tokens' hidden states, and the last one's logits."""
    hidden, state = qwen35.forward(params, state, tokens, embeds=embeds, positions=positions)
    return hidden, qwen35.logits(params, hidden[:, -1]), state


def _capacity(steps: int) -> int:
    return -(-(PROMPT + steps) // 64) * 64


def with_float32_results(params: qwen35.Params) -> qwen35.Params:
    """The same weights, with hidden states, caches and the tower's vectors in float32.

    Parameters have the dtype of their head, and a tower's that of the matrix for its patches.
    """
    assert isinstance(params.head, QuantizedWeight) and params.vision is not None
    patches = qwen35.device_put(params.vision.patch_proj, "cpu").float()
    vision = dataclasses.replace(
        params.vision, patch_proj=qwen35.device_put(patches, params.device.type)
    )
    head = dataclasses.replace(params.head, dtype=torch.float32)
    return dataclasses.replace(params, head=head, vision=vision)


def picture_prompt(processor: qwen35.Processor) -> qwen35.Prompt:
    """A prompt of `PROMPT` tokens with a picture of noise."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (_PICTURE, _PICTURE, 3), generator=generator)
    picture = Image.fromarray(noise.byte().numpy())

    def asking(text: str) -> qwen35.Prompt:
        parts = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
        return processor([{"role": "user", "content": parts}])

    missing = PROMPT - asking("?").tokens.shape[1]
    return asking("?" + "?" * missing)


def weights_by_kind(params: qwen35.Params) -> dict[str, int]:
    """Bytes of the weights on the device, by what they are."""
    sizes = dict.fromkeys(("codes", "scales", "dense"), 0)
    for leaf in pytree.tree_leaves(params.layers, is_leaf=_is_quantized):
        if _is_quantized(leaf):
            sizes["codes"] += leaf.values.nbytes
            sizes["scales"] += sum(t.nbytes for t in tensors(leaf)) - leaf.values.nbytes
        else:
            sizes["dense"] += leaf.nbytes
    parts = {"embedding": params.embed, "head": params.head, "vision tower": params.vision}
    return {f"layers, {kind}": size for kind, size in sizes.items()} | {
        name: sum(t.nbytes for t in tensors(part)) for name, part in parts.items()
    }


def _is_quantized(node: Any) -> bool:
    return isinstance(node, QuantizedWeight)


def compare(computed: Computed, truth: flagship_reference.Truth) -> dict[str, Any]:
    """Errors relative to the reference, the worst token's, and how the tokens compare."""
    states = {
        depth: _error(own, truth.hidden[depth][-len(own) :, :PROMPT])
        for depth, own in sorted(computed.hidden.items())
    }
    best = truth.logits.topk(2).values
    margins = best[..., 0] - best[..., 1]
    same = computed.logits.argmax(-1) == truth.logits.argmax(-1)
    off = (computed.logits - truth.logits).abs().amax(-1)
    return {
        "hidden": states,
        "logits": _error(computed.logits, truth.logits),
        "image": _error(computed.image, truth.image),
        "tokens": same.numel(),
        "tokens_equal": int(same.sum()),
        "tokens_otherwise": int((~same & (margins > 2 * off)).sum()),
        "smallest_margin": float(margins.min()),
        "largest_logit_error": float(off.max()),
    }


def _error(own: Tensor, true: Tensor) -> float:
    return float(((own - true).norm(dim=-1) / true.norm(dim=-1)).max())


def holds(errors: dict[str, Any]) -> bool:
    """Whether everything is within the tolerance, and tokens are other ones only in near ties."""
    worst = max(*errors["hidden"].values(), errors["logits"], errors["image"])
    return worst <= TOLERANCE and not errors["tokens_otherwise"]


def page(result: dict[str, Any]) -> str:
    """The tables of a report."""
    figures, errors = result["figures"], result["errors"]
    seconds = [
        ("checkpoint to device", f"{figures['load_s']:.1f} s"),
        ("tower, 1 picture", f"{figures['tower_s'][0]:.2f} s"),
    ]
    for name in ("text", "picture"):
        taken = figures[f"prefill_{name}_s"][0]
        seconds.append((f"prompt of {PROMPT} tokens, {name}", f"{taken:.1f} s"))
        seconds.append((f"compiling that, {name}", f"{figures[f'prefill_{name}_compile_s']:.1f} s"))
    median = statistics.median(figures["decode_s"])
    seconds.append(("decode", f"{median:.2f} s a token, {1 / median:.2f} tokens/s"))
    seconds.append(("compiling decode", f"{figures['decode_compile_s']:.1f} s"))
    memory = [*figures["weights"].items(), ("state", figures["state_bytes"])]
    memory += [("peak, loading", figures["load_peak_bytes"]), ("peak", figures["peak_bytes"])]
    compared = [(f"hidden states, {n} layers", f"{e:.1e}") for n, e in errors["hidden"].items()]
    compared += [("logits", f"{errors['logits']:.1e}"), ("tower", f"{errors['image']:.1e}")]
    tables = [
        markdown_table(("what", "time"), seconds),
        markdown_table(("memory", ""), [(name, gigabytes(size)) for name, size in memory]),
        markdown_table(("worst token's error, relative", ""), compared),
    ]
    return "\n\n".join(tables) + (
        f"\n\nOf {errors['tokens']} most likely tokens {errors['tokens_equal']} are the "
        f"reference's; the closest two logits lie {errors['smallest_margin']:.4f} apart, and the "
        f"largest error of a logit is {errors['largest_logit_error']:.1e}. "
        f"Processor: {result['processor']}, {result['threads']} threads."
    )


def measure(
    config: qwen35.Config, directory: Path, weights: str, steps: int, call: Callable[..., Any]
) -> dict[str, Any]:
    """Makes the checkpoint if it is not there, computes and compares; `call(f, *args)` runs f."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "config.json").is_file():
        size, free = flagship_files.size_of(config, weights), shutil.disk_usage(directory).free
        if size > free - 2**30:
            raise SystemExit(f"{directory}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} free")
        call(flagship_files.write, config, directory, weights)
    depths = [depth for depth in (1, 4, 16) if depth < config.num_hidden_layers]
    computed = call(compute, directory, steps, depths)
    images = computed.prompt.images
    truth = call(
        flagship_reference.reference,
        directory,
        computed.tokens,
        images.patches,
        images.grid,
        list(computed.hidden),
        steps + 1,
    )
    name = f"{config.num_hidden_layers} layers of random weights in {weights}"
    told = about(name, weights, "xla (CPU)", "transformers", "torch-xla")
    words = shlex.split(told["provenance"]["command"])
    # Where this machine has the directory is nobody else's business.
    words = [directory.name if Path(word) == directory else word for word in words]
    told["provenance"]["command"] = shlex.join(words)
    return told | {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "figures": computed.figures,
        "errors": compare(computed, truth),
    }


def _apart(function: Callable[..., Any], *args: Any) -> Any:
    """The call's result, from a process whose memory is free again afterwards."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def main() -> int:
    """Parses the command line, measures, writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="of the checkpoint")
    parser.add_argument("--preset", default="27b", choices=("4b", "9b", "27b"))
    parser.add_argument("--weights", default="int4", choices=("int4", "int8"))
    parser.add_argument("--layers", type=int, help="of the model; all of them if left out")
    parser.add_argument("--tokens", type=int, default=16, help="to decode; %(default)s")
    parser.add_argument("--report", type=Path, help="directory for a page and its JSON")
    options = parser.parse_args()
    config = qwen35.presets[options.preset]
    config = cut(config, options.layers or config.num_hidden_layers)
    result = measure(config, options.directory, options.weights, options.tokens, _apart)
    print(page(result))
    if options.report:
        name = f"flagship-{options.preset}-{options.weights}"
        title = f"{options.preset.upper()} in {options.weights.upper()} on a CPU"
        write_report(options.report, name, title, result, page(result), {})
    if not holds(result["errors"]):
        print(f"error: more than {TOLERANCE} off, see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
