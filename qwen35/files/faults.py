"""What is wrong with a checkpoint's tensors, and the one cause that most of it may have."""

from __future__ import annotations

import collections
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

_MOST = 20  # faults that are listed one by one
_FIRST = 3  # of each kind where there are more
_LONGEST = 240  # characters of a sentence: a name can have millions

# Parts that a wrapper puts into the names of the model in it, and what that is.
_WRAPPERS = {
    "module": "DistributedDataParallel or DeepSpeed",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
# Ends of names that tell a kind of checkpoint, and what to say of it.
_TELLING = (
    ((".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight"), "a LoRA adapter is in it, "
     "not merged: PEFT's merge_and_unload() merges it"),
    ((".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4",
      ".SCB", ".weight_format"), "its weights are quantised by bitsandbytes, which is not read"),
    ((".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv"), "its weights are "
     "quantised, but config.json tells no quantisation (quantization_config)"),
    ((".biases", ".scales"), "its weights are quantised by MLX, which is not read"),
    ((".in_proj_qkvz.weight", ".in_proj_ba.weight"), "its layers are those of Qwen3-Next"),
    ((".mlp.gate.weight", ".experts.gate_up_proj", ".experts.down_proj", ".mlp.shared_expert_gate"
      ".weight"), "it is a mixture of experts, config.json describes a dense model"),
)  # fmt: skip


@dataclass
class Faults:
    """Faults that were found, in the order of finding; each list is added to.

    Attributes:
        missing: names of tensors that the model needs.
        unknown: names in the files of tensors that it does not have.
        shapes: of tensors of another shape, by name in the files: theirs, and the model's.
        others: sentences.
        where: sentences about a tensor of `unknown` and `shapes`, by its name in the files.
        layers: how many the files have, and the model.
    """

    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    where: dict[str, str] = field(default_factory=dict)
    layers: tuple[int, int] = (0, 0)

    def text(self, total: int) -> str | None:
        """Tells all of it: the cause first, if there is one, then each fault, or how many there are
        of each kind and the first three. None if nothing is wrong.

        Args:
            total: how many tensors the files have.
        """
        kinds = {
            "are missing": [f"{name} is missing" for name in self.missing],
            "have another shape": [self.where[name] for name in self.shapes],
            "are not part of this model": [self.where[name] for name in self.unknown],
            "are wrong otherwise": self.others,
        }
        count = sum(map(len, kinds.values()))
        if not count:
            return None
        cause = self._cause(total)
        said = [] if cause is None else [cause]
        for kind, sentences in kinds.items():
            if count <= _MOST or len(sentences) <= _FIRST:
                said += sentences
            else:
                said += [*sentences[:_FIRST], f"{len(sentences) - _FIRST} more {kind}"]
        return "; ".join(
            sentence if len(sentence) <= _LONGEST else f"{sentence[: _LONGEST - 1]}…"
            for sentence in said
        )

    def _cause(self, total: int) -> str | None:
        named = _renamed(self.unknown, self.missing, total) or _telling(self.unknown)
        if named or self.layers[0] == self.layers[1]:
            return named or _another_size(self.shapes)
        return f"the files have {self.layers[0]} layers, config.json says {self.layers[1]}"


def _renamed(unknown: Collection[str], missing: Collection[str], total: int) -> str | None:
    """Finds what most unknown names have in addition to, or less than, missing ones."""
    needed = set(missing)
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for name in unknown:
        parts = name.replace("model.language_model.", "model.").split(".")
        bare = ".".join(part for part in parts if part not in _WRAPPERS)
        wrapper = next((part for part in parts if part in _WRAPPERS), None)
        if wrapper and bare in needed:
            found["wrapper", wrapper] += 1
            continue
        place = next((n for n in range(1, len(parts)) if ".".join(parts[n:]) in needed), None)
        if place is not None:
            found["prefix", ".".join(parts[:place]) + "."] += 1
        elif f"model.{name}" in needed:
            found["without", "model."] += 1
    if not found:
        return None
    (kind, part), count = found.most_common(1)[0]
    if count < max(2, len(unknown) // 2):
        return None
    many = f"all {total}" if count == total else f"{count} of {total}"
    if kind == "wrapper":
        starts = sum(name.startswith(part + ".") for name in unknown) >= count
        place = f"start with '{part}.'" if starts else f"have '{part}.' in them"
        return (
            f"{many} names {place}, as {_WRAPPERS[part]} leaves them: save the model inside of it, "
            "or take it out of the names"
        )
    if kind == "prefix":
        return f"{many} names start with '{part}', which those of this model do not"
    return f"{many} names lack the '{part}' that those of this model start with"


def _telling(unknown: Collection[str]) -> str | None:
    """Finds what most unknown names, or many of them, say of the checkpoint by their ends."""
    for ends, text in _TELLING:
        count = sum(name.endswith(ends) for name in unknown)
        if count >= max(2, len(unknown) // 4):
            return text
    return None


def _another_size(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str | None:
    """Finds the size in which files and configuration differ."""
    turned = [
        seen == (*needed[:-2], needed[-1], needed[-2])
        for name, (seen, needed) in shapes.items()
        if name.endswith("conv1d.weight")
    ]
    if turned and all(turned):
        return "its convolutions are stored as MLX stores them, which changes its norms too"
    for end, axis, what in (
        ("embed_tokens.weight", 1, "hidden_size"), ("embed_tokens.weight", 0, "vocab_size"),
        ("mlp.up_proj.weight", 0, "intermediate_size"),
    ):  # fmt: skip
        for name, (seen, needed) in shapes.items():
            if name.endswith(end) and len(seen) == 2 and seen[axis] != needed[axis]:
                return f"{what} is {seen[axis]} in the files and {needed[axis]} in config.json"
    return None
