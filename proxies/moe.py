"""Feed-forward layers of a stack of models: routed experts, exact and without drops.

    S models in the stack, N tokens per model, D width, F hidden width,
    E feed-forward experts, K experts per token under top-k, M = S * N tokens,
    G = S * E groups, P = (token, expert) pairs

In this file "expert" means feed-forward expert. Routers differ in how they assign
tokens to experts (`MoeFeedForward.assign`); the rest is shared: pairs are sorted by
group, each group multiplies one contiguous slice, one sort serves all models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from .kernels import Pairs, combine, dispatch, grouped_matmul, swiglu, thin_matmul


class DenseFeedForward(nn.Module):
    """SwiGLU feed-forward of S models; also the shared expert of an MoE layer."""

    def __init__(self, num_models: int, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(num_models, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(num_models, hidden, width))

    def forward(self, x_SND: Tensor) -> Tensor:
        """Return (S, N, D) outputs."""
        return torch.bmm(swiglu(torch.bmm(x_SND, self.up)), self.down)


class MoeFeedForward(nn.Module, ABC):
    """SwiGLU experts of which each token meets those that its router assigns.

    A router is a subclass. It may keep state per model in buffers (`own`) and move it
    in `after_step`. Tokens are counted in training only, since the last `restart`.

    Attributes:
        penalty: (S,) to add to the models' losses, made by the last forward pass; or None.
        pairs: (S, E) pairs per expert since `restart`.
        tokens: (S,) tokens since `restart`.
    """

    own: ClassVar[tuple[str, ...]]
    pairs: Tensor
    tokens: Tensor
    step_pairs: Tensor

    def __init__(self, num_models: int, width: int, hidden: int, *, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.penalty: Tensor | None = None
        self.router = nn.Parameter(torch.empty(num_models, width, experts))
        self.up = nn.Parameter(torch.empty(num_models, experts, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(num_models, experts, hidden, width))
        self.register_buffer("pairs", torch.zeros(num_models, experts, dtype=torch.int64))
        self.register_buffer("tokens", torch.zeros(num_models, dtype=torch.int64))
        self.register_buffer("step_pairs", torch.zeros_like(self.pairs), persistent=False)
        self._step_tokens = 0

    @abstractmethod
    def assign(self, x_SND: Tensor) -> tuple[Tensor, Pairs]:
        """Return the gates of all pairs, pairs sorted by token, and the pairs."""

    @abstractmethod
    def adjust(self, load_SE: Tensor, active_S: Tensor) -> None:
        """Move the router's own state after a step.

        Args:
            load_SE: Share of the step's pairs per expert of this layer.
            active_S: Mean active experts per token in the step, over all layers.
        """

    def forward(self, x_SND: Tensor) -> Tensor:
        """Return (S, N, D) outputs."""
        gates_P, pairs = self.assign(x_SND)
        if torch.is_grad_enabled():
            self.step_pairs += pairs.counts_G.view(self.pairs.shape)
            self._step_tokens += x_SND.shape[1]
        hidden_PF = swiglu(grouped_matmul(dispatch(x_SND.flatten(0, 1), pairs), self.up.flatten(0, 1), pairs.ends_G))
        out_PD = grouped_matmul(hidden_PF, self.down.flatten(0, 1), pairs.ends_G)
        return combine(out_PD, gates_P, pairs).view(x_SND.shape)

    def own_state(self) -> dict[str, Tensor]:
        """Return the router's own state by name; each (S, ...)."""
        return {name: getattr(self, name) for name in self.own}

    def counts(self) -> dict[str, Tensor]:
        """Return the counts since `restart` by name; each (S, ...)."""
        return {"pairs": self.pairs, "tokens": self.tokens}

    def step_active(self) -> Tensor:
        """Return (S,) mean active experts per token since the last `after_step`."""
        return self.step_pairs.sum(1) / max(1, self._step_tokens)

    @torch.no_grad()
    def after_step(self, active_S: Tensor) -> None:
        """Count the step's tokens and move the router's own state; see `adjust`."""
        self.pairs += self.step_pairs
        self.tokens += self._step_tokens
        self.adjust(self.step_pairs / self.step_pairs.sum(1, keepdim=True).clamp(min=1), active_S)
        self.step_pairs.zero_()
        self._step_tokens = 0

    def load(self, s: int) -> list[float]:
        """Return the share of model s's pairs per expert since `restart`; zeros are dead experts."""
        return (self.pairs[s] / self.pairs[s].sum().clamp(min=1)).tolist()

    def active(self, s: int) -> float:
        """Return the mean active experts per token of model s since `restart`."""
        return float(self.pairs[s].sum() / self.tokens[s].clamp(min=1))

    def restart(self, s: int) -> None:
        """Count the tokens of model s from here on."""
        self.pairs[s], self.tokens[s] = 0, 0


class TopKFeedForward(MoeFeedForward):
    """Top-k softmax routing with loss-free balancing.

    A token goes to the K experts with the largest `probability + bias`; it is
    weighted by the probabilities alone, normalized over its experts. After each
    step the bias of overloaded experts falls.

    Source: loss-free balancing, arXiv:2408.15664, Section 3, Algorithm 1; we use
    softmax affinities where the paper uses sigmoid.
    """

    own = ("bias",)
    bias: Tensor

    def __init__(
        self, num_models: int, width: int, hidden: int, *, experts: int, top_k: int, balance_step: float = 0.0
    ) -> None:
        super().__init__(num_models, width, hidden, experts=experts, top_k=top_k)
        self.balance_step = balance_step
        self.register_buffer("bias", torch.zeros(num_models, experts))

    def route(self, x_SND: Tensor) -> tuple[Tensor, Tensor]:
        """Return gates and indices of the chosen experts, both (S, N, K)."""
        logits_SNE = thin_matmul(x_SND, self.router)
        probs_SNE = logits_SNE.detach().softmax(-1)
        chosen_SNK = (probs_SNE + self.bias.unsqueeze(1)).topk(self.top_k, dim=-1).indices
        # Probabilities normalized over the chosen are the softmax of the chosen logits.
        return logits_SNE.gather(-1, chosen_SNK).softmax(-1), chosen_SNK

    def assign(self, x_SND: Tensor) -> tuple[Tensor, Pairs]:
        """Return the gates of all pairs, K per token, and the pairs."""
        gates_SNK, chosen_SNK = self.route(x_SND)
        num_groups, device = self.bias.numel(), x_SND.device
        group_SNK = chosen_SNK + torch.arange(0, num_groups, self.bias.shape[1], device=device).view(-1, 1, 1)
        pair_P = torch.arange(group_SNK.numel(), device=device)
        pairs = Pairs.sort(group_SNK.flatten(), pair_P // self.top_k, pair_P[:: self.top_k], num_groups)
        return gates_SNK.flatten(), pairs

    def adjust(self, load_SE: Tensor, active_S: Tensor) -> None:
        """Move the bias of each expert against its load."""
        self.bias += self.balance_step * torch.sign(1 / load_SE.shape[1] - load_SE)
