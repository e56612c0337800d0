"""Compile a function of tensors once per signature, then only run the compiled graph.

torch-xla traces lazily: each operation on an XLA tensor is recorded, and tracing a decode step
again for every token costs more than running it. `jit` traces a function once for each signature
of its arguments, keeps the hash under which torch-xla stores the compiled graph, and runs that
graph directly from then on. This is the mechanism behind torch-xla's dynamo bridge, applied to
plain functions over pytrees.

This module (with `devices`) is the only part of the model code that knows torch-xla.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree

from . import pytree
from .devices import xla


class CompileEvent(NamedTuple):
    """What `progress` receives: `phase` is "trace", then "compile", then "done" (or "failed")."""

    name: str
    signature: str
    phase: str
    seconds: float  # since the start of this compilation


class _Unusable(torch.Tensor):
    """A tensor that has lost its value. jit assigns such a class; any use raises RuntimeError."""

    reason: str

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        reasons = [kind.reason for kind in types if issubclass(kind, _Unusable)]
        raise RuntimeError(f"this tensor has no value: {reasons[0]}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} tensor>"


class Donated(_Unusable):
    reason = (
        "it was donated to a jit-compiled function, which has reused its memory; "
        "use the function's result, or leave the argument out of donate="
    )


class Escaped(_Unusable):
    reason = (
        "it was computed while jit traced a function and has escaped from there; "
        "return it from the function instead"
    )


_UNUSABLE = frozenset((Donated, Escaped))


class _Tracing(threading.local):
    active = False


_tracing = _Tracing()
_trace_lock = threading.RLock()


def jit(
    function: Callable,
    *,
    donate: Sequence[str] = (),
    cache_dir: str | None = None,
    progress: Callable[[CompileEvent], None] | None = None,
) -> Jitted:
    """Return `function`, compiled by XLA once per signature of its arguments.

    Arguments and results are pytrees. Tensors in the arguments must be on the XLA device
    (`device_put`); everything else in them is static: the function is compiled once per value.
    The signature is the trees' structure and static content, and each tensor's shape, dtype and
    device. Positional, keyword and default arguments that bind alike share one compilation.

    `function` must be pure. It runs once per signature, on symbolic values: what it reads from
    its closure (tensors too) is fixed then, as are non-tensor results. It must not modify an
    argument in place or read a tensor's value (`item()`, `bool()`, printing); both raise. A call
    of a jitted function inside another one is traced as part of the outer one. Random numbers
    differ from call to call and follow `torch_xla.manual_seed`. Results do not track gradients:
    an argument that requires them is a ValueError while grad mode is on (differentiate inside).

    Args:
        donate: names of parameters whose tensors the call consumes, so that results can reuse
            their memory. Any later use of such a tensor raises RuntimeError. Aliases of it (views,
            `detach()`) lose their memory too. A frozen tree (`register_frozen`) can't be donated.
        cache_dir: directory of a compilation cache that outlives the process, where the platform
            can read it back; it has to be given before the process compiles anything, and is one
            for the whole process. XLA:CPU of torch-xla 2.9 writes executables that it can't
            deserialise, so on the CPU this has no effect; Neuron's compiler keeps its own cache
            (NEURON_COMPILE_CACHE_URL) besides.
        progress: called with a `CompileEvent` before tracing, before compiling, and at the end.

    Raises ValueError for a name in `donate` that is no parameter; calls raise ValueError for a
    tensor that is not on the XLA device (naming its path), an argument that can't be hashed, or a
    donated tensor that is also passed elsewhere, and RuntimeError for a donated tensor.
    """
    return Jitted(function, (donate,) if isinstance(donate, str) else donate, cache_dir, progress)


class Jitted:
    """What `jit` returns: call it like the function itself.

    `compile_count` is the number of compilations so far, `signatures` one readable line for each.
    """

    def __init__(self, function, donate, cache_dir, progress):
        functools.update_wrapper(self, function)
        self._function = function
        self._name = getattr(function, "__qualname__", type(function).__name__)
        try:
            self._signature = inspect.signature(function)
        except ValueError:  # a builtin that does not tell its parameters
            self._signature = inspect.signature(lambda *args, **kwargs: None)
        self._parameters = tuple(self._signature.parameters)
        unknown = [name for name in donate if name not in self._parameters]
        if unknown:
            raise ValueError(
                f"donate names {', '.join(map(repr, unknown))}, but the parameters of "
                f"{self._name} are {', '.join(self._parameters) or 'none'}"
            )
        self._donate = frozenset(donate)
        if cache_dir is not None:
            _initialize_cache(cache_dir)
        self._progress = progress
        self._graphs: dict[tuple, _Graph] = {}
        kinds = {p.kind for p in self._signature.parameters.values()}
        self._positional_only = kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}

    @property
    def compile_count(self) -> int:
        return len(self._graphs)

    @property
    def signatures(self) -> list[str]:
        return [graph.signature for graph in self._graphs.values()]

    def __call__(self, *args, **kwargs):
        if _tracing.active:
            return self._function(*args, **kwargs)
        values = self._bind(args, kwargs)
        leaves, key, frozen = self._flatten(values)
        graph = self._graphs.get(key)
        if graph is None:
            with _trace_lock:
                graph = self._graphs.get(key)
                if graph is None:
                    graph = self._compile(values, leaves, frozen)
                    self._graphs[key] = graph
        if graph.needs_no_grad and torch.is_grad_enabled():
            self._refuse_gradients(values)
        return graph.run(leaves, frozen)

    def lower(self, *args, **kwargs) -> str:
        """Return the HLO text of the graph for these arguments, without compiling or running it.

        The text starts with "HloModule". Donation does not show in it.
        """
        if _tracing.active:
            raise RuntimeError(f"{self._name}.lower() can't be called inside a traced function")
        values = self._bind(args, kwargs)
        leaves, _, frozen = self._flatten(values)
        with _trace_lock, _Trace(self, values, leaves, frozen) as trace:
            return xla()._XLAC._get_xla_tensors_hlo(trace.outputs)

    def _bind(self, args: tuple, kwargs: dict) -> tuple:
        """Return one value per parameter, defaults filled in."""
        if not kwargs and self._positional_only and len(args) == len(self._parameters):
            return args
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(bound.arguments.values())

    def _flatten(self, values: tuple) -> tuple[list, tuple, list]:
        leaves: list[torch.Tensor] = []
        key: list = []
        frozen: list[tuple[int, pytree.FlatTree]] = []
        try:
            for value in values:
                pytree.flatten(value, leaves, key, frozen)
        except pytree.NotHashable as error:
            value = error.value
            path = self._path_of(values, lambda leaf: leaf is value)
            raise ValueError(f"{self._name}: argument {path}: {error}") from None
        if not _UNUSABLE.isdisjoint(map(type, leaves)):
            path, kind = next(
                (path, type(leaf))
                for path, leaf in self._named_leaves(values)
                if type(leaf) in _UNUSABLE
            )
            raise RuntimeError(f"{self._name}: argument {path} has no value: {kind.reason}")
        if xla().runtime.is_spmd():
            key += _shardings(leaves, frozen)
        return leaves, tuple(key), frozen

    def _refuse_gradients(self, values: tuple) -> None:
        path = self._path_of(values, lambda x: isinstance(x, torch.Tensor) and x.requires_grad)
        raise ValueError(
            f"{self._name}: argument {path} requires gradients, which do not pass through jit: "
            "call it under torch.no_grad(), or differentiate inside the function"
        )

    def _named_leaves(self, values: tuple):
        for name, value in zip(self._parameters, values, strict=True):
            yield from pytree.named_leaves(value, name)

    def _path_of(self, values: tuple, wanted: Callable[[Any], bool]) -> str:
        return next((path for path, leaf in self._named_leaves(values) if wanted(leaf)), "?")

    def _compile(self, values: tuple, leaves: list, frozen: list) -> _Graph:
        start = time.perf_counter()
        described = ", ".join(
            f"{name}={pytree.describe(value)}"
            for name, value in zip(self._parameters, values, strict=True)
        )
        signature = f"{self._name}({described})"

        def report(phase: str) -> None:
            if self._progress is not None:
                event = CompileEvent(self._name, signature, phase, time.perf_counter() - start)
                self._progress(event)

        try:
            report("trace")
            with _Trace(self, values, leaves, frozen) as trace:
                report("compile")
                graph = trace.compile(signature)
        except BaseException:
            report("failed")
            raise
        report("done")
        return graph


class _Graph:
    """A compiled graph and how to get from a call's leaves to its inputs and to the result."""

    __slots__ = (
        "_constants",
        "_donated",
        "_hash",
        "_inputs",
        "_kept",
        "_name",
        "_results",
        "_retired",
        "_seed",
        "_spec",
        "_statics",
        "needs_no_grad",
        "signature",
    )

    def __init__(self, trace: _Trace, graph_hash: bytes, signature: str):
        self.signature = signature
        self._name = trace.name
        self._hash = graph_hash
        self._constants = trace.constants
        self._inputs = _picker(trace.input_order)
        self._seed = trace.seed_position
        self._donated = _picker(trace.donated)
        self._kept = _picker(trace.kept)
        self._statics = trace.statics
        self._results = _picker(trace.result_order)
        self._retired: tuple[torch.Tensor, ...] = ()
        self._spec = trace.spec
        self.needs_no_grad = trace.needs_no_grad

    def run(self, leaves: list[torch.Tensor], frozen: list[tuple[int, pytree.FlatTree]]) -> Any:
        core = xla()._XLAC
        donated = self._donated(leaves)
        loose = donated + self._kept(leaves)
        if donated:
            _run_pending()  # what is still to be computed from a donated tensor needs it now
        else:
            _materialize(loose)
        for _, flat in frozen:
            if not flat.ready:
                _materialize(flat.leaves)
                flat.ready = True
        _check_alive(self._name, loose)
        if donated:
            self._check_distinct(donated, loose, frozen)
        inputs = self._inputs(leaves + self._constants)
        if self._seed is not None:
            inputs = list(inputs)
            inputs[self._seed] = _next_seed()
        outputs = core._run_cached_graph(self._hash, inputs) if self._hash is not None else []
        for tensor in donated:
            tensor.__class__ = Donated
        # Releasing a donated tensor blocks, with the interpreter's lock held, until the graph
        # that consumes it has run. By the next call that is over.
        self._retired = donated
        return _pytree.tree_unflatten(self._results(leaves + self._statics + outputs), self._spec)

    def _check_distinct(self, donated, loose, frozen) -> None:
        handles = xla()._XLAC._get_tensors_handle(loose)
        shared = len(set(handles)) < len(handles) and not set(handles[: len(donated)]).isdisjoint(
            handle for handle, count in Counter(handles).items() if count > 1
        )
        identities = set(map(id, donated))
        if shared or not all(identities.isdisjoint(flat.ids) for _, flat in frozen):
            raise ValueError(
                f"{self._name}: a donated tensor appears twice in the arguments; "
                "a tensor that is donated must be passed once"
            )


class _Trace:
    """One run of a function on symbolic values; a context manager, which leaves nothing pending.

    `outputs` are the symbolic tensors to compute. The other attributes are `_Graph`'s.
    """

    def __init__(self, jitted: Jitted, values: tuple, leaves: list, frozen: list):
        self.name = jitted._name
        self._jitted = jitted
        self._values = values
        self._leaves = leaves
        self.needs_no_grad = any(leaf.requires_grad for leaf in leaves)
        self._frozen = {
            start + offset for start, flat in frozen for offset in range(len(flat.leaves))
        }

    def __enter__(self) -> _Trace:
        self._check_arguments()
        # Clearing pending computations at the end would take the caller's too: run them first.
        _run_pending()
        _check_alive(self.name, self._leaves)
        self._seed = xla()._XLAC._xla_get_rng_seed()
        try:
            self._trace()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.outputs = self._stand_ins = None
        core = xla()._XLAC
        device = str(xla().device())
        if True in core._check_device_tensor_need_materialization(device):
            # The function has stored a traced tensor somewhere (or raised, and the traceback
            # holds its local variables). torch-xla crashes on a tensor that is cleared and used.
            for candidate in gc.get_objects():
                if issubclass(type(candidate), torch.Tensor) and _is_pending(candidate):
                    candidate.__class__ = Escaped
            core._clear_pending_irs(device)
        core._xla_set_rng_seed(self._seed)  # compiling must not change the random sequence

    def _check_arguments(self) -> None:
        jitted = self._jitted
        self.donated, self.kept = [], []
        index = 0
        for name, value in zip(jitted._parameters, self._values, strict=True):
            for path, leaf in pytree.named_leaves(value, name):
                if not isinstance(leaf, torch.Tensor):
                    continue
                if leaf.device.type != "xla":
                    raise ValueError(
                        f"{self.name}: argument {path} is on {leaf.device}, but jit runs on the "
                        'XLA device: use device_put(tree, "xla")'
                    )
                if leaf.requires_grad and torch.is_grad_enabled():
                    jitted._refuse_gradients(self._values)
                if name in jitted._donate and index in self._frozen:
                    raise ValueError(f"{self.name}: {path} is part of a frozen tree: not donated")
                if name in jitted._donate:
                    self.donated.append(index)
                elif index not in self._frozen:
                    self.kept.append(index)
                index += 1

    def _trace(self) -> None:
        core = xla()._XLAC
        self._make_stand_ins()
        handles = core._get_tensors_handle(self._stand_ins)
        remaining = iter(self._stand_ins)
        traced = pytree.map_tensors(lambda _: next(remaining), self._values)
        arguments = dict(zip(self._jitted._parameters, traced, strict=True))
        bound = inspect.BoundArguments(self._jitted._signature, arguments)
        reads = _count_reads()
        scalars = core._get_xla_all_numbers_special_scalars()
        core._set_xla_all_numbers_special_scalars(True)  # Python numbers become HLO constants
        _tracing.active = True
        try:
            result = self._jitted._function(*bound.args, **bound.kwargs)
        finally:
            _tracing.active = False
            core._set_xla_all_numbers_special_scalars(scalars)
        self._check_unmodified(handles)
        if _count_reads() != reads:
            raise RuntimeError(
                f"{self.name} reads the value of a tensor while it is traced (item(), bool(), "
                "int(), cpu(), printing, or an operation that XLA lacks): a compiled function "
                "can't depend on values"
            )
        self._arrange_results(result, handles)
        self._find_inputs(handles)

    def _make_stand_ins(self) -> None:
        """Wrap the leaves' device data in new tensors, for the function to be traced on.

        The caller's tensors thus stay as they are, whatever the function does. Leaves that share
        their data get copies: in the graph, each leaf is an input of its own.
        """
        core = xla()._XLAC
        _, wrapped = core._get_tensors_xla_device_data_node(self._leaves)
        by_handle = dict(zip(core._get_tensors_handle(list(wrapped)), wrapped, strict=True))
        handles = core._get_tensors_handle(self._leaves)
        stand_ins = [by_handle.pop(handle, None) for handle in handles]
        copies = {i: _identity(t) for i, t in enumerate(self._leaves) if stand_ins[i] is None}
        _materialize(list(copies.values()))
        self._stand_ins = [copies.get(i, t) for i, t in enumerate(stand_ins)]

    def _check_unmodified(self, handles: list[int]) -> None:
        core = xla()._XLAC
        pending = core._check_tensor_need_materialization(self._stand_ins)
        tensor_paths = (
            path
            for path, leaf in self._jitted._named_leaves(self._values)
            if isinstance(leaf, torch.Tensor)
        )
        for path, tensor, changed, handle in zip(
            tensor_paths, self._stand_ins, pending, handles, strict=True
        ):
            if changed or core._get_tensors_handle([tensor])[0] != handle:
                raise ValueError(
                    f"{self.name} modifies its argument {path} in place: return the new value"
                )

    def _arrange_results(self, result: Any, handles: list[int]) -> None:
        """Decide for each leaf of the result where it comes from: graph, argument or constant."""
        core = xla()._XLAC
        flat, self.spec = _pytree.tree_flatten(result)
        shareable = {handles[index]: index for index in self._frozen}
        self.outputs, self.statics = [], []
        order: list[tuple[str, int]] = []
        seen = set()
        for leaf in flat:
            if not isinstance(leaf, torch.Tensor):
                order.append(("static", len(self.statics)))
                self.statics.append(leaf)
                continue
            if leaf.device.type != "xla":
                raise ValueError(
                    f"{self.name} returns a tensor on {leaf.device}: results have to be on the "
                    "XLA device"
                )
            if not core._check_tensor_need_materialization([leaf])[0]:
                index = shareable.get(core._get_tensors_handle([leaf])[0])
                if index is not None:
                    order.append(("leaf", index))
                    continue
                # Any other argument or constant comes back as a copy, so that donating the
                # result later can't destroy the original.
                leaf = _identity(leaf)
            elif core._unique_id_for_ir_and_data(leaf) in seen:
                leaf = _identity(leaf)
            seen.add(core._unique_id_for_ir_and_data(leaf))
            order.append(("output", len(self.outputs)))
            self.outputs.append(leaf)
        # A run picks its results from leaves + statics + the graph's outputs.
        offset = {"leaf": 0, "static": len(self._leaves)}
        offset["output"] = len(self._leaves) + len(self.statics)
        self.result_order = [offset[kind] + index for kind, index in order]

    def _find_inputs(self, handles: list[int]) -> None:
        """Tell the graph's inputs apart: leaves, constants (kept here), the random seed."""
        core = xla()._XLAC
        leaf_of = {handle: index for index, handle in enumerate(handles)}
        self.constants, self.input_order, self.seed_position = [], [], None
        if not self.outputs:
            return
        identities, values = core._get_tensors_xla_device_data_node(self.outputs)
        input_handles = core._get_tensors_handle(list(values))
        for identity, value, handle in zip(identities, values, input_handles, strict=True):
            index = leaf_of.get(handle)
            if index is None:
                if identity == core._get_seed_info_id():
                    self.seed_position = len(self.input_order)
                index = len(self._leaves) + len(self.constants)
                self.constants.append(value)
            self.input_order.append(index)
        # A captured tensor may be modified in place later, which frees the memory it has now.
        self.constants = [_identity(value) for value in self.constants]
        _materialize(self.constants)

    def compile(self, signature: str) -> _Graph:
        from torch_xla.utils.buffer_donor_context import alias_with_buffer_donor_config

        core = xla()._XLAC
        if not self.outputs:
            return _Graph(self, None, signature)
        donated = [self._stand_ins[index] for index in self.donated]
        for tensor in donated:
            core._set_buffer_donation(tensor, True)
        outputs = self.outputs + _salt(self.outputs)
        try:
            with alias_with_buffer_donor_config():
                graph_hash = core._get_graph_hash(outputs)
                core._xla_warm_up_cache(outputs, [])
        finally:
            # The mark sits on the data itself, which the caller's tensor shares.
            for tensor in donated:
                core._set_buffer_donation(tensor, False)
        return _Graph(self, graph_hash, signature)


@functools.cache
def _initialize_cache(directory: str) -> None:
    """Let torch-xla keep compiled graphs in `directory`, unless the platform is the CPU."""
    torch_xla = xla()
    if torch_xla.runtime.device_type() == "CPU":
        return
    if torch_xla._XLAC._xla_computation_cache_is_initialized():
        raise RuntimeError(
            f"cache_dir={directory!r} comes too late: this process has compiled already, or "
            "uses another cache directory"
        )
    torch_xla.runtime.initialize_cache(directory)


def _picker(indices: Sequence[int]) -> Callable[[Sequence], tuple]:
    """Return a function that picks these elements of a sequence, as a tuple."""
    if len(indices) == 1:
        (index,) = indices
        return lambda sequence: (sequence[index],)
    return itemgetter(*indices) if indices else lambda sequence: ()


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that the graph computes, equal to `tensor` (`clone` would share its data)."""
    return tensor.permute(tuple(range(tensor.dim())))


def _salt(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return one more output for a graph with custom calls, a constant that tells it from others.

    torch-xla's graph hash ignores a custom call's backend_config and attributes, so that two
    graphs whose kernels differ only there would share one executable. The constant is built,
    from 0 and 1, along the binary digits of a digest of the HLO text, and so changes the hash.
    """
    core = xla()._XLAC
    if "xla::custom_call" not in core._get_xla_tensors_text(outputs):
        return []
    text = core._get_xla_tensors_hlo(outputs)
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    one = torch.ones((), dtype=torch.int32, device=outputs[0].device)
    value = torch.zeros_like(one)
    for digit in f"{digest:b}":
        value = value + value + one if digit == "1" else value + value
    return [value]


def _check_alive(name: str, tensors: Sequence[torch.Tensor]) -> None:
    """Wait for the graph in flight, then raise RuntimeError if a tensor has no value by now."""
    core = xla()._XLAC
    # Running a graph waits as well, but unlike this it keeps the interpreter's lock meanwhile.
    core._xla_wait_device_ops([])
    if True in map(core._is_placecholder, tensors):
        raise RuntimeError(
            f"{name}: an argument has lost its value: it shares memory with a tensor that was "
            "donated, or its computation failed"
        )


def _shardings(leaves: list[torch.Tensor], frozen: list[tuple[int, pytree.FlatTree]]) -> list[str]:
    """Return what tells how the leaves are split over the devices; frozen trees are asked once."""
    core = xla()._XLAC
    trees = [flat for _, flat in frozen]
    for flat in trees:
        if flat.sharding is None:
            flat.sharding = " ".join(core._get_xla_sharding_specs(flat.leaves))
    loose = [
        leaf for leaf in leaves if leaf.is_xla and not any(id(leaf) in flat.ids for flat in trees)
    ]
    return [*(flat.sharding for flat in trees), *core._get_xla_sharding_specs(loose)]


def _materialize(tensors: Sequence[torch.Tensor]) -> None:
    """Run the pending computations of `tensors`: a compiled graph takes data only."""
    core = xla()._XLAC
    needed = core._check_tensor_need_materialization(tensors)
    if True in needed:
        pending = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
        core._xla_sync_multi(pending, devices=[], wait=True, sync_xla_data=True)


def _is_pending(tensor: torch.Tensor) -> bool:
    if isinstance(tensor, _Unusable) or tensor.device.type != "xla":
        return False
    return xla()._XLAC._check_tensor_need_materialization([tensor])[0]


def _run_pending() -> None:
    """Run every pending computation of the process."""
    torch_xla = xla()
    core = torch_xla._XLAC
    device = str(torch_xla.device())
    try:
        pending = True in core._check_device_tensor_need_materialization(device)
    except RuntimeError:  # some tensor has lost its value in an operation that failed
        pending = True
    if pending:
        core._xla_sync_live_tensors(device, devices=[], wait=True)


def _count_reads() -> int:
    """Return how often this process has copied device data to the host."""
    metric = xla()._XLAC._xla_metric_data("TransferFromDeviceTime")
    return metric[0] if metric is not None else 0


def _next_seed() -> torch.Tensor:
    """Return the device's random seed and advance it, as a sync of torch-xla does."""
    torch_xla = xla()
    core = torch_xla._XLAC
    device = str(torch_xla.device())
    seed = core._get_base_seed_as_tensor(device)
    following = (1012031 + core._xla_get_rng_seed(device) * 7012063) % 2**64
    core._xla_set_rng_seed(following, device)
    return seed
