"""An emulator of the documented NKI machine (trn2), strict enough to reject wrong kernels.

    kernel = emulator.load("nki_fused", "gated_delta_prefill")
    outputs, report = emulator.simulate(kernel, *arrays, version="0.5")

It runs kernels written for `nki`, `nki.language` and `nki.isa` on NumPy, refuses what the
documentation forbids (`rules.RULES`) and what it has no model of, and counts instructions and
cycles by the published cost model. It imports neither torch nor `nki`.
"""

from . import rules
from .backends import nki_unavailable, simulate_with_nki
from .errors import (
    EmulatorError,
    IsaWarning,
    LanguageError,
    NotModelledError,
    RuleError,
    SignatureError,
    UninitializedError,
)
from .loader import load
from .schedule import Costs
from .simulate import HostTensor, Simulation, simulate

__all__ = [
    "Costs",
    "EmulatorError",
    "HostTensor",
    "IsaWarning",
    "LanguageError",
    "NotModelledError",
    "RuleError",
    "SignatureError",
    "Simulation",
    "UninitializedError",
    "load",
    "nki_unavailable",
    "rules",
    "simulate",
    "simulate_with_nki",
]
