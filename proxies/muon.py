"""Muon for the hidden matrices of a stack: momentum whose singular values are evened out.

Every matrix on its own, however many axes lead it (models, feed-forward experts): one
batched Newton-Schulz iteration serves all matrices of a shape in the whole stack.
Embedding, router and gains are AdamW's.

    S models in the stack, N matrices, R rows, C columns

Source: Moonlight, arXiv:2502.16982, Section 2.2 (scale, decay); the iteration and its
coefficients from Keller Jordan's Muon. A gate and its up-projection, and the
queries, keys and values of a block, are one matrix here, as they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# A quintic that lifts small singular values fast and ends near 1, not at it.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# Root mean square of an update's entries, about that of AdamW's, so that its rate and decay carry over.
_UPDATE_RMS = 0.2


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves this parameter of a stack, (S, R, C) or (S, E, R, C)."""
    return parameter.dim() >= 3 and name != "embedding" and not name.endswith("router")


def orthogonalize(matrices_NRC: Tensor) -> Tensor:
    """Return (N, R, C) matrices with the same singular vectors and singular values near 1.

    Values end between 0.6 and 1.21, except those far below the largest; zero stays zero.
    """
    a, b, c = _COEFFICIENTS
    tall = matrices_NRC.shape[-2] > matrices_NRC.shape[-1]
    x = matrices_NRC.mT if tall else matrices_NRC
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class StackedMuon:
    """Muon over the hidden matrices of S models, with one rate per model.

    Args:
        parameters: {name: (S, R, C) or (S, E, R, C) parameter} with gradients.
        weight_decay: Decoupled, times the rate.
    """

    slots = ("momentum",)

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, weight_decay: float) -> None:
        self._parameters, self._weight_decay = parameters, weight_decay
        self._momenta = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self._shapes: dict[torch.Size, list[str]] = {}
        for name, parameter in parameters.items():
            self._shapes.setdefault(parameter.shape[-2:], []).append(name)

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """Move every matrix; `rates` has one learning rate per model."""
        for shape, names in self._shapes.items():
            directions = [self._direction(name).view(-1, *shape) for name in names]
            updates = orthogonalize(torch.cat(directions)).split([len(d) for d in directions])
            for name, update in zip(names, updates, strict=True):
                self._apply(self._parameters[name], update, rates)

    def load(self, s: int, name: str, slots: Mapping[str, Tensor]) -> None:
        """Set the momentum of one parameter of model s."""
        self._momenta[name][s].copy_(slots["momentum"])

    def saved(self, s: int, name: str) -> dict[str, Tensor]:
        """Return the momentum of one parameter of model s."""
        return {"momentum": self._momenta[name][s]}

    def _direction(self, name: str) -> Tensor:
        grad, momentum = self._parameters[name].grad, self._momenta[name]
        assert grad is not None
        return grad.add(momentum.mul_(MOMENTUM).add_(grad), alpha=MOMENTUM)

    def _apply(self, parameter: Tensor, update_NRC: Tensor, rates: Sequence[float]) -> None:
        rate = torch.tensor(rates, device=parameter.device).view(-1, *[1] * (parameter.dim() - 1))
        scale = _UPDATE_RMS * math.sqrt(max(parameter.shape[-2:]))
        parameter.mul_(1 - rate * self._weight_decay).sub_(rate * scale * update_NRC.view_as(parameter))
