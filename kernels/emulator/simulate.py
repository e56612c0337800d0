"""Running a kernel on the emulated machine."""

import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .access import cells
from .dtypes import DTYPES, bfloat16, decode, encode, resolve
from .errors import EmulatorError, NotModelledError
from .isa_limits import STRICTNESSES
from .language import BUFFERS
from .machine import TARGETS, Core
from .modules import Kernel
from .report import Report, build_report, check_capacity
from .rules import fail
from .running import activate
from .signatures import VERSIONS
from .tensor import Tensor


class HostTensor:
    """Host data of a dtype that NumPy lacks, as an argument of `simulate`.

    `HostTensor(array, "bfloat16")` rounds float values; `HostTensor.from_bits(bits, "bfloat16")`
    takes the stored bits (uint16).
    """

    def __init__(self, array, dtype):
        self.dtype = resolve(dtype)
        self.cells = encode(np.asarray(array, np.float32), self.dtype)

    @classmethod
    def from_bits(cls, bits, dtype):
        self = cls.__new__(cls)
        self.dtype = resolve(dtype)
        self.cells = np.asarray(bits, self.dtype.storage)
        return self


class Simulation(NamedTuple):
    """`outputs`: the kernel's results in order, as arrays (bfloat16 ones as exact float32)."""

    outputs: tuple[np.ndarray, ...]
    report: Report


def simulate(
    kernel: Kernel,
    *arrays,
    target="trn2",
    lnc=None,
    version="0.5",
    strictness="documented",
    exp_error=0.0,
    **static,
):
    """Run `kernel` on host arrays and return a `Simulation`.

    arrays: NumPy arrays or `HostTensor`s, which the kernel sees as HBM tensors; anything else,
    positional or keyword, is a compile-time value. `lnc`: cores per logical core, 1 or 2 (the
    bracket's value by default, `kernel[2]`). `version`: the NKI version whose rules hold.
    `strictness`: "documented", or "isa" for the limits of `isa_limits` as well.
    `exp_error`: the largest relative error of ScalarE's exp, which is a table of polynomials on the
    machine and NumPy's here; every argument has an error of its own up to it.
    """
    if not isinstance(kernel, Kernel):
        raise EmulatorError(f"simulate takes a kernel from emulator.load, got {kernel!r}")
    if target not in TARGETS:
        raise NotModelledError(f"target {target!r}; modelled: {', '.join(TARGETS)}")
    number = tuple(int(part) for part in version.split("."))
    if number not in VERSIONS:
        raise NotModelledError(f"NKI version {version!r}; modelled: 0.3 to 0.7")
    kernel.check_language(number)
    lnc = kernel.lnc if lnc is None else lnc
    if lnc not in (1, 2):
        raise EmulatorError(f"lnc must be 1 or 2, got {lnc!r}")
    if strictness not in STRICTNESSES:
        raise EmulatorError(f"strictness must be one of {STRICTNESSES}, got {strictness!r}")
    machine = TARGETS[target]
    shared = []
    cores, results = [], []
    for rank in range(lnc):
        core = Core(machine, number, rank, lnc, shared, strictness == "isa", exp_error)
        with activate(core), np.errstate(all="ignore"), _located(kernel):
            positional = [_argument(core, f"argument {i}", a) for i, a in enumerate(arrays)]
            keywords = {name: _argument(core, name, a) for name, a in static.items()}
            results.append(kernel.function(*positional, **keywords))
        check_capacity(core)
        cores.append(core)
    if lnc == 2:
        _check_control_flow(cores)
    outputs = _outputs(results[0])
    report = build_report(kernel.__name__, cores[0])
    return Simulation(tuple(_fetch(tensor) for tensor in outputs), report)


@contextmanager
def _located(kernel):
    """Put the place in the kernel's source in front of an error's message."""
    try:
        yield
    except EmulatorError as error:
        files = kernel.files()
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
        if frames:
            places = [f"{Path(f.filename).name}:{f.lineno}: {f.line}" for f in reversed(frames)]
            callers = "".join(f"\n  called at {place}" for place in places[1:])
            error.args = (f"{places[0]}\n{error.args[0]}{callers}",)
        raise


def _argument(core: Core, name, value):
    """An input tensor in HBM, or the compile-time value itself."""
    if isinstance(value, list):
        fail("list-argument", f"{name} is a list; use a tuple")
    if isinstance(value, np.ndarray):
        if value.dtype.name == "bfloat16":  # ml_dtypes
            value = HostTensor.from_bits(value.view(np.uint16), "bfloat16")
        elif value.dtype.name in DTYPES:
            value = HostTensor.from_bits(value, value.dtype.name)
        else:
            raise NotModelledError(f"{name} has dtype {value.dtype}, which NKI does not have")
    if not isinstance(value, HostTensor):
        return value
    tensor = core.allocate(value.cells.shape, value.dtype, "hbm", name=name)
    tensor.storage.fill(value.cells)
    tensor.storage.buffer = BUFFERS["shared_hbm"]
    tensor.storage.readonly = True
    return tensor


def _outputs(result):
    tensors = result if isinstance(result, tuple | list) else (result,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            fail("output-space", f"the kernel returned {tensor!r}; return tensors")
        if tensor.indexed or not tensor.storage.shared:
            fail(
                "output-space", f"returned {tensor!r} must be allocated in {BUFFERS['shared_hbm']}"
            )
    return tensors


def _fetch(tensor: Tensor) -> np.ndarray:
    stored = cells(tensor, "output")
    return decode(stored, tensor.dtype) if tensor.dtype is bfloat16 else stored.copy()


def _check_control_flow(cores):
    sequences = [[(i.op, i.engine) for i in core.trace] for core in cores]
    if sequences[0] != sequences[1]:
        a, b = sequences
        place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        where = f"they part at instruction {place}" if place is not None else "one stops earlier"
        fail(
            "lnc-control-flow",
            f"core 0 runs {len(a)} instructions, core 1 {len(b)}; {where}",
        )
