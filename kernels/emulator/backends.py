"""Running the same kernel files on AWS's own simulator, where its package is installed.

`nki.simulate` is experimental, models neither capacities nor overlap, and comes from AWS's package
index only; a test that uses it skips with `nki_unavailable()` as the reason elsewhere.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np

from .simulate import HostTensor


def nki_unavailable() -> str | None:
    """None if the real `nki` has a simulator here, else a sentence that says what is missing."""
    if importlib.util.find_spec("nki") is None:
        return "the nki package of AWS Neuron is not installed"
    import nki

    if not hasattr(nki, "simulate"):
        return f"nki at {nki.__file__} has no simulate: the Neuron package is 0.3 or newer"
    return None


def simulate_with_nki(path, name: str, *arrays, lnc=1, **static) -> tuple[np.ndarray, ...]:
    """The outputs of kernel `name` of the file `path` by `nki.simulate` for trn2.

    Arrays are as for `emulator.simulate`; bfloat16 results come back as float32.
    """
    os.environ["NEURON_PLATFORM_TARGET_OVERRIDE"] = "trn2"
    import nki

    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = getattr(module, name)
    result = nki.simulate(kernel[lnc] if lnc > 1 else kernel)(*map(_host, arrays), **static)
    results = result if isinstance(result, tuple | list) else (result,)
    return tuple(
        np.asarray(r, np.float32) if r.dtype.name == "bfloat16" else np.asarray(r) for r in results
    )


def _host(value):
    if not isinstance(value, HostTensor):
        return value
    if value.dtype != "bfloat16":
        return value.cells
    import ml_dtypes  # nki depends on it

    return value.cells.view(ml_dtypes.bfloat16)
