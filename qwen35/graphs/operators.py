"""Count ATen's operators in a graph that torch.compile captures: what its backend has to know."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd

from ..xla import trees
from ..xla.capture import Capture
from ..xla.target import Target


def operators(function: Callable[..., Any], *args: Any) -> Counter[str]:
    """Count the operators of a function's graph, functional as AOT autograd hands it to a backend.

    Args:
        function: as for `jit`.
        args: its arguments; tensors on the "meta" device do.

    Returns:
        How often each operator stands there, by names such as "aten.mm".
    """
    found: Counter[str] = Counter()

    def collect(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        for node in graph.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload):
                found[str(node.target.overloadpacket)] += 1
        return graph.forward

    signature = inspect.signature(function)
    values = tuple(signature.bind(*args).arguments.values())
    signature = signature.replace(parameters=list(signature.parameters.values())[: len(values)])
    target = Target(function, function.__name__, signature, frozenset())
    with torch.no_grad():
        Capture(target, values, trees.tensors(values), aot_autograd(fw_compiler=collect))
    return found
