"""Compile a function of tensors once per signature, then only run the compiled graph.

torch-xla traces lazily: each operation on an XLA tensor is recorded, and tracing a decode step
again for every token costs more than running it. `jit` traces a function once for each signature
of its arguments, keeps the hash under which torch-xla stores the compiled graph, and runs that
graph directly from then on. This is the mechanism behind torch-xla's dynamo bridge, applied to
plain functions over pytrees.

What is here is of any backend: signatures, the graphs by signature, errors and reports. Tracing,
compiling and running are a backend's own: torch-xla's in `tracing`, `staged` and `executable`,
those of torch.compile in `dynamo`.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import trees
from .backends import Backend, Graph
from .chains import CannotCut
from .devices import explained, on_xla_cpu, release_host_memory, reuse_host_memory
from .executable import Executable, initialize_cache
from .observers import CompileEvent, announce, on_compile
from .staged import Xla
from .target import Target
from .turns import check_process, tracing_here, turn
from .unusable import UNUSABLE


def jit(
    function: Callable,
    *,
    donate: Sequence[str] = (),
    backend: str | None = None,
    cache_dir: str | None = None,
    progress: Callable[[CompileEvent], None] | None = None,
) -> Jitted:
    """Return `function`, compiled by XLA or torch.compile once per signature of its arguments.

    Arguments and results are pytrees. Tensors in the arguments must be on the backend's device
    (`device_put`); everything else in them is static: the function is compiled once per value.
    The signature is the trees' structure and static content, and each tensor's shape, dtype and
    device; for torch.compile its strides, too. Positional, keyword and default arguments that bind
    alike share one compilation.

    `function` must be pure. It runs on symbolic values when a signature is compiled, and not
    again: what it reads from its closure (tensors too) is fixed then, as are non-tensor results.
    It must not modify an argument in place or read a tensor's value (`item()`, `bool()`,
    printing); both raise. A call of a jitted function inside another one is traced as part of the
    outer one. Random numbers differ from call to call and follow `torch_xla.manual_seed`, or
    `torch.manual_seed` under torch.compile. Results do not track gradients: an argument that
    requires them is a ValueError while grad mode is on (differentiate inside, which torch.compile
    can't). Calls from several threads take turns, with each other and with `device_put`,
    `init_state`, …; a thread's own operations on XLA tensors have to wait while another calls.

    Args:
        donate: names of parameters whose tensors the call consumes, so that results can reuse
            their memory. Any later use of such a tensor raises RuntimeError. Aliases of it lose
            their memory too, and so do its copies by `clone()`, `copy.deepcopy` or `copy_`, which
            share it on XLA: what jit returns does not, so that `jit(lambda tree: tree)` copies.
            Under torch.compile, which reuses no memory, all these keep it, and it is free when
            they are gone. A frozen tree (`register_frozen`) can't be donated.
        backend: None is XLA, for tensors on the XLA device. Else the name of one of torch.compile's
            (`torch.compiler.list_backends()`): "inductor" and "aot_eager" for tensors on the CPU,
            "openxla" for the XLA device, "neuron" for TorchNeuron's device "neuron". The function
            is one graph (`fullgraph=True`) of static shapes (`dynamic=False`).
        cache_dir: directory of a compilation cache that outlives the process, where the platform
            can read it back; it has to be given before the process compiles anything, and is one
            for the whole process. XLA:CPU of torch-xla 2.9 writes executables that it can't
            deserialise, so on the CPU this has no effect; Neuron's compiler keeps its own cache
            (NEURON_COMPILE_CACHE_URL) besides.
        progress: an observer of this function's compilations alone, see `on_compile`.

    Raises ValueError for a name in `donate` that is no parameter, or a backend that is not there;
    calls raise ValueError for a tensor that is not on the backend's device (naming its path), an
    argument that can't be hashed, or a donated tensor that is also passed elsewhere, and
    RuntimeError for a donated tensor, a function that torch.compile can't take as one graph, or in
    a process that was forked from one that uses XLA.
    """
    names = (donate,) if isinstance(donate, str) else donate
    return Jitted(function, names, backend, cache_dir, progress)


class Jitted:
    """What `jit` returns: call it like the function itself."""

    def __init__(
        self,
        function: Callable,
        donate: Sequence[str],
        backend: str | None = None,
        cache_dir: str | None = None,
        progress: Callable[[CompileEvent], None] | None = None,
    ):
        functools.update_wrapper(self, function)
        try:
            signature = inspect.signature(function)
        except ValueError:  # a builtin that does not tell its parameters
            signature = inspect.signature(lambda *args, **kwargs: None)
        name = getattr(function, "__qualname__", type(function).__name__)
        unknown = [parameter for parameter in donate if parameter not in signature.parameters]
        if unknown:
            raise ValueError(
                f"donate names {', '.join(map(repr, unknown))}, but the parameters of "
                f"{name} are {', '.join(signature.parameters) or 'none'}"
            )
        self._target = Target(function, name, signature, frozenset(donate))
        self._backend = _backend(backend)
        self._uses_xla = isinstance(self._backend, Xla) or backend == "openxla"
        if cache_dir is not None:
            if backend is not None:
                raise ValueError(f"cache_dir is XLA's: backend {backend!r} has a cache of its own")
            initialize_cache(cache_dir)
        self._progress = progress
        self._graphs: dict[tuple, Graph] = {}
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        plain = kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}
        # How many positional arguments need no binding, because they are all there is.
        self._complete = len(signature.parameters) if plain else None

    @property
    def compile_count(self) -> int:
        """The number of compilations so far."""
        return len(self._graphs)

    @property
    def signatures(self) -> list[str]:
        """One readable line for each compilation."""
        return [graph.signature for graph in self._graphs.values()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or tracing_here.active:
            return self._target.function(*args, **kwargs)
        values = self._bind(args, kwargs)
        if self._uses_xla:
            check_process()
        with turn:
            try:
                leaves, key, frozen = self._flatten(values)
                graph = self._graph(values, leaves, key, frozen)
                if graph.needs_no_grad and torch.is_grad_enabled():
                    self._target.refuse_gradients(values)
                return graph(leaves, frozen)
            except RuntimeError as error:
                ours = explained(self._target.name, error)
                if ours is error:  # with its cause and context
                    raise
                raise ours from error

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile for these arguments, unless that has been done, without running: no argument is
        consumed, and the values of tensors do not matter."""
        values = self._bind(args, kwargs)
        if self._uses_xla:
            check_process()
        with turn:
            leaves, key, frozen = self._flatten(values)
            self._graph(values, leaves, key, frozen)

    def _graph(
        self, values: tuple, leaves: list[torch.Tensor], key: tuple, frozen: trees.FrozenTrees
    ) -> Graph:
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._compile(values, leaves, frozen)
        return graph

    def lower(self, *args: Any, **kwargs: Any) -> str:
        """Return the text of the graph for these arguments, without compiling or running it.

        It is HLO, which starts with "HloModule"; of torch.compile, the FX graph as Python code.
        Donation does not show in it.
        """
        if tracing_here.active:
            raise RuntimeError(
                f"{self._target.name}.lower() can't be called inside a traced function"
            )
        values = self._bind(args, kwargs)
        if self._uses_xla:
            check_process()
        with turn:
            leaves, _, frozen = self._flatten(values)
            return self._backend.lower(self._target, values, leaves, frozen)

    def _bind(self, args: tuple, kwargs: dict) -> tuple:
        """Return one value per parameter, defaults filled in."""
        if not kwargs and len(args) == self._complete:
            return args
        bound = self._target.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    def _flatten(self, values: tuple) -> tuple[list[torch.Tensor], tuple, trees.FrozenTrees]:
        """Return the tensors of the arguments, the key of their graph, and the frozen trees."""
        leaves: list[torch.Tensor] = []
        key: list = []
        frozen: trees.FrozenTrees = []
        try:
            for value in values:
                trees.flatten(value, leaves, key, frozen)
        except trees.NotHashable as error:
            value = error.value
            path = self._target.path_of(values, lambda leaf: leaf is value)
            raise ValueError(f"{self._target.name}: argument {path}: {error}") from None
        if not UNUSABLE.isdisjoint(map(type, leaves)):
            path, kind = next(
                (path, type(leaf))
                for path, leaf in self._target.named_leaves(values)
                if type(leaf) in UNUSABLE
            )
            raise RuntimeError(f"{self._target.name}: argument {path} has no value: {kind.reason}")
        key += self._backend.placements(leaves, frozen)
        return leaves, tuple(key), frozen

    def _compile(
        self, values: tuple, leaves: list[torch.Tensor], frozen: trees.FrozenTrees
    ) -> Graph:
        start = time.perf_counter()
        described = ", ".join(
            f"{name}={trees.describe(value)}"
            for name, value in zip(self._target.parameters, values, strict=True)
        )
        signature = f"{self._target.name}({described})"

        def report(phase: str) -> None:
            seconds = time.perf_counter() - start - inside.seconds
            announce(CompileEvent(self._target.name, signature, phase, seconds))

        # Runs of layers are compiled inside, and tell of their own seconds.
        with on_compile() as inside, on_compile(self._progress):
            try:
                arguments = (self._target, signature, values, leaves, frozen)
                graph = self._backend.compile(*arguments, report)
            except BaseException:
                report("failed")
                raise
            release_host_memory()  # tracing and compiling leave a heap of hundreds of MB
            if self._uses_xla and on_xla_cpu():
                reuse_host_memory()
            report("done")
        return graph


def _backend(name: str | None) -> Backend:
    """Return XLA for None, else what torch.compile knows by this name."""
    if name is None:
        return Xla(_graph_of)
    from .dynamo import TorchCompile  # importing TorchDynamo takes seconds

    return TorchCompile(name)


def _graph_of(body: Callable[..., Any], donates: bool, values: tuple) -> Executable:
    """Return the graph of a chain's body for these arguments, compiled unless it has been."""
    jitted = _jitted_body(body, donates)
    graph = jitted._graph(values, *jitted._flatten(values))
    if not isinstance(graph, Executable):
        raise CannotCut("a run of it has runs of its own")
    return graph


@functools.cache
def _jitted_body(body: Callable[..., Any], donates: bool) -> Jitted:
    """Return the graphs of a body, which all functions share that run it."""
    *_, state = inspect.signature(body).parameters
    return Jitted(body, (state,) if donates else ())
