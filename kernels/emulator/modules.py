"""The emulated modules `nki`, `nki.language`, `nki.isa` and others as kernels see them.

They are plain module objects that never enter `sys.modules`: the loader hands them to a kernel's
`import` statements directly.
"""

import sys
import types

from . import (  # noqa: F401  (they register their instructions and methods)
    isa_dma,
    isa_gpsimd,
    isa_reduce,
    isa_registers,
    isa_scalar,
    isa_tensor,
    isa_vector,
    views,
)
from .dtypes import DTYPES, UNMODELLED
from .enums import ENGINE_ALIASES, ENUMS, nc_version
from .errors import EmulatorError, NotModelledError, SignatureError
from .frontend import check_language
from .language import BUFFERS, FUNCTIONS, NKIObject, TileSize
from .operators import OPERATORS, Operator, Unmodelled
from .registry import INSTRUCTIONS
from .rules import fail
from .running import current, running
from .signatures import EXPERIMENTAL, ISA, LANGUAGE, bind


class Kernel:
    """A function under `@nki.jit`: run it with `emulator.simulate(kernel, …)`."""

    def __init__(self, function):
        self.function = function
        self.lnc = 1
        self.source = None  # set by the loader
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__

    def __getitem__(self, lnc):
        other = Kernel(self.function)
        other.lnc, other.source = lnc, self.source
        return other

    def __call__(self, *args, **kwargs):
        if running():
            fail("kernel-call", f"{self.__name__} is a kernel; kernels call plain functions only")
        raise EmulatorError(f"run {self.__name__} with emulator.simulate({self.__name__}, …)")

    def check_language(self, version):
        """Refuse what NKI's front end of `version` refuses, once per version."""
        key = (version, self.function.__name__)
        if self.source and key not in self.source.checked:
            check_language(self.source, self.function.__name__, version)
            self.source.checked.add(key)

    def files(self):
        """Names of the source files that the kernel consists of."""
        return self.source.files() if self.source else {"<kernel>"}

    def __repr__(self):
        return f"<emulated kernel {self.__name__}>"


def jit(function=None, **options):
    """`nki.jit`. `mode=` is ignored by 0.3 and later; other options are refused."""
    if {"compile_config", "specialization_config"} & set(options):  # of 0.7
        raise NotModelledError(f"nki.jit({', '.join(options)}) is not modelled by this emulator")
    unknown = set(options) - {"mode"}
    if unknown:
        raise SignatureError(f"nki.jit has no options {sorted(unknown)} in NKI 0.3 to 0.7")
    return jit if function is None else Kernel(function)


def _call(module, table, implementations, name):
    """The function `module`.`name`: checks the arguments, then runs its model."""

    def call(*args, **kwargs):
        core = current()
        core.line = sys._getframe(1).f_lineno
        arguments = bind(table, module, name, core.version, args, kwargs)
        implementation = implementations.get(name)
        if implementation is None:
            raise NotModelledError(f"{module}.{name} is not modelled by this emulator")
        return implementation(core, **arguments)

    call.__name__ = name
    return call


class _Module(types.ModuleType):
    """A module whose missing attributes are SignatureErrors with a sentence."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise SignatureError(f"{self.__name__} has no {name} in NKI 0.3 to 0.7")


def _build():
    language = _Module("nki.language")
    vars(language).update(OPERATORS, **DTYPES, **BUFFERS)
    language.bool_ = DTYPES["bool"]
    vars(language).pop("bool", None)
    for name in UNMODELLED:
        setattr(language, name, name)
    language.tile_size = TileSize()
    language.NKIObject = NKIObject
    for name in EXPERIMENTAL:
        vars(language).setdefault(name, Operator(name))
    for name in LANGUAGE:
        setattr(language, name, _call("nki.language", LANGUAGE, FUNCTIONS, name))

    isa, constants = _Module("nki.isa"), _Module("nki.isa.constants")
    for enum in ENUMS:
        setattr(isa, enum.__name__, enum)
        setattr(constants, enum.__name__, enum)
    isa.__path__ = []
    isa.constants = constants
    vars(isa).update(ENGINE_ALIASES)
    for name in ISA:
        setattr(isa, name, _call("nki.isa", ISA, INSTRUCTIONS, name))
    isa.get_nc_version = lambda: nc_version.gen3
    for name in ("NkiScalar", "scalar_load", "scalar_store"):  # of 0.7
        setattr(isa, name, Unmodelled(name))

    typing = _Module("nki.typing")
    typing.tensor = _Annotation()

    nki = _Module("nki")
    nki.__path__ = []
    nki.jit, nki.language, nki.isa, nki.typing = jit, language, isa, typing
    modules = (nki, language, isa, constants, typing)
    return {module.__name__: module for module in modules}


class _Annotation:
    """`nt.tensor[128, 512]` and `nt.tensor` in annotations mean nothing at run time."""

    def __getitem__(self, item):
        return self


MODULES = _build()
