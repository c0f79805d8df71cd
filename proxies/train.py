"""Train a stack of proxies: one loop, any number of models, each to its own end.

A model stops at its last milestone or when it diverges, and leaves the stack without
disturbing the others. Milestones are the rungs it passes: there the caller is handed
the averaged weights. Everything needed to go on is in the checkpoint; batches are a
function of (seed, step).

    S models in the stack
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .checkpoint import ModelState
from .config import ProxyConfig
from .model import ProxyStack
from .optim import StackOptimizer
from .tokens import MixtureSampler

# A model that does worse than twice a uniform guess after warm-up will not come back.
_DIVERGED_FACTOR = 2.0
CURVE_EVERY = 25


@dataclass
class ProxyRun:
    """One model on its way through the milestones.

    Attributes:
        name: Id of its trial.
        sampler: Its data.
        milestones: Steps at which it is handed out, increasing; the last is its end.
        state: Where it starts.
        losses: Training losses since the last curve point, nats per token, all finite.
        curve: (step, mean training loss since the point before); the last one of a model
            that was given up is the last step whose loss was a number.
        diverged: Why it was given up, in words, or empty.
    """

    name: str
    sampler: MixtureSampler
    milestones: tuple[int, ...]
    state: ModelState
    losses: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    diverged: str = ""

    @property
    def end(self) -> int:
        """Its last step."""
        return self.milestones[-1]


@dataclass(frozen=True)
class Milestone:
    """A model that reached a rung.

    Attributes:
        run: The model.
        step: Where it is.
        average: A stack of one with its averaged weights.
        router_loads: Per MoE layer, share of the tokens' choices per feed-forward expert
            since the milestone before; zero is a dead expert.
        active_experts: Mean active feed-forward experts per token and layer since the
            milestone before, or None for a dense proxy.
    """

    run: ProxyRun
    step: int
    average: ProxyStack
    router_loads: list[list[float]]
    active_experts: float | None


class StackTrainer:
    """Trains runs of one shape together.

    Args:
        config: The shape.
        runs: The models; those at their end already are left out.
        device: A torch device; never run on a GPU so far.
    """

    def __init__(self, config: ProxyConfig, runs: Sequence[ProxyRun], device: torch.device) -> None:
        # A rate that decays towards a run's end makes its earlier rungs another recipe.
        assert not config.decay or all(len(run.milestones) == 1 for run in runs)
        self.config, self.device = config, device
        self.runs: list[ProxyRun] = []
        self._stack([run for run in runs if run.state.step < run.end and not run.diverged])

    @property
    def active(self) -> bool:
        """Whether any model is left to train."""
        return bool(self.runs)

    def advance(self, on_milestone: Callable[[Milestone], None]) -> None:
        """Do one step of every model; hand out those at a milestone; drop those at their end."""
        losses, norms = self._train_step()
        for s, run in enumerate(self.runs):
            self._record(run, self._optimizer.steps[s], float(losses[s]), float(norms[s]))
        for s, run in enumerate(self.runs):
            step = self._optimizer.steps[s]
            if not run.diverged and step in run.milestones:
                on_milestone(self._hand_out(s, step))
        if any(run.diverged or step >= run.end for run, step in zip(self.runs, self._optimizer.steps, strict=True)):
            self.sync()
            self._stack([run for run in self.runs if run.state.step < run.end and not run.diverged])

    def sync(self) -> None:
        """Copy the models' current states into their runs, for checkpoints."""
        for run, state in zip(self.runs, self._optimizer.states() if self.runs else [], strict=True):
            run.state = state

    def _stack(self, runs: list[ProxyRun]) -> None:
        self.runs = runs
        if not runs:
            return
        self._model = ProxyStack(self.config, len(runs)).to(self.device)
        self._average = ProxyStack(self.config, len(runs)).to(self.device).requires_grad_(False)
        states, ends = [run.state for run in runs], [run.end for run in runs]
        self._optimizer = StackOptimizer(self._model, self._average, states, ends=ends)

    def _train_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        steps, size = self._optimizer.steps, self.config.batch_size
        tokens = np.stack([run.sampler.batch(step, size) for run, step in zip(self.runs, steps, strict=True)])
        batch_SBL = torch.from_numpy(tokens).to(self.device)
        mean_S = torch.zeros(len(self.runs), device=self.device)
        for part_SBL in batch_SBL.chunk(self.config.accumulate, dim=1):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
                losses_S = self._model.mean_losses(part_SBL[..., :-1], part_SBL[..., 1:])
            ((losses_S + self._model.router_penalty()).sum() / self.config.accumulate).backward()
            mean_S += losses_S.detach() / self.config.accumulate
        return mean_S.cpu(), self._optimizer.step().cpu()

    def _record(self, run: ProxyRun, step: int, loss: float, norm: float) -> None:
        """Add a step to the curve; give the model up if it diverged, its curve closed where it got to."""
        limit = _DIVERGED_FACTOR * math.log(self.config.vocab_size)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            run.diverged = f"diverged: loss {loss:g}, gradient norm {norm:g} at step {step}"
        elif step > self.config.warmup_steps and loss > limit:
            run.diverged = f"diverged: loss {loss:.3g} at step {step}, above {limit:.3g}"
        if math.isfinite(loss):
            run.losses.append(loss)
        if run.losses and (run.diverged or step % CURVE_EVERY == 0 or step in run.milestones):
            reached = step if math.isfinite(loss) else step - 1
            run.curve.append((reached, float(np.mean(run.losses))))
            run.losses.clear()

    def _average_of(self, s: int) -> ProxyStack:
        single = ProxyStack(self.config, 1).to(self.device).requires_grad_(False)
        for mine, stacked in zip(single.parameters(), self._average.parameters(), strict=True):
            mine.copy_(stacked[s : s + 1])
        single.load_routers(0, {name: tensor[s] for name, tensor in self._average.router_state().items()})
        return single

    def _hand_out(self, s: int, step: int) -> Milestone:
        layers = self._model.moe_layers()
        loads = [layer.load(s) for layer in layers]
        active = float(np.mean([layer.active(s) for layer in layers])) if layers else None
        for layer in layers:
            layer.restart(s)
        return Milestone(self.runs[s], step, self._average_of(s), loads, active)


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether training in bfloat16 is slower than in float32 here, by a factor of 8 to 15 as measured.

    So it is on a CPU without AVX-512: its matrix products have no kernel of their own.
    """
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "AVX512"


def restore_average(config: ProxyConfig, state: ModelState, device: torch.device) -> ProxyStack:
    """Return the averaged weights of a saved state as a stack of one."""
    model = ProxyStack(config, 1).to(device).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter[0].copy_(state.tensors[f"ema/{name}"])
    model.load_routers(0, state.tensors)
    return model
