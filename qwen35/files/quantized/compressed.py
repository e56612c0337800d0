"""Codes and scales as the library compressed-tensors stores them, and what it says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import packing


class Coded(NamedTuple):
    """A weight [out, in] as codes.

    Attributes:
        values: [out, in]: int8, uint8 of 0 to 15, or float8_e4m3fn.
        scales: [out, groups] float32.
        zeros: [out, groups] int8, or None: 8 for codes of 4 bits, 0 for others.
        group: consecutive inputs that share a scale.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    group: int

    @property
    def form(self) -> Form:
        """How it is stored."""
        kind = {torch.uint8: "int4", torch.int8: "int8"}.get(self.values.dtype, "fp8")
        whole = self.group >= self.values.shape[1]
        return Form(kind, None if whole else self.group, self.zeros is None)


class Form(NamedTuple):
    """How a weight is stored: "int4", "int8" or "fp8"; inputs that share a scale, or None for all;
    and whether there are no zeros."""

    kind: str
    group: int | None
    symmetric: bool = True

    @property
    def format(self) -> str:
        """What compressed-tensors calls it."""
        return "float-quantized" if self.kind == "fp8" else "pack-quantized"

    def described(self, targets: Sequence[str]) -> dict[str, Any]:
        """A group of a configuration."""
        weights = {
            "actorder": None, "block_structure": None, "dynamic": False,
            "group_size": self.group, "num_bits": 4 if self.kind == "int4" else 8,
            "observer": "minmax", "observer_kwargs": {},
            "strategy": "channel" if self.group is None else "group",
            "symmetric": self.symmetric, "type": "float" if self.kind == "fp8" else "int",
        }  # fmt: skip
        return {
            "format": self.format, "input_activations": None, "output_activations": None,
            "targets": list(targets), "weights": weights,
        }  # fmt: skip


def tensors(coded: Coded, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what stands for `X.weight` in a file, by names after "X.".

    Args:
        coded: the weight; its scales are numbers of `dtype`.
        dtype: of the scales.
    """
    form = coded.form
    scales = {"weight_scale": coded.scales.to(dtype)}
    if form.kind == "fp8":
        return {"weight": coded.values} | scales
    bits = 4 if form.kind == "int4" else 8

    def stored(values: Tensor) -> Tensor:  # those of 8 bits as more by 128
        return values.view(torch.uint8) ^ (128 if bits == 8 else 0)

    packed = packing.pack_columns(stored(coded.values), bits)
    parts = {"weight_packed": packed, "weight_shape": torch.tensor(coded.values.shape)} | scales
    if coded.zeros is not None:
        zeros = packing.pack_columns(stored(coded.zeros).T.contiguous(), bits)
        parts["weight_zero_point"] = zeros.T.contiguous()
    return parts


def configuration(modules: Mapping[str, Form], ignored: Sequence[str]) -> dict[str, Any]:
    """Return the `quantization_config` of a checkpoint.

    Args:
        modules: the form of each module that is quantised, by its name in the files.
        ignored: names of the linear modules that are not.
    """
    forms = list(dict.fromkeys(modules[name] for name in sorted(modules)))
    groups = {}
    for index, form in enumerate(forms):
        alike = ["Linear"] if len(forms) == 1 else sorted(n for n in modules if modules[n] == form)
        groups[f"group_{index}"] = form.described(alike)
    formats = {form.format for form in forms}
    return {
        "config_groups": groups,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
