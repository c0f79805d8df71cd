"""One optimizer step for a stack of models, each with its own step, rate, clip and average.

What moves a parameter is a rule, AdamW (`adamw`) or Muon (`muon`): it keeps tensors of
its own per parameter, its slots. Models at different steps can share a stack and leave it.

    S models in the stack
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .adamw import StackedAdamW
from .checkpoint import ModelState
from .config import ProxyConfig
from .laws import rate
from .model import ProxyStack
from .muon import StackedMuon, is_hidden_matrix


class Rule(Protocol):
    """What moves some parameters of a stack."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the tensors it keeps per parameter."""

    def step(self, rates: Sequence[float]) -> None:
        """Move its parameters along their gradients; one learning rate per model."""

    def load(self, s: int, name: str, slots: Mapping[str, Tensor]) -> None:
        """Set the slots of one parameter of model s."""

    def saved(self, s: int, name: str) -> dict[str, Tensor]:
        """Return the slots of one parameter of model s."""


class StackOptimizer:
    """Clips, steps and averages S models held in one `ProxyStack`.

    Args:
        model: The stack; its parameters are overwritten with `states`.
        average: A second stack for the averaged weights.
        states: One state per model; their tensors are copied in.
        ends: Last step of each model's run, for the decay of its rate.
    """

    def __init__(
        self, model: ProxyStack, average: ProxyStack, states: Sequence[ModelState], *, ends: Sequence[int]
    ) -> None:
        self.config: ProxyConfig = model.config
        self.model, self.average = model, average
        self.steps, self._ends = [state.step for state in states], list(ends)
        self._parameters = dict(model.named_parameters())
        for parameter in self._parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self._rules = self._make_rules()
        self._average_parameters = dict(average.named_parameters())
        for s, state in enumerate(states):
            self._load(s, state)

    def step(self) -> Tensor:
        """Clip per model, update weights, biases and averages, clear the gradients.

        Returns:
            (S,) gradient norms before clipping.
        """
        norms = self._clip()
        rates = [rate(self.config, step, end) for step, end in zip(self.steps, self._ends, strict=True)]
        for rule in set(self._rules.values()):
            rule.step(rates)
        self.model.update_routers()
        self.steps = [step + 1 for step in self.steps]
        self._update_average()
        for parameter in self._parameters.values():
            assert parameter.grad is not None
            parameter.grad.zero_()
        return norms

    def states(self) -> list[ModelState]:
        """Return a copy of every model's state, on the CPU."""
        return [self._state(s) for s in range(len(self.steps))]

    def _make_rules(self) -> dict[str, Rule]:
        """Return {parameter: its rule}."""
        names = {n for n, p in self._parameters.items() if _rule_of(self.config, n, p) is StackedMuon}
        hidden = {n: p for n, p in self._parameters.items() if n in names}
        rest = {n: p for n, p in self._parameters.items() if n not in names}
        decay = self.config.weight_decay
        adamw: Rule = StackedAdamW(rest, self.steps, weight_decay=decay)
        muon: Rule = StackedMuon(hidden, weight_decay=decay)
        return {n: muon if n in names else adamw for n in self._parameters}

    @torch.no_grad()
    def _clip(self) -> Tensor:
        grads = [p.grad for p in self._parameters.values() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in grads]).square().sum(0).sqrt()
        scale = (self.config.clip / (norms + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
        return norms

    @torch.no_grad()
    def _update_average(self) -> None:
        # The ramp keeps short runs from averaging in their random start.
        decays = [min(self.config.ema, (1 + step) / (10 + step)) for step in self.steps]
        blend = 1 - torch.tensor(decays, device=self.model.embedding.device)
        for name, parameter in self._parameters.items():
            shape = (-1, *[1] * (parameter.dim() - 1))
            self._average_parameters[name].lerp_(parameter, blend.view(shape))
        for mine, theirs in zip(self.average.moe_layers(), self.model.moe_layers(), strict=True):
            for name, tensor in mine.own_state().items():
                tensor.copy_(theirs.own_state()[name])

    @torch.no_grad()
    def _load(self, s: int, state: ModelState) -> None:
        for name, parameter in self._parameters.items():
            parameter[s].copy_(state.tensors[f"weights/{name}"])
            self._average_parameters[name][s].copy_(state.tensors[f"ema/{name}"])
            rule = self._rules[name]
            rule.load(s, name, {slot: state.tensors[f"{slot}/{name}"] for slot in rule.slots})
        self.model.load_routers(s, state.tensors)
        self.average.load_routers(s, state.tensors)

    def _state(self, s: int) -> ModelState:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[f"weights/{name}"] = parameter.data[s]
            tensors[f"ema/{name}"] = self._average_parameters[name].data[s]
            tensors |= {f"{slot}/{name}": value for slot, value in self._rules[name].saved(s, name).items()}
        tensors |= {name: tensor[s] for name, tensor in self.model.router_state().items()}
        return ModelState(self.steps[s], {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()})


def _rule_of(config: ProxyConfig, name: str, parameter: Tensor) -> type[StackedAdamW | StackedMuon]:
    muon = config.optimizer == "muon" and is_hidden_matrix(name, parameter)
    return StackedMuon if muon else StackedAdamW


def initial_state(config: ProxyConfig, seed: int) -> ModelState:
    """Return a freshly drawn model at step 0; a function of shape and seed alone."""
    model = ProxyStack(config, 1).initialize([torch.Generator().manual_seed(seed % 2**63)])
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()[0]
        tensors |= {f"weights/{name}": value, f"ema/{name}": value.clone()}
        tensors |= {f"{slot}/{name}": torch.zeros_like(value) for slot in _rule_of(config, name, parameter).slots}
    # No counts: nothing was trained yet (see ProxyStack.load_routers).
    tensors |= {name: t[0] for name, t in model.router_state().items() if name.startswith("buffers/")}
    return ModelState(0, tensors)
