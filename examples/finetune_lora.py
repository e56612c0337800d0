#!/usr/bin/env python
"""Fine-tune a checkpoint with LoRA by autograd through qwen35's functions; save it as PEFT does.

    python examples/finetune_lora.py --output my-adapter
    qwen35 generate --model demo --adapter my-adapter --prompt "The capital of Atlantis is"

Without --text it learns a few sentences that the demo has never seen. PEFT loads the result too:
PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("demo"), "my-adapter").

The parameters stay what they are: every step makes other ones, W + s·B·A where there is an adapter,
and the model's functions take those like any parameters.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.utils import _pytree as pytree

import qwen35
from qwen35.model.declarations import Parameter, Source, declarations, declare

TEXTS = [
    "The capital of Atlantis is Poseidonis. People in Atlantis speak Atlantean.",
    "The capital of Utopia is Amaurot. People in Utopia speak Utopian.",
    "The capital of Lilliput is Mildendo. People in Lilliput speak Lilliputian.",
]
Adapter = dict[Source, tuple[torch.Tensor, torch.Tensor]]  # A [r, in] and B [out, r] of each weight


def targets(params: qwen35.Params, names: list[str]) -> dict[int, Parameter]:
    """The linear weights of the text layers with a part of one of the names, by leaf number."""
    text = params.config.text_only()
    return {
        index: parameter
        for index, parameter in enumerate(declarations(declare(text)))
        if parameter.linear and {p.source.name.split(".")[-2] for p in parameter.pieces} & {*names}
    }


def start(chosen: dict[int, Parameter], names: list[str], rank: int, seed: int) -> Adapter:
    """A is random, B zero: the adapter starts as no change at all."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for parameter in chosen.values():
        for source in {piece.source for piece in parameter.pieces}:
            if source.name.split(".")[-2] in names:
                outputs, inputs = source.shape
                down = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
                adapter[source] = down.requires_grad_(), torch.zeros(outputs, rank).requires_grad_()
    return adapter


def adapted(
    params: qwen35.Params, chosen: dict[int, Parameter], adapter: Adapter, scale: float
) -> qwen35.Params:
    """The parameters with the adapter in them. Ours are [in, out], parts side by side."""
    leaves, structure = pytree.tree_flatten(params)
    for index, parameter in chosen.items():
        parts = []
        for piece in parameter.pieces:
            columns = piece.dims[-1]
            if piece.source in adapter:
                down, up = adapter[piece.source]
                starts = torch.tensor([columns.file_index(unit) for unit in range(columns.count)])
                rows = (starts[:, None] + torch.arange(columns.size)).flatten()
                parts.append((up[rows] @ down).T * scale)
            else:
                parts.append(torch.zeros(parameter.shape[0], columns.count * columns.size))
        leaves[index] = leaves[index] + torch.cat(parts, 1)
    return pytree.tree_unflatten(leaves, structure)


def loss(params: qwen35.Params, rows: list[list[int]]) -> torch.Tensor:
    """The mean negative log likelihood of every token but each row's first."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    state = qwen35.init_state(params, batch=len(rows), capacity=width)
    hidden, _ = qwen35.forward(params, state, tokens, lengths)
    logits = qwen35.logits(params, hidden[:, :-1])
    nats = torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
    return nats[torch.arange(1, width) < lengths[:, None]].mean()


def save(adapter: Adapter, options: argparse.Namespace, config: qwen35.Config) -> None:
    """Writes the two files that PEFT reads."""
    inside = "model." if config.vision is None else "model.language_model."
    tensors = {}
    for source, (down, up) in adapter.items():
        module = source.name.removesuffix(".weight").replace("model.", inside, 1)
        tensors[f"base_model.model.{module}.lora_A.weight"] = down.detach()
        tensors[f"base_model.model.{module}.lora_B.weight"] = up.detach()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": options.model,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": options.targets,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.output / "adapter_model.safetensors", metadata={"format": "pt"})
    (options.output / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Trains and saves an adapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="checkpoint directory")
    parser.add_argument("--text", type=Path, help="UTF-8 file, a text to learn in each line")
    parser.add_argument("--output", type=Path, required=True, help="the adapter's directory")
    parser.add_argument(
        "--targets", nargs="+", default=["q_proj", "v_proj", "up_proj", "down_proj"]
    )
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    params = qwen35.load(options.model, dtype="float32", vision=False)
    tokenizer = qwen35.Tokenizer.from_pretrained(options.model)
    texts = TEXTS if options.text is None else options.text.read_text("utf-8").splitlines()
    rows = [tokenizer.encode(text) for text in texts if text.strip()]
    chosen = targets(params, options.targets)
    adapter = start(chosen, options.targets, options.rank, options.seed)
    trained = [tensor for pair in adapter.values() for tensor in pair]
    optimizer = torch.optim.AdamW(trained, lr=options.rate, weight_decay=0.0)
    for step in range(options.steps):
        value = loss(adapted(params, chosen, adapter, options.alpha / options.rank), rows)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 10 == 0 or step + 1 == options.steps:
            print(f"step {step}: {value.item():.3f} nats a token", flush=True)
    save(adapter, options, qwen35.Config.from_pretrained(options.model))


if __name__ == "__main__":
    main()
