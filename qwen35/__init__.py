"""Qwen3.5 (gated DeltaNet + GQA hybrids) as pure functions over explicit pytrees, on torch-xla.

The public names are those of `public`, and the first one that is used imports them all, and torch
with them (PEP 562). So `import qwen35` itself costs nothing, nor does a command that only says what
its options are.
"""

from .version import __version__ as __version__

TYPE_CHECKING = False  # to type checkers true, as typing's is, which takes 10 ms to import
if TYPE_CHECKING:
    from .public import *  # noqa: F403 - the list is there
else:

    def __getattr__(name: str) -> object:
        if name.startswith("_") and name != "__all__":  # Python asks for many that nobody has
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _import_public()
        try:
            return globals()[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None

    def __dir__() -> list[str]:
        _import_public()
        return sorted(globals())

    def _import_public() -> None:
        """Puts the public names here. The packages below come with them: `qwen35.model.config`."""
        import importlib

        from .xla.importing import collection_paused

        with collection_paused():
            public = importlib.import_module(".public", __name__)
        globals().update({name: getattr(public, name) for name in public.__all__})
        globals()["__all__"] = public.__all__
