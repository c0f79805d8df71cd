"""ReMoE: fully differentiable routing by ReLU, its sparsity held by an adaptive penalty.

    S models in the stack, N tokens per model, D width, E feed-forward experts,
    M = S * N tokens, P = active (token, expert) pairs

In this file "expert" means feed-forward expert. Only active pairs are computed; their
number differs between tokens, and a token may have none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import Pairs, at_least_float32, thin_matmul
from .moe import MoeFeedForward

# Start and factor of the penalty's weight. The paper starts at 1e-8 and needs 110 steps to reach its
# sparsity, a fifth of a short proxy run; from 1e-4 it needs 55, and 1 overshoots (its Tables 3 and 4).
_FIRST_MU = 1e-4
_MU_FACTOR = 1.2


class ReluFeedForward(MoeFeedForward):
    """ReLU routing: a token goes to each expert whose gate `ReLU(x W)` is positive.

    The penalty is the mean over tokens of the gates, each weighted by its expert's
    relative load, times `mu`; its gradient flows through the gates, not the loads.
    After each step `mu` grows where the mean active experts per token are above K, and
    falls where they are below: one `mu` per model, the same in all its layers.

    Source: arXiv:2412.14711, Section 3, Eqs. 5-10; mu starts at 1e-4 where it has 1e-8.
    """

    own = ("mu",)
    mu: Tensor

    def __init__(self, num_models: int, width: int, hidden: int, *, experts: int, top_k: int) -> None:
        super().__init__(num_models, width, hidden, experts=experts, top_k=top_k)
        self.register_buffer("mu", torch.full((num_models,), _FIRST_MU))

    def assign(self, x_SND: Tensor) -> tuple[Tensor, Pairs]:
        """Return the gates of the active pairs, sorted by token, and the pairs."""
        gates_SNE = at_least_float32(thin_matmul(x_SND, self.router)).relu()
        active_SNE = gates_SNE.detach() > 0
        self.penalty = self.mu * self._regularizer(gates_SNE, active_SNE)
        (num_models, num_tokens, num_experts), flat_P = gates_SNE.shape, active_SNE.flatten().nonzero().squeeze(1)
        token_P = flat_P // num_experts
        group_P = token_P // num_tokens * num_experts + flat_P % num_experts
        number_M = active_SNE.flatten(0, 1).sum(1)
        pairs = Pairs.sort(group_P, token_P, number_M.cumsum(0) - number_M, num_models * num_experts)
        return gates_SNE.flatten()[flat_P], pairs

    def _regularizer(self, gates_SNE: Tensor, active_SNE: Tensor) -> Tensor:
        """Return (S,) mean gates per token, each times E / K of its expert's share of tokens."""
        load_SE = active_SNE.to(gates_SNE.dtype).mean(1) * (gates_SNE.shape[2] / self.top_k)
        return (load_SE * gates_SNE.mean(1)).sum(1)

    def adjust(self, load_SE: Tensor, active_S: Tensor) -> None:
        """Move mu towards K active experts per token."""
        self.mu *= _MU_FACTOR ** torch.sign(active_S - self.top_k)
