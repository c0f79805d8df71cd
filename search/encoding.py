"""What the surrogate sees: mixtures as scaled log weights and predicted losses, histories as rows.

The predictor is NumPy; here it becomes a differentiable step. K domains, J columns the
predictor knows, M mixtures, N observations. Nothing is fitted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixopt import seeding
from mixopt.constraints import Constraints
from mixopt.errors import ConfigError
from mixopt.fidelity import Ladder
from mixopt.mixture import Array
from mixopt.observation import History, Role, Trial
from mixopt.protocols import Predictor

from . import simplex

LOG_OFFSET = 0.001  # log(w + 0.001) ranked best of the input maps tried; 0.03 was worse (METHODS 2.4)
NUM_SCALE_SAMPLES = 256
LEAST_SCALE = 0.01  # nats per token: a narrower spread over the polytope is below seed noise (PROXIES 5)


class _Predict(torch.autograd.Function):
    """A NumPy predictor as a differentiable step: (M, K) weights -> (M, J) losses."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, predictor: Predictor) -> Tensor:
        points = _on_simplex(weights.detach().numpy())
        ctx.points, ctx.predictor, ctx.slopes = points, predictor, None
        return torch.tensor(predictor.predict(points), dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if ctx.slopes is None:  # columns are differentiated one by one, the predictor only once
            ctx.slopes = ctx.predictor.gradient(ctx.points)
        return torch.tensor(np.einsum("mj,mjk->mk", grads[0].numpy(), ctx.slopes), dtype=torch.float64), None


def _on_simplex(weights: Array) -> Array:
    positive = np.maximum(weights, 0.0)
    return np.asarray(positive / positive.sum(-1, keepdims=True), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Mixtures as the processes see them.

    Attributes:
        inputs: (M, K) log weights, scaled to [0, 1].
        losses: (M, J) the predictor's losses, nats per token.
    """

    inputs: Tensor
    losses: Tensor


@dataclass(frozen=True, eq=False)
class Encoder:
    """Turns mixtures, rungs and trials into rows; knows the predictor and its spread.

    Attributes:
        predictor: Prior mean, or None.
        known: Columns the predictor knows, as `loss/<name>`.
        centers: (J,) mean loss over feasible mixtures, nats per token.
        scales: (J,) spread of the loss over feasible mixtures, nats per token.
    """

    predictor: Predictor | None
    known: tuple[str, ...]
    centers: Array
    scales: Array

    @classmethod
    def of(cls, predictor: Predictor | None, constraints: Constraints, seed: int) -> Encoder:
        """Measure the predictor's losses over a seeded sample of feasible mixtures."""
        if predictor is None:
            return cls(None, (), np.zeros(0), np.zeros(0))
        if tuple(predictor.domains) != constraints.domains:
            raise ConfigError(
                f"the predictor must have the domains {', '.join(constraints.domains)} in this order, "
                f"got {', '.join(predictor.domains)}; build both from the same study"
            )
        points = simplex.sample(constraints, NUM_SCALE_SAMPLES, seeding.generator(seed, "surrogate", "scale"))
        losses = predictor.predict(points)
        names = tuple(f"loss/{name}" for name in predictor.eval_sets)
        return cls(predictor, names, losses.mean(0), np.maximum(losses.std(0), LEAST_SCALE))

    def encode(self, weights: Tensor) -> Encoded:
        """Encode (M, K) weights; differentiable."""
        low, high = np.log(LOG_OFFSET), np.log(1 + LOG_OFFSET)
        inputs = ((weights.clamp_min(0) + LOG_OFFSET).log() - low) / (high - low)
        if self.predictor is None:
            return Encoded(inputs, torch.zeros(len(weights), 0, dtype=torch.float64))
        return Encoded(inputs, _Predict.apply(weights, self.predictor))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class Evidence:
    """The rows of a history that a surrogate learns from, one per observation.

    Attributes:
        weights: (N, K).
        positions: (N,) rung positions in [0, 1].
        groups: (N,) numbers of the trials' roots: a continuation shares its parent's.
        expert: (N,) whether the row is a data expert's.
        columns: Per row {column: value}.
        noise: Per row {column: known standard deviation}.
        roots: {trial id: number}, pending trials included.
    """

    weights: Array
    positions: Array
    groups: Array
    expert: Array
    columns: tuple[Mapping[str, float], ...]
    noise: tuple[Mapping[str, float], ...]
    roots: Mapping[str, int]

    @classmethod
    def of(cls, history: History, ladder: Ladder, domains: Sequence[str]) -> Evidence:
        """Collect search and expert observations; validation runs stay an honest test."""
        trials = {trial.id: trial for trial in history.trials if trial.role is not Role.VALIDATION}
        numbers = {trial_id: number for number, trial_id in enumerate(trials)}
        roots = {trial_id: numbers[_root(trial, trials)] for trial_id, trial in trials.items()}
        rows = [obs for obs in history.observations if obs.trial in trials]
        weights = [trials[obs.trial].mixture.over(domains).weights for obs in rows]
        return cls(
            np.array(weights, dtype=np.float64).reshape(-1, len(domains)),
            np.array([ladder.position(obs.fidelity) for obs in rows]),
            np.array([float(roots[obs.trial]) for obs in rows]),
            np.array([trials[obs.trial].role is Role.EXPERT for obs in rows], dtype=bool),
            tuple(obs.columns() for obs in rows),
            tuple(dict(obs.noise or {}) for obs in rows),
            roots,
        )

    def plain(self) -> list[Any]:
        """Return plain data that determines every fit."""
        arrays = [self.weights.tolist(), self.positions.tolist(), self.groups.tolist(), self.expert.tolist()]
        return [*arrays, list(self.columns), list(self.noise)]

    def select(self, name: str, *, experts: bool) -> Array:
        """Return indices of the rows that have a column; an expert's only if `experts`."""
        return np.array(
            [i for i, row in enumerate(self.columns) if name in row and (experts or not self.expert[i])], dtype=int
        )


def _root(trial: Trial, trials: Mapping[str, Trial]) -> str:
    while trial.parent is not None and trial.parent in trials:
        trial = trials[trial.parent]
    return trial.id
