"""AdamW for a stack of models, each with its own step, rate, clip and average.

The optimizer sees every model's slice as parameters of their own (views into the
stacked tensors), so models at different steps can share a stack and leave it.

    S models in the stack
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .checkpoint import ModelState
from .config import ProxyConfig
from .model import ProxyStack


class StackOptimizer:
    """Clips, steps and averages S models held in one `ProxyStack`.

    Args:
        model: The stack; its parameters are overwritten with `states`.
        average: A second stack for the averaged weights.
        states: One state per model; their tensors are copied in.
    """

    def __init__(self, model: ProxyStack, average: ProxyStack, states: Sequence[ModelState]) -> None:
        self.config: ProxyConfig = model.config
        self.model, self.average = model, average
        self.steps = [state.step for state in states]
        self._parameters = dict(model.named_parameters())
        for parameter in self._parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self._views: list[dict[str, nn.Parameter]] = [self._view(s) for s in range(len(states))]
        self._adam = torch.optim.AdamW(
            [group for views in self._views for group in self._groups(views)],
            lr=self.config.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self._average_parameters = dict(average.named_parameters())
        for s, state in enumerate(states):
            self._load(s, state)

    def step(self) -> Tensor:
        """Clip per model, update weights, biases and averages, clear the gradients.

        Returns:
            (S,) gradient norms before clipping.
        """
        norms = self._clip()
        for s in range(len(self.steps)):
            rate = self.config.learning_rate * min(1.0, (self.steps[s] + 1) / self.config.warmup_steps)
            for group in self._adam.param_groups[2 * s : 2 * s + 2]:
                group["lr"] = rate
        self._adam.step()
        for layer in self.model.moe_layers():
            layer.update_bias(self.config.balance_step)
        self.steps = [step + 1 for step in self.steps]
        self._update_average()
        for parameter in self._parameters.values():
            assert parameter.grad is not None
            parameter.grad.zero_()
        return norms

    def states(self) -> list[ModelState]:
        """Return a copy of every model's state, on the CPU."""
        return [self._state(s) for s in range(len(self.steps))]

    def _view(self, s: int) -> dict[str, nn.Parameter]:
        views = {}
        for name, parameter in self._parameters.items():
            assert parameter.grad is not None
            views[name] = nn.Parameter(parameter.data[s])
            views[name].grad = parameter.grad[s]
        return views

    def _groups(self, views: dict[str, nn.Parameter]) -> list[dict[str, object]]:
        matrices = [p for p in views.values() if p.dim() >= 2]
        gains = [p for p in views.values() if p.dim() < 2]
        return [{"params": matrices, "weight_decay": self.config.weight_decay}, {"params": gains, "weight_decay": 0.0}]

    @torch.no_grad()
    def _clip(self) -> Tensor:
        grads = [p.grad for p in self._parameters.values() if p.grad is not None]
        norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
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
            mine.bias.copy_(theirs.bias)

    @torch.no_grad()
    def _load(self, s: int, state: ModelState) -> None:
        for name, parameter in self._parameters.items():
            parameter[s].copy_(state.tensors[f"weights/{name}"])
            self._average_parameters[name][s].copy_(state.tensors[f"ema/{name}"])
            view = self._views[s][name]
            self._adam.state[view] = {
                "step": torch.tensor(float(state.step), device=view.device),
                "exp_avg": state.tensors[f"first/{name}"].to(view.device, copy=True),
                "exp_avg_sq": state.tensors[f"second/{name}"].to(view.device, copy=True),
            }
        for i, (mine, theirs) in enumerate(zip(self.model.moe_layers(), self.average.moe_layers(), strict=True)):
            mine.bias[s].copy_(state.tensors[f"buffers/{i}.bias"])
            theirs.bias[s].copy_(state.tensors[f"buffers/{i}.bias"])

    def _state(self, s: int) -> ModelState:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            moments = self._adam.state[self._views[s][name]]
            tensors[f"weights/{name}"] = parameter.data[s]
            tensors[f"ema/{name}"] = self._average_parameters[name].data[s]
            tensors[f"first/{name}"] = moments["exp_avg"]
            tensors[f"second/{name}"] = moments["exp_avg_sq"]
        for i, layer in enumerate(self.model.moe_layers()):
            tensors[f"buffers/{i}.bias"] = layer.bias[s]
        return ModelState(self.steps[s], {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()})


def initial_state(config: ProxyConfig, seed: int) -> ModelState:
    """Return a freshly drawn model at step 0; a function of shape and seed alone."""
    model = ProxyStack(config, 1).initialize([torch.Generator().manual_seed(seed % 2**63)])
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()[0]
        tensors |= {f"weights/{name}": value, f"ema/{name}": value.clone()}
        tensors |= {f"first/{name}": torch.zeros_like(value), f"second/{name}": torch.zeros_like(value)}
    for i, layer in enumerate(model.moe_layers()):
        tensors[f"buffers/{i}.bias"] = layer.bias[0]
    return ModelState(0, tensors)
