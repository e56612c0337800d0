"""The collectives of the tensor-parallel layout; on a single device all are the identity.

The same call serves three ways to run: CPU tensors in one process per rank (torch.distributed,
eager and differentiable), XLA tensors on the virtual or real devices of one process (SPMD, see
`spmd`), and XLA tensors in one process per rank (torch-xla's own collectives).

Derivatives are those of the sum over ranks of each rank's result: when every rank computes the
same loss, divide it by tp; gradients of split tensors are then whole, and those of replicated
tensors add up over the ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from ..xla import private
from . import process
from .mesh import Mesh


def all_reduce(x: Tensor, mesh: Mesh | None) -> Tensor:
    """Sums x over the tensor-parallel ranks, in x's dtype.

    It is added up in the dtype that `mesh.reduce` says. All ranks get the same bits.
    """
    if mesh is None or mesh.tp == 1:
        return x
    dtype = x.dtype
    if mesh.reduce == "float32":
        x = x.float()
    total = _xla_all_reduce(x, mesh) if x.device.type == "xla" else _AllReduce.apply(x, mesh)
    return total.to(dtype)


def all_gather(x: Tensor, mesh: Mesh | None) -> Tensor:
    """Joins the ranks' x [..., n], in rank order, to [..., tp * n]."""
    if mesh is None or mesh.tp == 1:
        return x
    if x.device.type == "xla":
        return _xla_all_gather(x, mesh)
    return _AllGather.apply(x, mesh)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, mesh: Mesh) -> Tensor:
        ctx.mesh = mesh
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=process.tp_group(mesh))
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return _AllReduce.apply(grad, ctx.mesh), None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, mesh: Mesh) -> Tensor:
        ctx.mesh = mesh
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(mesh.tp)]
        distributed.all_gather(parts, x, group=process.tp_group(mesh))
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        mine = distributed.get_rank(process.tp_group(ctx.mesh))
        return _AllReduce.apply(grad, ctx.mesh).chunk(ctx.mesh.tp, dim=-1)[mine], None


def _xla_all_reduce(x: Tensor, mesh: Mesh) -> Tensor:
    import torch_xla

    if torch_xla.runtime.is_spmd():
        return private._xla_spmd_all_reduce("sum", x, 1.0, mesh.tp_groups)
    total = private._xla_all_reduce("sum", x, 1.0, mesh.tp_groups, False)
    _forget_order(x)
    return total


def _xla_all_gather(x: Tensor, mesh: Mesh) -> Tensor:
    import torch_xla

    # In SPMD the groups hold partitions, which XLA calls global device ids, of one channel.
    spmd = torch_xla.runtime.is_spmd()
    channel, global_ids = (1, True) if spmd else (None, None)
    gathered = private._xla_all_gather(
        x, x.dim() - 1, mesh.tp, mesh.tp_groups, False, channel, global_ids
    )
    _forget_order(x)
    return gathered


def _forget_order(x: Tensor) -> None:
    """Forgets the token by which torch-xla orders collectives from call to call.

    It would tie the next trace to this graph and its inputs; data flow alone orders ours.
    """
    private._set_all_reduce_token(str(x.device), None)
