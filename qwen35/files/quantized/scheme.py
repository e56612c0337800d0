"""What a config.json says of how its checkpoint is quantised, and which of that is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...checks.values import as_integer, shown

_READ = "FP8, GPTQ, AWQ and the INT4, INT8 and FP8 of compressed-tensors are read"
_LONGEST = 40  # characters of a name that an error repeats
_MOST = 2**31 - 1  # of a size
# Of compressed-tensors, with the formats of its weights that are read.
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


class Scheme(NamedTuple):
    """How the weights that are quantised are stored; which ones are, the files' tensors say.

    Attributes:
        method: "fp8", "gptq", "awq" or "compressed-tensors", as `quant_method` has it.
        bits: of a weight's values, for "gptq" and "awq".
        groups: how many inputs share a scale, as far as the configuration says it; one, or with
            compressed-tensors several.
        blocks: outputs and inputs of blocks that share a scale, likewise.
        zero_offset: what a stored zero is below its value: 1 in the first form of GPTQ.
    """

    method: str
    bits: int = 8
    groups: tuple[int, ...] = ()
    blocks: tuple[tuple[int, int], ...] = ()
    zero_offset: int = 0


def scheme_of(content: Mapping[str, Any]) -> Scheme | None:
    """Returns the scheme of a `config.json`, or None if nothing is quantised.

    Raises:
        ValueError: a scheme that is not read; the text names it.
    """
    if "quantization" in content and "quant_method" not in (
        content.get("quantization_config") or {}
    ):
        raise _unread("mlx")  # its exporter writes both names, with bits and group_size alone
    text = content.get("text_config")
    places = (content, text if isinstance(text, dict) else {})
    stated = [
        place[name]
        for place in places
        for name in ("quantization_config", "compression_config")
        if place.get(name) is not None
    ]
    if not stated:
        return None
    found = stated[0]
    if not isinstance(found, dict):
        raise ValueError(f"quantization_config must be an object, not {shown(found)}")
    method = found.get("quant_method")
    readers = {"fp8": _fp8, "gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}
    if not isinstance(method, str) or method not in readers:
        raise _unread(_name(found))
    return readers[method](found)


def _unread(name: str) -> ValueError:
    return ValueError(f"its weights are quantised as {name}, which is not read here; {_READ}")


def _name(config: Mapping[str, Any]) -> str:
    """What users call a scheme that is not read: its algorithm, and its quant_method."""
    method = config.get("quant_method")
    algorithm = config.get("quant_algo") or config.get("quant_type")
    if method == "bitsandbytes":
        algorithm = "4 bit" if config.get("load_in_4bit") else "8 bit"
    named = shown(method) if method is not None else "something without a quant_method"
    return f"{algorithm[:_LONGEST]} of {named}" if isinstance(algorithm, str) else named


def _fp8(config: Mapping[str, Any]) -> Scheme:
    block = config.get("weight_block_size")
    if config.get("fmt", "e4m3") != "e4m3":
        raise _unread(f"FP8 of the kind {shown(config['fmt'])}")
    return Scheme("fp8", blocks=() if block is None else (_block("weight_block_size", block),))


def _gptq(config: Mapping[str, Any]) -> Scheme:
    if config.get("desc_act"):
        raise _unread("GPTQ with desc_act, whose groups are scattered over the inputs")
    form = config.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise _unread(f"GPTQ in the form {shown(form)}")
    return Scheme(
        "gptq", _bits(config, "GPTQ", (4, 8)), (_group(config.get("group_size")),),
        zero_offset=1 if form == "gptq" else 0,
    )  # fmt: skip


def _awq(config: Mapping[str, Any]) -> Scheme:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise _unread(f"AWQ of the version {shown(version)}")
    return Scheme("awq", _bits(config, "AWQ", (4,)), (_group(config.get("group_size")),))


def _compressed(config: Mapping[str, Any]) -> Scheme:
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ValueError("quantization_config of compressed-tensors has no config_groups")
    sizes, blocks = [], []
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise ValueError(f"a group of quantization_config has no weights: {shown(group)}")
        form = group.get("format") or config.get("format")
        if form not in (*_FORMATS, "mixed-precision", None):
            raise _unread(f"{shown(form)} of compressed-tensors")
        bits, kind = as_integer(weights.get("num_bits")), weights.get("type", "int")
        if (bits, kind) not in ((4, "int"), (8, "int"), (8, "float")):
            raise _unread(
                f"{str(kind)[:_LONGEST]} values of {shown(bits)} bits (compressed-tensors)"
            )
        if weights.get("group_size") is not None:
            sizes.append(_group(weights["group_size"]))
        if weights.get("block_structure") is not None:
            blocks.append(_block("block_structure", weights["block_structure"]))
    return Scheme("compressed-tensors", groups=tuple(sizes), blocks=tuple(blocks))


def _bits(config: Mapping[str, Any], name: str, known: tuple[int, ...]) -> int:
    bits = as_integer(config.get("bits"))
    if bits not in known:
        raise _unread(f"{name} of {shown(config.get('bits'))} bits")
    return bits


def _group(value: Any) -> int:
    """A group's inputs; -1 stands for all of them."""
    size = as_integer(value)
    if size is None or not (size == -1 or 1 <= size <= _MOST):
        raise ValueError(
            f"quantization_config: group_size must be positive or -1, not {shown(value)}"
        )
    return size


def _block(name: str, value: Any) -> tuple[int, int]:
    sizes = [as_integer(size) for size in value] if isinstance(value, list | tuple) else []
    if len(sizes) != 2 or any(size is None or not 1 <= size <= _MOST for size in sizes):
        raise ValueError(f"quantization_config: {name} must be two sizes, not {shown(value)}")
    return sizes[0], sizes[1]
