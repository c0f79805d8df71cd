"""Feed-forward layers of a stack of models: routed experts, exact and without drops.

    S models in the stack, N tokens per model, D width, F hidden width,
    E feed-forward experts, K experts per token, G = S * E groups, P = S * N * K pairs

In this file "expert" means feed-forward expert. Pairs (token, expert) are sorted by
expert; each expert multiplies one contiguous slice. One sort serves all models.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _GroupedMatmul(torch.autograd.Function):
    """Multiply each contiguous slice of rows by its own matrix."""

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, weight_GDF: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x_PD, weight_GDF)
        ctx.counts = counts
        out = x_PD.new_empty(x_PD.shape[0], weight_GDF.shape[2])
        for x, y, weight in zip(x_PD.split(counts), out.split(counts), weight_GDF, strict=True):
            torch.mm(x, weight, out=y)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad_PF,) = grads
        x_PD, weight_GDF = ctx.saved_tensors
        grad_PF = grad_PF.contiguous()
        grad_x = torch.empty_like(x_PD)
        grad_weight = torch.empty_like(weight_GDF)
        slices = zip(
            x_PD.split(ctx.counts),
            grad_PF.split(ctx.counts),
            grad_x.split(ctx.counts),
            weight_GDF,
            grad_weight,
            strict=True,
        )
        for x, grad, out_x, weight, out_weight in slices:
            torch.mm(grad, weight.t(), out=out_x)
            torch.mm(x.t(), grad, out=out_weight)
        return grad_x, grad_weight, None


def grouped_matmul(x_PD: Tensor, weight_GDF: Tensor, counts: list[int]) -> Tensor:
    """Return rows times their group's matrix; `counts` are the groups' row numbers.

    The one seam for kernels: `torch.nn.functional.grouped_mm` is as fast on this
    CPU at these sizes, but not in every torch release we support.
    """
    return _GroupedMatmul.apply(x_PD, weight_GDF, counts)  # type: ignore[no-any-return,no-untyped-call]


def swiglu(gate_up: Tensor) -> Tensor:
    """Return `silu(gate) * up` for the two halves of the last axis."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class DenseFeedForward(nn.Module):
    """SwiGLU feed-forward of S models; also the shared expert of an MoE layer."""

    def __init__(self, num_models: int, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(num_models, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(num_models, hidden, width))

    def forward(self, x_SND: Tensor) -> Tensor:
        """Return (S, N, D) outputs."""
        return torch.bmm(swiglu(torch.bmm(x_SND, self.up)), self.down)


class MoeFeedForward(nn.Module):
    """Routed SwiGLU experts with top-k softmax routing and loss-free balancing.

    A token goes to the K experts with the largest `probability + bias`; it is
    weighted by the probabilities alone, normalized over its experts. After each
    step the bias of overloaded experts falls (`update_bias`).

    Source: loss-free balancing, arXiv:2408.15664, Section 3, Algorithm 1; we use
    softmax affinities where the paper uses sigmoid.
    """

    bias: Tensor
    load: Tensor

    def __init__(self, num_models: int, width: int, hidden: int, *, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Parameter(torch.empty(num_models, width, experts))
        self.up = nn.Parameter(torch.empty(num_models, experts, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(num_models, experts, hidden, width))
        self.register_buffer("bias", torch.zeros(num_models, experts))
        # Share of (token, expert) pairs per expert in the last forward pass.
        self.register_buffer("load", torch.zeros(num_models, experts), persistent=False)

    def forward(self, x_SND: Tensor) -> Tensor:
        """Return (S, N, D) outputs and remember the load of each expert."""
        num_models, num_tokens, width = x_SND.shape
        gates_SNK, chosen_SNK = self.route(x_SND)
        num_experts = self.bias.shape[1]
        group = chosen_SNK + num_experts * torch.arange(num_models, device=x_SND.device).view(-1, 1, 1)
        group_P = group.reshape(-1)
        order_P = torch.argsort(group_P, stable=True)
        counts_G = torch.bincount(group_P, minlength=num_models * num_experts)
        self.load = counts_G.view(num_models, num_experts) / (num_tokens * self.top_k)
        counts = counts_G.tolist()
        x_PD = x_SND.reshape(-1, width).index_select(0, order_P // self.top_k)
        hidden_PF = swiglu(grouped_matmul(x_PD, self.up.flatten(0, 1), counts))
        out_PD = grouped_matmul(hidden_PF, self.down.flatten(0, 1), counts)
        back_P = torch.empty_like(order_P).scatter_(0, order_P, torch.arange(len(order_P), device=order_P.device))
        out_SNKD = out_PD.index_select(0, back_P).view(num_models, num_tokens, self.top_k, width)
        return (gates_SNK.unsqueeze(-1) * out_SNKD).sum(2)

    def route(self, x_SND: Tensor) -> tuple[Tensor, Tensor]:
        """Return gates and indices of the chosen experts, both (S, N, K)."""
        probs_SNE = torch.bmm(x_SND, self.router).softmax(-1)
        chosen_SNK = (probs_SNE.detach() + self.bias.unsqueeze(1)).topk(self.top_k, dim=-1).indices
        gates_SNK = probs_SNE.gather(-1, chosen_SNK)
        return gates_SNK / gates_SNK.sum(-1, keepdim=True), chosen_SNK

    @torch.no_grad()
    def update_bias(self, step: float) -> None:
        """Move the bias of each expert against its load in the last batch."""
        self.bias += step * torch.sign(1 / self.bias.shape[1] - self.load)
