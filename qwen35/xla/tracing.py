"""Trace a function on symbolic values: what `jit` does once per signature."""

from __future__ import annotations

import hashlib
import inspect
import math
from typing import Any

import torch
from torch.utils import _pytree

from . import chains, private, trees
from .devices import (
    all_pending,
    anything_pending,
    check_alive,
    device_name,
    numbers_as_constants,
    run_pending,
    run_pending_of,
)
from .target import Target
from .turns import tracing_here
from .unusable import Escaped


class Trace:
    """One run of a function on symbolic values; a context manager, which leaves nothing pending.

    Args of the constructor are what `trees.flatten` found in `values`, one value per parameter.

    Attributes:
        outputs: the symbolic tensors that the graph has to compute.
        donated, kept: indices of the leaves that are consumed, and of those that are not; leaves
            of frozen trees are in neither.
        constants: tensors that the graph takes besides the leaves.
        input_order: for each input of the graph its index in leaves + constants.
        seed_position: which input is the random seed, or None.
        spec, statics: structure of the result, and its leaves that are not tensors.
        result_order: for each leaf of the result its index in leaves + statics + outputs +
            what is passed (`chains.Passed`).
        needs_no_grad: whether a leaf requires gradients, so that grad mode has to be off.
        body: of the chain at which the trace ended (`chains.stop`), else None. The result is then
            what the chain was called with, and nothing is donated.
    """

    def __init__(
        self,
        target: Target,
        values: tuple,
        leaves: list[torch.Tensor],
        frozen: trees.FrozenTrees,
        answer: chains.Answer | None = None,
        consumed: frozenset[int] = frozenset(),
    ):
        """Args: answer: of the function's calls of `chain`. consumed: indices of leaves that are
        gone when the graph is run: it is refused (`CannotCut`) where it needs one."""
        self._target = target
        self._values = values
        self._leaves = leaves
        self._answer = answer
        self._consumed = consumed
        self.body: chains.Body | None = None
        self.needs_no_grad = any(leaf.requires_grad for leaf in leaves)
        self._frozen = trees.of_frozen(frozen)

    def __enter__(self) -> Trace:
        self._sort_arguments()
        # Clearing pending computations at the end would take the caller's too: run them first.
        run_pending()
        # Those of frozen trees are looked at when they are run with: none is needed to compile.
        loose = [leaf for at, leaf in enumerate(self._leaves) if at not in self._frozen]
        check_alive(self._target.name, loose)
        self._seed = private._xla_get_rng_seed()
        try:
            self._trace()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.outputs = self._stand_ins = None
        if anything_pending():
            # The function has stored a traced tensor somewhere (or raised, and the traceback
            # holds its local variables). torch-xla crashes on a tensor that is cleared and used.
            for tensor in all_pending():
                tensor.__class__ = Escaped
            private._clear_pending_irs(device_name())
        private._xla_set_rng_seed(self._seed)  # compiling must not change the random sequence

    def _sort_arguments(self) -> None:
        """Tell consumed tensors from others; refuse what is not on XLA or requires gradients."""
        target = self._target
        here = 'jit runs on the XLA device: use device_put(tree, "xla")'
        target.check_tensors(self._values, "xla", here)
        donated, kept = target.split_by_donation(self._values, self._frozen)
        self.donated = [index for index in donated if index not in self._consumed]
        self.kept = [index for index in kept if index not in self._consumed]

    def _trace(self) -> None:
        self._make_stand_ins()
        handles = private._get_tensors_handle(self._stand_ins)
        remaining = iter(self._stand_ins)
        traced = trees.map_tensors(lambda _: next(remaining), self._values)
        arguments = dict(zip(self._target.parameters, traced, strict=True))
        bound = inspect.BoundArguments(self._target.signature, arguments)
        reads = _count_reads()
        tracing_here.active = True
        try:
            with numbers_as_constants(), chains.answered_by(self._answer):
                result = self._target.function(*bound.args, **bound.kwargs)
        except chains.Reached as reached:
            self.body, *operands = reached.link
            result = tuple(operands)
            self.donated = []
        finally:
            tracing_here.active = False
        self._check_unmodified(handles)
        if _count_reads() != reads:
            self._target.refuse_reading()
        self._arrange_results(result, handles)
        self._find_inputs(handles)
        if self.donated:
            self._order_outputs(handles)

    def _make_stand_ins(self) -> None:
        """Wrap the leaves' device data in new tensors, for the function to be traced on.

        The caller's tensors thus stay as they are, whatever the function does. Leaves that share
        their data get copies: in the graph, each leaf is an input of its own.
        """
        _, wrapped = private._get_tensors_xla_device_data_node(self._leaves)
        by_handle = dict(zip(private._get_tensors_handle(list(wrapped)), wrapped, strict=True))
        handles = private._get_tensors_handle(self._leaves)
        stand_ins = [by_handle.pop(handle, None) for handle in handles]
        copies = {i: _computed_copy(t) for i, t in enumerate(self._leaves) if stand_ins[i] is None}
        run_pending_of(list(copies.values()))
        self._stand_ins = [copies.get(i, t) for i, t in enumerate(stand_ins)]

    def _check_unmodified(self, handles: list[int]) -> None:
        pending = private._check_tensor_need_materialization(self._stand_ins)
        tensor_paths = (
            path
            for path, leaf in self._target.named_leaves(self._values)
            if isinstance(leaf, torch.Tensor)
        )
        for path, tensor, changed, handle in zip(
            tensor_paths, self._stand_ins, pending, handles, strict=True
        ):
            if changed or private._get_tensors_handle([tensor])[0] != handle:
                self._target.refuse_modified(path)

    def _arrange_results(self, result: Any, handles: list[int]) -> None:
        """Decide for each leaf of the result where it comes from: graph, argument or constant."""
        flat, self.spec = _pytree.tree_flatten(result)
        # What a chain is called with goes to the graphs of its runs, which know what they consume.
        indices = self._frozen if self.body is None else range(len(handles))
        shareable = {handles[index]: index for index in indices}
        self.outputs, self.statics = [], []
        order: list[tuple[str, int]] = []
        seen = set()
        for leaf in flat:
            if not isinstance(leaf, torch.Tensor):
                order.append(("static", len(self.statics)))
                self.statics.append(leaf)
                continue
            if isinstance(leaf, chains.Passed):
                order.append(("passed", leaf.place))
                continue
            if leaf.device.type != "xla":
                self._target.refuse_result(leaf.device, "the XLA device")
            if not private._check_tensor_need_materialization([leaf])[0]:
                index = shareable.get(private._get_tensors_handle([leaf])[0])
                if index is not None:
                    order.append(("leaf", index))
                    continue
                # Any other argument or constant comes back as a copy, so that donating the
                # result later can't destroy the original.
                leaf = _computed_copy(leaf)
            elif private._unique_id_for_ir_and_data(leaf) in seen:
                leaf = _computed_copy(leaf)
            seen.add(private._unique_id_for_ir_and_data(leaf))
            order.append(("output", len(self.outputs)))
            self.outputs.append(leaf)
        # A run picks its results from leaves + statics + the graph's outputs + what is passed.
        offset = {"leaf": 0, "static": len(self._leaves)}
        offset["output"] = len(self._leaves) + len(self.statics)
        offset["passed"] = offset["output"] + len(self.outputs)
        self.result_order = [offset[kind] + index for kind, index in order]

    def _find_inputs(self, handles: list[int]) -> None:
        """Tell the graph's inputs apart: leaves, constants (kept here), the random seed."""
        leaf_of = {handle: index for index, handle in enumerate(handles)}
        self.constants, self.input_order, self.seed_position = [], [], None
        if not self.outputs:
            return
        identities, values = private._get_tensors_xla_device_data_node(self.outputs)
        input_handles = private._get_tensors_handle(list(values))
        for identity, value, handle in zip(identities, values, input_handles, strict=True):
            index = leaf_of.get(handle)
            if index is None:
                if identity == private._get_seed_info_id():
                    self.seed_position = len(self.input_order)
                index = len(self._leaves) + len(self.constants)
                self.constants.append(value)
            if index in self._consumed:
                raise chains.CannotCut("it uses a layer's old state after the layers")
            self.input_order.append(index)
        # A captured tensor may be modified in place later, which frees the memory it has now.
        self.constants = [_computed_copy(value) for value in self.constants]
        run_pending_of(self.constants)

    def _order_outputs(self, handles: list[int]) -> None:
        """Order the graph's outputs such that each reuses the memory of the argument it replaces.

        XLA pairs donated inputs and outputs of the same size in bytes, both in their order and
        whatever their shapes, and copies where a pair does not fit. Here the k-th donated leaf of
        a shape and dtype belongs to the k-th output of the same, and outputs are put in the order
        of their inputs. That can change the order of the inputs, hence the repetition.
        """
        results = list(self.outputs)
        for _ in range(4):
            places = self._places_of_donors(results)
            order = sorted(range(len(results)), key=places.__getitem__)
            outputs = [results[index] for index in order]
            if all(a is b for a, b in zip(outputs, self.outputs, strict=True)):
                break
            self.outputs = outputs
            self._find_inputs(handles)
        offset = len(self._leaves) + len(self.statics)
        position = {id(output): index for index, output in enumerate(self.outputs)}
        of_outputs = range(offset, offset + len(results))
        self.result_order = [
            offset + position[id(results[index - offset])] if index in of_outputs else index
            for index in self.result_order
        ]

    def _places_of_donors(self, results: list[torch.Tensor]) -> list[float]:
        """Return for each result the place of its donor among the graph's inputs.

        Results without a donor come first, or last where XLA could give them another's.
        """
        place = {leaf: position for position, leaf in enumerate(self.input_order)}
        donors: dict[tuple, list[int]] = {}
        for leaf in self.donated:
            if leaf in place:
                donors.setdefault(_shape_and_dtype(self._leaves[leaf]), []).append(place[leaf])
        sizes = {shape.numel() * dtype.itemsize for shape, dtype in donors}
        places: list[float] = []
        for result in results:
            waiting = donors.get(_shape_and_dtype(result))
            if waiting:
                places.append(waiting.pop(0))
            else:
                places.append(math.inf if result.nbytes in sizes else -1)
        return places

    def compile(self) -> bytes | None:
        """Compile the graph. Return the hash by which torch-xla knows it, None if it is empty."""
        if not self.outputs:
            return None
        outputs = self.outputs + salt(self.outputs)
        donated = [self._stand_ins[index] for index in self.donated]
        for tensor in donated:
            private._set_buffer_donation(tensor, True)
        try:
            with private.alias_with_buffer_donor_config():
                graph_hash = private._get_graph_hash(outputs)
                private._xla_warm_up_cache(outputs, [])
        finally:
            # The mark sits on the data itself, which the caller's tensor shares.
            for tensor in donated:
                private._set_buffer_donation(tensor, False)
        return graph_hash


def salt(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return one more output for a graph with custom calls, a constant that tells it from others.

    torch-xla's graph hash ignores a custom call's backend_config and attributes, so that two
    graphs whose kernels differ only there would share one executable. The constant is built,
    from 0 and 1, along the binary digits of a digest of the HLO text, and so changes the hash.
    """
    if "xla::custom_call" not in private._get_xla_tensors_text(outputs):
        return []
    text = private._get_xla_tensors_hlo(outputs)
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    one = torch.ones((), dtype=torch.int32, device=outputs[0].device)
    value = torch.zeros_like(one)
    for digit in f"{digest:b}":
        value = value + value + one if digit == "1" else value + value
    return [value]


def _shape_and_dtype(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _computed_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that the graph computes, equal to `tensor` (`clone` would share its data)."""
    return tensor.permute(tuple(range(tensor.dim())))


def _count_reads() -> int:
    """Return how often this process has copied device data to the host."""
    metric = private._xla_metric_data("TransferFromDeviceTime")
    return metric[0] if metric is not None else 0
