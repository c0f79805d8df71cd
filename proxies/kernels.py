"""The products and passes of feed-forward layers and norms, with their gradients.

Small models are bound by memory: each function here is an autograd `Function` because
autograd would write and read several more arrays than its formula needs. They compute
what their one-line definitions say, up to rounding. `grouped_matmul` is the one seam
for MoE kernels: the library's `grouped_mm` where it is there and takes the shapes, else
one product per slice (1.03 to 1.45 times the seconds on a CPU in float32, docs/log.md).
Nothing here ran on a GPU yet.

    S models in the stack, N tokens per model, D width, F hidden width,
    G groups of pairs, P = (token, expert) pairs, M = S * N tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_NORM_EPS = 1e-6
_THIN = 8  # columns
_GROUPED_MM = getattr(F, "grouped_mm", None)  # not in all releases that we support


def to_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in the type that autocast would give a matrix product."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor that is not of half precision, for what autocast would not protect."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, weight_GDF: Tensor, ends_G: Tensor) -> Tensor:
        ctx.save_for_backward(x_PD, weight_GDF, ends_G)
        return _rows_times_groups(x_PD, weight_GDF, ends_G)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (x_PD, weight_GDF, ends_G), grad_PF = ctx.saved_tensors, grads[0].contiguous()
        grad_x = _rows_times_groups(grad_PF, weight_GDF.transpose(1, 2), ends_G)
        return grad_x, _rows_by_rows(x_PD, grad_PF, ends_G), None


def _library_takes(*widths: int, like: Tensor) -> bool:
    """Whether `grouped_mm` is there and takes such rows: of whole 16 bytes, in a type it knows."""
    whole = all(width * like.element_size() % 16 == 0 for width in widths)
    return _GROUPED_MM is not None and whole and _library_knows(like.device.type, like.dtype)


@cache
def _library_knows(device: str, dtype: torch.dtype) -> bool:
    """Whether it multiplies this type on this device; releases differ, so it is asked once."""
    try:
        ends = torch.tensor([16], dtype=torch.int32, device=device)
        F.grouped_mm(
            torch.zeros(16, 16, dtype=dtype, device=device),
            torch.zeros(1, 16, 16, dtype=dtype, device=device),
            offs=ends,
        )
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


def _rows_times_groups(x_PD: Tensor, weight_GDF: Tensor, ends_G: Tensor) -> Tensor:
    if _library_takes(*weight_GDF.shape[1:], like=weight_GDF):
        return _GROUPED_MM(x_PD, weight_GDF, offs=ends_G)  # type: ignore[misc,no-any-return]
    out, counts = x_PD.new_empty(x_PD.shape[0], weight_GDF.shape[2]), _counts(ends_G)
    for x, y, weight in zip(x_PD.split(counts), out.split(counts), weight_GDF, strict=True):
        torch.mm(x, weight, out=y)
    return out


def _rows_by_rows(x_PD: Tensor, grad_PF: Tensor, ends_G: Tensor) -> Tensor:
    """Return (G, D, F): each group's rows, transposed, times its rows of the gradient."""
    if _library_takes(x_PD.shape[1], grad_PF.shape[1], like=x_PD):
        return _GROUPED_MM(x_PD.t(), grad_PF, offs=ends_G)  # type: ignore[misc,no-any-return]
    counts = _counts(ends_G)
    out = x_PD.new_empty(len(counts), x_PD.shape[1], grad_PF.shape[1])
    for x, grad, y in zip(x_PD.split(counts), grad_PF.split(counts), out, strict=True):
        torch.mm(x.t(), grad, out=y)
    return out


def _counts(ends_G: Tensor) -> list[int]:
    return ends_G.diff(prepend=ends_G.new_zeros(1)).tolist()


def grouped_matmul(x_PD: Tensor, weight_GDF: Tensor, ends_G: Tensor) -> Tensor:
    """Return (P, F): each contiguous slice of rows times its group's matrix.

    Args:
        x_PD: Rows, sorted by group.
        weight_GDF: One matrix per group.
        ends_G: Where each group's rows end, int32; groups may be empty.
    """
    return _GroupedMatmul.apply(*to_autocast(x_PD, weight_GDF), ends_G)  # type: ignore[no-any-return,no-untyped-call]


class _ThinMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SND: Tensor, weight_SDE: Tensor) -> Tensor:
        ctx.save_for_backward(x_SND, weight_SDE)
        return torch.bmm(weight_SDE.transpose(1, 2), x_SND.transpose(1, 2)).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (x_SND, weight_SDE), (grad_SNE,) = ctx.saved_tensors, grads
        grad_weight = torch.bmm(grad_SNE.transpose(1, 2), x_SND).transpose(1, 2).contiguous()
        return torch.bmm(grad_SNE, weight_SDE.transpose(1, 2)), grad_weight


def thin_matmul(x_SND: Tensor, weight_SDE: Tensor) -> Tensor:
    """Return (S, N, E) products with matrices of few columns.

    With up to 8 columns, products of the transposes take 0.6 to 0.7 of the seconds on a
    CPU, forward and backward (docs/log.md); with 16 no longer.
    """
    if weight_SDE.shape[2] > _THIN:
        return torch.bmm(x_SND, weight_SDE)
    return _ThinMatmul.apply(*to_autocast(x_SND, weight_SDE))  # type: ignore[no-any-return,no-untyped-call]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Which tokens go to which group.

    Attributes:
        token_P: Token of each pair, pairs sorted by group.
        order_P: Pairs sorted by group, as numbers in the order of their tokens.
        place_P: Place in that order of each pair, pairs sorted by token.
        first_M: First pair of each token, pairs sorted by token.
        counts_G: Pairs of each group.
        ends_G: Where each group ends in the sorted order, int32.
    """

    token_P: Tensor
    order_P: Tensor
    place_P: Tensor
    first_M: Tensor
    counts_G: Tensor
    ends_G: Tensor

    @classmethod
    def sort(cls, group_P: Tensor, token_P: Tensor, first_M: Tensor, num_groups: int) -> Pairs:
        """Sort pairs, given in the order of their tokens, by group."""
        order_P = torch.argsort(group_P, stable=True)
        place_P = torch.empty_like(order_P).scatter_(0, order_P, torch.arange(len(order_P), device=order_P.device))
        counts_G = torch.bincount(group_P, minlength=num_groups)
        return cls(
            token_P.index_select(0, order_P), order_P, place_P, first_M, counts_G, counts_G.cumsum(0).to(torch.int32)
        )


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, pairs: Pairs) -> Tensor:
        ctx.pairs = pairs
        return x_MD.index_select(0, pairs.token_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        pairs: Pairs = ctx.pairs
        return F.embedding_bag(pairs.place_P, grads[0].contiguous(), pairs.first_M, mode="sum"), None


def dispatch(x_MD: Tensor, pairs: Pairs) -> Tensor:
    """Return (P, D): each pair's token, pairs sorted by group."""
    return _Dispatch.apply(x_MD, pairs)  # type: ignore[no-any-return,no-untyped-call]


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out_PD: Tensor, gates_P: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(out_PD, gates_P)
        ctx.pairs = pairs
        return F.embedding_bag(pairs.place_P, out_PD, pairs.first_M, mode="sum", per_sample_weights=gates_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (out_PD, gates_P), pairs = ctx.saved_tensors, ctx.pairs
        grad_PD = grads[0].index_select(0, pairs.token_P)
        grad_gates_P = (out_PD * grad_PD).sum(1).index_select(0, pairs.place_P)
        return grad_PD.mul_(gates_P.index_select(0, pairs.order_P).unsqueeze(1)), grad_gates_P, None


def combine(out_PD: Tensor, gates_P: Tensor, pairs: Pairs) -> Tensor:
    """Return (M, D): each token's outputs, weighted by its gates and summed.

    Args:
        out_PD: Outputs of the pairs, sorted by group.
        gates_P: Weights of the pairs, sorted by token.
        pairs: The order; a token without pairs gets zeros.
    """
    return _Combine.apply(out_PD.to(gates_P.dtype), gates_P, pairs)  # type: ignore[no-any-return,no-untyped-call]


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        active = F.silu(gate)
        ctx.save_for_backward(gate_up, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        gate_up, active = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad = torch.empty_like(gate_up)
        grad_gate, grad_up = grad.chunk(2, dim=-1)
        torch.mul(grads[0], active, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=grad_gate)
        return grad


def swiglu(gate_up: Tensor) -> Tensor:
    """Return `silu(gate) * up` for the two halves of the last axis."""
    return _SwiGlu.apply(gate_up)  # type: ignore[no-any-return,no-untyped-call]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SND: Tensor, gain_SD: Tensor) -> Tensor:
        scale = (x_SND * x_SND).mean(-1, keepdim=True).add_(_NORM_EPS).rsqrt_()
        unit_SND = x_SND * scale
        ctx.save_for_backward(unit_SND, gain_SD, scale)
        return unit_SND * gain_SD.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad_SND,) = grads
        unit_SND, gain_SD, scale = ctx.saved_tensors
        product_SND = grad_SND * unit_SND
        grad_gain = product_SND.sum(1)
        gain_S1D = gain_SD.unsqueeze(1)
        along = product_SND.mul_(gain_S1D).mean(-1, keepdim=True)
        return (grad_SND * gain_S1D).addcmul_(unit_SND, along, value=-1).mul_(scale), grad_gain


def rms_norm(x_SND: Tensor, gain_SD: Tensor) -> Tensor:
    """Return activations of mean square one over the last axis, times a gain per model."""
    return _RmsNorm.apply(x_SND, gain_SD)  # type: ignore[no-any-return,no-untyped-call]
