"""What training either demo checkpoint takes: padded rows, a schedule, the loop, the files."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

import qwen35
from qwen35.files import aside

WARM_UP = 50  # steps
KEEP_EVERY = 50  # steps between two writes of an unfinished training

Row = list[tuple[int, float]]  # tokens, each with its weight in the loss
Padded = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def with_long_memory(params: qwen35.Params, seed: int) -> qwen35.Params:
    """The parameters with decay biases to train from: time steps of 0.001 to 0.1, log-uniform.

    `init_params` draws what transformers draws, a bias of one everywhere, with which most heads
    forget a token at once: a poor start for learning to look back. The range is Mamba's (Gu and
    Dao, arXiv:2312.00752).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(layer):
        if not hasattr(layer, "dt_bias"):
            return layer
        low, high = math.log(1e-3), math.log(1e-1)
        step = torch.empty_like(layer.dt_bias).uniform_(low, high, generator=generator).exp()
        return layer._replace(dt_bias=step.expm1().log())  # softplus of it is the step

    return dataclasses.replace(params, layers=tuple(map(draw, params.layers)))


def pad(rows: Sequence[Row]) -> Padded:
    """Rows of (token, weight) as tokens [B, T], lengths [B], next tokens [B, T] and their weights.

    weights [B, T] are float32 and 0 where there is no next token; the others are int64.
    """
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    weights = torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor([token for token, _ in row])
        weights[index, : len(row) - 1] = torch.tensor([weight for _, weight in row[1:]])
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, lengths, tokens.roll(-1, dims=1), weights


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up to one, then half a cosine down to a fiftieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * cosine)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, on matrices (Jordan et al., kellerjordan.github.io/posts/muon).

    torch.optim.Muon multiplies in bfloat16, which takes a CPU as long as all the rest of a step;
    here the arithmetic is the parameters'. Updates have the size that AdamW's typically have, so
    that learning rates compare (Liu et al., arXiv:2502.16982).
    """

    def __init__(
        self, params: Sequence[torch.Tensor], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                if not state:
                    state["average"] = torch.zeros_like(matrix)
                average = state["average"].lerp_(matrix.grad, 1 - group["momentum"])
                update = _orthogonal(matrix.grad.lerp(average, group["momentum"]))
                size = 0.2 * max(matrix.shape) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * size)


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix with all singular values one: five Newton-Schulz steps."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrix else x.T


def train(
    params: qwen35.Params,
    optimisers: Callable[[qwen35.Params], Sequence[torch.optim.Optimizer]],
    batches: Callable[[int], Iterator[Any]],
    loss: Callable[[qwen35.Params, Any], torch.Tensor],
    steps: int,
    kept: Path | None = None,
) -> qwen35.Params:
    """Minimises `loss` and returns the trained parameters.

    Parameters are a pytree: its leaves ask for gradients, and the optimisers update them in place.

    Args:
        params: where to start.
        optimisers: makes them for the parameters; their learning rates follow `learning_rate`.
        batches: the batches from the given step on.
        loss: of the parameters and a batch.
        steps: batches to learn from.
        kept: where the unfinished training is written every `KEEP_EVERY` steps, and read from if
            the file is there: the same batches follow as if it had never stopped.
    """
    leaves, structure = pytree.tree_flatten(params)
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    params = pytree.tree_unflatten(leaves, structure)
    chosen = optimisers(params)
    peaks = [optimiser.param_groups[0]["lr"] for optimiser in chosen]
    start = 0
    if kept is not None and kept.exists():
        saved = torch.load(kept)
        start = saved["step"]
        for optimiser, state in zip(chosen, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        with torch.no_grad():
            for leaf, value in zip(leaves, saved["leaves"], strict=True):
                leaf.copy_(value)
    progress = tqdm(range(start, steps), "train", steps, initial=start, unit="step", smoothing=0.05)
    for step, batch in zip(progress, batches(start), strict=False):
        value = loss(params, batch)
        for optimiser in chosen:
            optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        for optimiser, peak in zip(chosen, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * learning_rate(step, steps)
            optimiser.step()
        if step % 10 == 0:
            progress.set_postfix(loss=f"{value.item():.3f}")
        if kept is not None and (step + 1) % KEEP_EVERY == 0:
            states = [optimiser.state_dict() for optimiser in chosen]
            with aside.replaced(kept) as file:
                torch.save({"step": step + 1, "leaves": leaves, "optimisers": states}, file)
    return pytree.tree_map(torch.Tensor.detach, params)


def write_checkpoint(
    directory: Path,
    params: qwen35.Params,
    tokenizer: PreTrainedTokenizerBase,
    files: Mapping[str, str | bytes],
) -> None:
    """Writes a directory whole: what stood in it is gone, or still there if the process dies.

    `files` are what stands beside weights and tokenizer, by name.
    """
    generation = {
        "do_sample": False,
        "eos_token_id": list(params.config.eos_token_ids),
        "pad_token_id": params.config.pad_token_id,
    }
    directory.mkdir(parents=True, exist_ok=True)
    with aside.switched(directory, "config.json", stale=("*",)) as new:
        qwen35.save(params, new)
        tokenizer.save_pretrained(new)
        for name, content in {
            "generation_config.json": json.dumps(generation, indent=2) + "\n",
            **files,
        }.items():
            (new / name).write_bytes(content.encode() if isinstance(content, str) else content)
