"""AdamW for the parameters of a stack: every model's slice is a parameter of its own.

The slices share memory with the stacked tensors, so models at different steps can share
a stack (docs/decisions/0005). Rates, clipping and averages are the caller's. Torch's
fused kernel is called without `torch.optim.AdamW` around it, which spends as long on
sorting so many small tensors as the kernel does on moving them.

    S models in the stack
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class StackedAdamW:
    """Fused AdamW over S views per parameter, with one rate per model.

    Args:
        parameters: {name: (S, ...) parameter}; gradients must be allocated already, and stay.
        steps: Steps done, per model.
        weight_decay: On matrices, not on gains.
    """

    slots = ("first", "second")

    def __init__(self, parameters: Mapping[str, nn.Parameter], steps: Sequence[int], *, weight_decay: float) -> None:
        self._moments = {slot: {n: torch.zeros_like(p) for n, p in parameters.items()} for slot in self.slots}
        devices = {p.device for p in parameters.values()}
        self._steps = [torch.tensor(float(step), device=device) for step in steps for device in devices]
        matrices = [name for name, p in parameters.items() if p.dim() > 2]
        gains = [name for name, p in parameters.items() if p.dim() == 2]
        self._groups = [
            [(self._slices(parameters, names, s), decay) for names, decay in ((matrices, weight_decay), (gains, 0.0))]
            for s in range(len(steps))
        ]

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        """Move every parameter; `rates` has one learning rate per model."""
        for step, rate, groups in zip(self._steps, rates, self._groups, strict=True):
            step.add_(1)
            for (slices, grads, first, second), decay in groups:
                torch._fused_adamw_(
                    slices, grads, first, second, [], [step] * len(slices), lr=rate, beta1=0.9, beta2=0.95,
                    weight_decay=decay, eps=1e-8, amsgrad=False, maximize=False,
                )  # fmt: skip

    def load(self, s: int, name: str, slots: Mapping[str, Tensor]) -> None:
        """Set the moments of one parameter of model s; tensors are copied."""
        for slot in self.slots:
            self._moments[slot][name][s].copy_(slots[slot])

    def saved(self, s: int, name: str) -> dict[str, Tensor]:
        """Return the moments of one parameter of model s."""
        return {slot: self._moments[slot][name][s] for slot in self.slots}

    def _slices(self, parameters: Mapping[str, nn.Parameter], names: Sequence[str], s: int) -> tuple[list[Tensor], ...]:
        """Return model s's part of parameters, gradients and both moments."""
        grads = [grad for grad in (parameters[name].grad for name in names) if grad is not None]
        assert len(grads) == len(names)
        moments = ([self._moments[slot][name][s] for name in names] for slot in self.slots)
        return [parameters[name].data[s] for name in names], [grad[s] for grad in grads], *moments
