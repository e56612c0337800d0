"""How operations are formed: one interface, `Plain`, and an implementation for each platform.

The model's functions say what is computed; a product, a reduction, a softmax attention or a SiLU
is formed by the `Plain` that they are given. "plain" is the textbook form, for every device and for
every graph that is exported; "xla_cpu" is what runs fast on XLA:CPU. Forms change results by
rounding only.
"""

from __future__ import annotations

from functools import cache

from ..xla.devices import on_xla_cpu, platform
from .plain import Plain
from .weights import (
    JoinedWeight,
    Part,
    QuantizedWeight,
    SpacedWeight,
    Weight,
    abstract,
    as_bits,
    between,
    codes,
    columns,
    compact,
    dense,
    halved,
    is_special,
    packed,
    parts_of,
    unpacked,
)

__all__ = [
    "FORMS",
    "JoinedWeight",
    "Part",
    "Plain",
    "QuantizedWeight",
    "SpacedWeight",
    "Weight",
    "abstract",
    "as_bits",
    "between",
    "codes",
    "columns",
    "compact",
    "dense",
    "get",
    "halved",
    "is_special",
    "packed",
    "parts_of",
    "resolve",
    "unpacked",
]

FORMS = ("auto", "plain", "xla_cpu")


def resolve(forms: str, device: str) -> str:
    """Return the forms, "plain" or "xla_cpu", that a choice comes to on a kind of device.

    Args:
        forms: one of `FORMS`; "auto" is "xla_cpu" on an XLA device that is the CPU, else "plain".
        device: "cpu", "xla" or "meta".

    Raises:
        ValueError: "xla_cpu" on another XLA device.
    """
    if device != "xla":
        return "plain" if forms == "auto" else forms
    if forms == "auto":
        return "xla_cpu" if on_xla_cpu() else "plain"
    if forms == "xla_cpu" and not on_xla_cpu():
        raise ValueError(
            f"forms='xla_cpu' is for XLA on the CPU, and this device is torch-xla's {platform()}: "
            "choose 'plain' or 'auto'"
        )
    return forms


_PLAIN = Plain()


def get(forms: str) -> Plain:
    """Return the implementation of "plain" or "xla_cpu"."""
    return _PLAIN if forms == "plain" else _xla_cpu()


@cache
def _xla_cpu() -> Plain:
    from .xla_cpu import XlaCpu  # only where it is used: "plain" needs nobody's knowledge

    return XlaCpu()
