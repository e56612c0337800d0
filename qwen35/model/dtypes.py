"""The dtypes of parameters, by name."""

from __future__ import annotations

import torch

from ..checks.values import shown


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """`float32` or `bfloat16`, as a torch dtype or by name, `fp32` and `bf16` among the names.

    Raises:
        ValueError: any other dtype.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    known |= {"fp32": torch.float32, "bf16": torch.bfloat16}
    resolved = known.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in known.values():
        raise ValueError(f"dtype must be float32 (fp32) or bfloat16 (bf16), not {shown(dtype)}")
    return resolved


def name_of(dtype: torch.dtype) -> str:
    """Return a dtype's name, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
