"""The operator enums of `nki.language` (`nl.add`, `nl.exp`, …) and their float32 arithmetic.

Sources: the ALU operator and activation tables of the shared API page; valid input ranges of
activations as listed there (outside of them the device's result is invalid, so it is an error).
"""

import numpy as np

from .errors import NotModelledError


class Operator:
    """An operator name used as an `op=` argument. Calling it (`nl.add(x, y)`) is refused."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"nl.{self.name}"

    def __call__(self, *args, **kwargs):
        raise NotModelledError(
            f"nl.{self.name}(...) as a compute function is experimental and not modelled; "
            f"pass nl.{self.name} as op= of an nki.isa instruction"
        )


class Unmodelled:
    """A documented name of `nki.isa` whose use is refused."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *args, **kwargs):
        raise NotModelledError(f"nisa.{self.name} is not modelled by this emulator")


def _flag(function):
    return lambda a, b: function(a, b).astype(np.float32)


def _logical(function):
    return lambda a, b: function(a != 0, b != 0).astype(np.float32)


ARITHMETIC = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
    "equal": _flag(np.equal),
    "not_equal": _flag(np.not_equal),
    "less": _flag(np.less),
    "less_equal": _flag(np.less_equal),
    "greater": _flag(np.greater),
    "greater_equal": _flag(np.greater_equal),
    "logical_and": _logical(np.logical_and),
    "logical_or": _logical(np.logical_or),
    "logical_xor": _logical(np.logical_xor),
    "bypass": lambda a, b: a,
}
UNARY = {
    "abs": np.abs,
    "square": np.square,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "rsqrt": lambda x: np.float32(1) / np.sqrt(x),
    "reciprocal": lambda x: np.float32(1) / x,
}
BITWISE = {
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "left_shift": np.left_shift,
    "right_shift": np.right_shift,
}
COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")

REDUCTIONS = {
    "add": np.add,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
# Legal for reductions too, but in which order a subtraction goes is not documented.
OTHER_REDUCTIONS = (
    "subtract",
    "logical_and",
    "logical_or",
    "logical_xor",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
)


def _sigmoid(x):
    # Split by sign, so that exp never overflows.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


ACTIVATIONS = {
    "copy": lambda x: x,
    "square": np.square,
    "sigmoid": _sigmoid,
    "relu": UNARY["relu"],
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "softplus": _softplus,
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "arctan": np.arctan,
    "sqrt": np.sqrt,
    "rsqrt": UNARY["rsqrt"],
    "reciprocal": UNARY["reciprocal"],
    "sign": np.sign,
    "abs": np.abs,
}
# Valid inputs: (least, greatest), or (least, greatest) of the magnitude for reciprocal.
ACTIVATION_RANGES = {
    "log": (2.0**-64, 2.0**64),
    "sin": (-np.pi, np.pi),
    "arctan": (-np.pi / 2, np.pi / 2),
    "sqrt": (2.0**-116, 2.0**118),
    "rsqrt": (2.0**-87, 2.0**97),
    "reciprocal": (2.0**-42, 2.0**42),
}
# Documented, refused when used: trn3 and unary bit operators, further activation functions.
UNMODELLED = (
    "abs_max",
    "abs_min",
    "invert",
    "logical_not",
    "gelu",
    "gelu_dx",
    "gelu_apprx_tanh",
    "gelu_apprx_sigmoid",
    "gelu_apprx_sigmoid_dx",
    "silu_dx",
    "mish",
    "erf",
    "erf_dx",
    "cos",
)

OPERATORS = {
    name: Operator(name)
    for name in (
        *ARITHMETIC,
        *UNARY,
        *BITWISE,
        *ACTIVATIONS,
        *UNMODELLED,
    )
}
