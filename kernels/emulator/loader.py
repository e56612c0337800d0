"""Loading a kernel's source with the emulated modules bound to it.

The source runs with an `__import__` of its own, so `import nki` finds the emulation there and
nowhere else; `sys.modules` is never touched. Files that a kernel imports relatively are loaded
the same way.
"""

import ast
import builtins
import linecache
import types
from pathlib import Path

from .errors import EmulatorError, LanguageError, NotModelledError
from .modules import MODULES, Kernel

_KERNELS = Path(__file__).resolve().parent.parent


class Source:
    """The text of a kernel file and of the sibling files that it imports."""

    def __init__(self, path: Path, text: str):
        self.path = path
        self.text = text
        self.tree = ast.parse(text, filename=str(path))
        self.imports: dict[str, Source] = {}  # by relative name, dots included
        self.checked: set[tuple[tuple[int, int], str]] = set()  # language checks passed
        # Tracebacks show the lines of sources that are no files, too.
        linecache.cache[str(path)] = (len(text), None, text.splitlines(True), str(path))

    def files(self) -> set[str]:
        """Paths of this file and, recursively, of those it imports relatively."""
        return {str(self.path)}.union(*(source.files() for source in self.imports.values()))


def load(source, name: str, texts: dict[str, str] | None = None) -> Kernel:
    """The kernel `name` of a Python file (a path), or of a module of ours ("nki_fused").

    A string with a newline is taken as the source text itself, as of a file next to our kernels.
    `texts` gives other text for modules, by name, than their files have (for mutation tests). The
    result is for `emulator.simulate`; it is never importable, and `nki` stays as it was.
    """
    texts = texts or {}
    if isinstance(source, str) and "\n" in source:
        path, text = _KERNELS / "<kernel>", source
    else:
        path = Path(source)
        if path.suffix != ".py" and not path.is_file():
            path = _KERNELS / f"{path}.py"
        text = _text(path, texts)
    module = _execute(path, text, {}, texts)
    if name not in vars(module):
        raise EmulatorError(f"{path} defines no {name}")
    kernel = getattr(module, name)
    if not isinstance(kernel, Kernel):
        raise EmulatorError(f"{name} of {path} is not an @nki.jit kernel")
    return kernel


def _text(path: Path, texts) -> str:
    return texts[path.stem] if path.stem in texts else path.read_text()


def _execute(path: Path, text: str, loaded: dict, texts: dict) -> types.ModuleType:
    source = Source(path, text)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    loaded[path] = module
    module.__emulated_source__ = source

    def importer(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0 and (name == "nki" or name.startswith("nki.")):
            if name not in MODULES:
                raise NotModelledError(f"module {name} is not modelled by this emulator")
            return MODULES[name] if fromlist else MODULES["nki"]
        if level == 0 and name.split(".")[0] == "neuronxcc":
            raise LanguageError("namespace", f"{path.name} imports {name}; use nki")
        if level == 0:
            return builtins.__import__(name, globals, locals, fromlist, level)
        if name:
            return _relative(source, level, name, loaded, texts)
        parts = {part: _relative(source, level, part, loaded, texts) for part in fromlist}
        return types.SimpleNamespace(**parts)

    scope = vars(module)
    scope["__builtins__"] = {**vars(builtins), "__import__": importer}
    exec(compile(source.tree, str(path), "exec"), scope)
    for value in scope.values():
        if isinstance(value, Kernel) and value.source is None:
            value.source = source
    return module


def _relative(source: Source, level: int, name: str, loaded: dict, texts: dict):
    """The module that `from <level dots><name> import …` means in `source`."""
    folder = source.path.parents[level - 1]
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    if path not in loaded:
        if not path.is_file():
            raise EmulatorError(f"{source.path} imports {'.' * level}{name}: there is no {path}")
        _execute(path, _text(path, texts), loaded, texts)
    source.imports["." * level + name] = loaded[path].__emulated_source__
    return loaded[path]
