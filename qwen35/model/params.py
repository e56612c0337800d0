"""The pytree that holds the parameters, and the static choices that travel with it.

The weight of a linear map, [in, out], is a tensor or a leaf that is stored in a special way
(`forms.Weight`): both have the shape and dtype of what they stand for.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import qwen35.forms as forms

from ..checks.values import as_integer, integer, shown
from ..forms import Plain, Weight
from ..kernels import DEFAULT_PLAN, Plan
from ..sharding.mesh import Mesh
from ..sharding.split import Split
from ..xla.trees import register_frozen
from . import reprs
from .config import Config, VisionConfig

KERNELS = ("auto", "portable", "nki", "emulator")


@dataclass(frozen=True)
class Runtime:
    """Static choices: they select a graph and never change results beyond rounding.

    Attributes:
        mesh: how tensors are split over ranks; None is a single device.
        rank: this program's place in the mesh. None means all of them: tensors hold every rank's
            share, stacked over the devices of this process (`sharding.spmd`).
        kernels: "auto" (NKI exactly when the device is Neuron and `nki` imports), "portable"
            (torch operations), "nki", or "emulator" (the NKI kernels run on the host by the
            emulator: slow, for checking).
        chunk: tokens that the portable DeltaNet prefill handles as one block.
        forms: how products, reductions and attention are formed: "plain" (the textbook form),
            "xla_cpu" (what runs fast on XLA:CPU), or "auto", for which placing parameters on a
            device (`load`, `init_params`, `device_put`) chooses: "xla_cpu" on XLA:CPU, else
            "plain".
        segments: into how many equal runs jit cuts a step's layers, each a graph that is compiled
            once (`segments`); 1 is one graph of all, "auto" a run for each period of their kinds.
        backend: which of torch.compile's compiles steps (`jit`), such as "inductor" on the CPU;
            None is XLA on the XLA device, and no compilation on the CPU. Of one device.
        forms_of_device: whether placing chose `forms`, and so chooses again on another device.
        kernel_plan: what the NKI kernels can do in two ways (`kernels.Plan`).
    """

    mesh: Mesh | None = None
    rank: int | None = 0
    kernels: str = "auto"
    chunk: int = 64
    forms: str = "auto"
    segments: int | str = 1
    backend: str | None = None
    forms_of_device: bool = dataclasses.field(default=False, repr=False)
    kernel_plan: Plan = DEFAULT_PLAN

    def __post_init__(self) -> None:
        if self.kernels not in KERNELS:
            raise ValueError(f"kernels must be one of {KERNELS}, not {shown(self.kernels)}")
        if self.forms not in forms.FORMS:
            raise ValueError(f"forms must be one of {forms.FORMS}, not {shown(self.forms)}")
        object.__setattr__(self, "chunk", integer("chunk", self.chunk, 1, 1024))
        if self.segments != "auto":
            object.__setattr__(self, "segments", integer("segments", self.segments, 1, 1024))
        size = 1 if self.mesh is None else self.mesh.size
        if self.backend is not None and size > 1:
            raise ValueError(f"backend {self.backend!r} is for one device, not {size} ranks")
        if self.backend is not None and self.segments != 1:
            raise ValueError(f"backend {self.backend!r} makes steps one graph: segments must be 1")
        if self.rank is None and size > 1:
            return
        rank = as_integer(self.rank)
        if rank is None or not 0 <= rank < size:
            raise ValueError(f"rank {shown(self.rank)} is outside a mesh of {size} ranks")
        object.__setattr__(self, "rank", rank)

    @property
    def own_rank(self) -> int:
        """`rank`, where it is known that tensors are those of one rank."""
        assert self.rank is not None
        return self.rank

    def on(self, device: str) -> Runtime:
        """Return the choices for parameters on a kind of device ("cpu", "xla" or "meta").

        Raises:
            ValueError: forms of another device.
        """
        free = self.forms == "auto" or self.forms_of_device
        usual = "auto" if self.backend is None else "plain"  # which is what any backend knows
        chosen = forms.resolve(usual if free else self.forms, device)
        return dataclasses.replace(self, forms=chosen, forms_of_device=free)

    def changed(self, device: str, **changes: Any) -> Runtime:
        """Return the choices with some of them changed, for parameters on a kind of device."""
        if "forms" in changes:
            changes["forms_of_device"] = False
        return dataclasses.replace(self, **changes).on(device)


class DeltaNetLayer(NamedTuple):
    """A gated DeltaNet block. Shapes unsplit; K taps, C = 2·key_dim + value_dim channels.

    input_norm [H], in_proj [H, C + value_dim + 2·Hv] (query | key | value | z | b | a),
    conv [K, C], a_log [Hv] and dt_bias [Hv] (always fp32), norm [Dv], out_proj [value_dim, H],
    post_norm [H], gate_up [H, 2·I], down [I, H].
    """

    input_norm: Tensor
    in_proj: Weight
    conv: Tensor
    a_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    out_proj: Weight
    post_norm: Tensor
    gate_up: Weight
    down: Weight

    def __repr__(self) -> str:
        return reprs.of_layer(self)


class AttentionLayer(NamedTuple):
    """A gated grouped-query attention block. Shapes unsplit; D = head_dim.

    input_norm [H], in_proj [H, (2·Hq + 2·Hkv)·D] (query | gate | key | value), q_norm [D],
    k_norm [D], out_proj [Hq·D, H], post_norm [H], gate_up [H, 2·I], down [I, H].
    """

    input_norm: Tensor
    in_proj: Weight
    q_norm: Tensor
    k_norm: Tensor
    out_proj: Weight
    post_norm: Tensor
    gate_up: Weight
    down: Weight

    def __repr__(self) -> str:
        return reprs.of_layer(self)


class VisionBlock(NamedTuple):
    """A block of the vision tower. Shapes unsplit; H and I are the tower's own widths.

    attention_norm [H], qkv [H, 3·H] (query | key | value, each all heads), out_proj [H, H],
    mlp_norm [H], up [H, I], down [I, H]; every one has a bias of its width.
    """

    attention_norm: Tensor
    attention_norm_bias: Tensor
    qkv: Weight
    qkv_bias: Tensor
    out_proj: Weight
    out_proj_bias: Tensor
    mlp_norm: Tensor
    mlp_norm_bias: Tensor
    up: Weight
    up_bias: Tensor
    down: Weight
    down_bias: Tensor

    def __repr__(self) -> str:
        return reprs.of_layer(self)


class VisionMerger(NamedTuple):
    """What joins M neighbouring patches into a token of the text model's width, `out`.

    norm [H], up [M·H, M·H], down [M·H, out]; every one has a bias of its width.
    """

    norm: Tensor
    norm_bias: Tensor
    up: Weight
    up_bias: Tensor
    down: Weight
    down_bias: Tensor

    def __repr__(self) -> str:
        return reprs.of_layer(self)


@dataclass(frozen=True, eq=False)
class VisionParams:
    """The vision tower's parameters, a frozen pytree with static context as `Params` has.

    Attributes:
        patch_proj: [patch_dim, H]; the convolution over whole patches as a matrix.
        patch_bias: [H].
        positions: the learned grid, row by row, [num_position_embeddings, H].
        blocks: one `VisionBlock` per layer.
        merger: the `VisionMerger`.
        config: the tower's configuration.
        runtime: static choices, those of the `Params` that it belongs to.
    """

    patch_proj: Tensor
    patch_bias: Tensor
    positions: Tensor
    blocks: tuple[VisionBlock, ...]
    merger: VisionMerger
    config: VisionConfig
    runtime: Runtime

    def __repr__(self) -> str:
        return reprs.of_tree(self, self.blocks, hidden_size=self.config.hidden_size)

    def with_runtime(self, **changes: Any) -> VisionParams:
        """The same tensors with other static choices."""
        runtime = self.runtime.changed(self.device.type, **changes)
        return dataclasses.replace(self, runtime=runtime)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of what the tower computes."""
        return self.patch_proj.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.patch_proj.device

    @property
    def forms(self) -> Plain:
        """How operations on these parameters are formed."""
        return forms.get(forms.resolve(self.runtime.forms, self.device.type))


@dataclass(frozen=True, eq=False)
class Params:
    """All parameters, a frozen pytree whose static context is `config` and `runtime`.

    Attributes:
        embed: [V, H], or None when the head is tied: then `head` serves both.
        layers: per layer a `DeltaNetLayer` or an `AttentionLayer`.
        norm: the final norm [H].
        head: [H, V].
        vision: the vision tower's parameters, or None when `config.vision` is.
        config: the model's configuration.
        runtime: static choices.
        tp_index: [1] int32, which share of the split tensors these are, or None when they are
            whole. Data, not a static choice: so all ranks run one and the same graph.
    """

    embed: Tensor | None
    layers: tuple[DeltaNetLayer | AttentionLayer, ...]
    norm: Tensor
    head: Weight
    vision: VisionParams | None
    config: Config
    runtime: Runtime
    tp_index: Tensor | None = None

    def __repr__(self) -> str:
        facts = {"hidden_size": self.config.hidden_size, "vocab_size": self.config.vocab_size}
        tower = None if self.vision is None else f"{len(self.vision.blocks)} blocks"
        mesh = self.runtime.mesh
        tp = None if mesh is None else mesh.tp
        return reprs.of_tree(self, self.layers, **facts, vision=tower, tp=tp)

    def with_runtime(self, **changes: Any) -> Params:
        """The same tensors with other static choices, e.g. `with_runtime(chunk=128)`."""
        vision = None if self.vision is None else self.vision.with_runtime(**changes)
        runtime = self.runtime.changed(self.device.type, **changes)
        return dataclasses.replace(self, vision=vision, runtime=runtime)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, of hidden states and of the KV cache."""
        return self.head.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.head.device

    @property
    def forms(self) -> Plain:
        """How operations on these parameters are formed."""
        return forms.get(forms.resolve(self.runtime.forms, self.device.type))

    @property
    def vocabulary(self) -> Split:
        """Which tokens' embeddings and logits are here; not of all ranks at once."""
        return Split(self.config.vocab_size, self.runtime.mesh, self.tp_index)


# The parts that are None are no children: functions mapped over the tree do not meet them.
for _static in (Config, VisionConfig, Runtime):
    pytree.register_constant(_static)
for _parameters in (Params, VisionParams):
    pytree.register_dataclass(_parameters)
    register_frozen(_parameters, lambda parameters: parameters.runtime.backend)
