"""What the surrogate sees: mixtures as log and root weights and predicted columns, histories as rows.

The predictor is NumPy; here it becomes a differentiable step. K domains, J columns the
predictor knows, M mixtures, N observations. Nothing is fitted here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixopt import seeding
from mixopt.constraints import Constraints
from mixopt.errors import ConfigError
from mixopt.fidelity import Ladder
from mixopt.mixture import Array
from mixopt.objective import Objective
from mixopt.observation import History, Role, Trial
from mixopt.protocols import Predictor

from . import simplex
from .pool import Pool

LOG_OFFSET = 0.001  # log(w + 0.001) ranked best of the input maps tried; 0.03 was worse (METHODS 2.4)
NUM_SCALE_SAMPLES = 256
# A narrower spread over the polytope is below seed noise: of losses 0.01 to 0.06 nats per token, of
# accuracies 0.003 to 0.012 (four replicates of our own runs).
LEAST_SCALE = 0.01
_LEAST_SPREAD = 1e-6  # of mixtures: below, they are all the same one
_REMEMBERED = 64  # arrays of mixtures whose predictions are kept


class _Predict(torch.autograd.Function):
    """A NumPy predictor as a differentiable step: (M, K) weights -> (M, J) columns."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, predictor: Predictor, memory: OrderedDict[bytes, Array]) -> Tensor:
        points = _on_simplex(weights.detach().numpy())
        ctx.points, ctx.predictor, ctx.slopes = points, predictor, None
        # One decision asks for the same pool under every rung, every link and every pending run.
        key = points.tobytes()
        if key not in memory:
            memory[key] = predictor.predict(points)
            while len(memory) > _REMEMBERED:
                memory.popitem(last=False)
        memory.move_to_end(key)
        return torch.tensor(memory[key], dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        if ctx.slopes is None:  # columns are differentiated one by one, the predictor only once
            ctx.slopes = ctx.predictor.gradient(ctx.points)
        return torch.tensor(np.einsum("mj,mjk->mk", grads[0].numpy(), ctx.slopes), dtype=torch.float64), None, None


def _on_simplex(weights: Array) -> Array:
    positive = np.maximum(weights, 0.0)
    return np.asarray(positive / positive.sum(-1, keepdims=True), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Mixtures as the processes see them.

    Attributes:
        inputs: (M, 2K) log and root weights; two typical mixtures are a distance of 1 apart.
        linear: (M, K) weights, centered; of variance 1 in total.
        predicted: (M, J) the predictor's columns.
    """

    inputs: Tensor
    linear: Tensor
    predicted: Tensor


@dataclass(frozen=True, eq=False)
class Encoder:
    """Turns mixtures, rungs and trials into rows; knows the predictor and all spreads.

    Attributes:
        predictor: Prior mean, or None.
        known: Columns the predictor knows.
        centers: (J,) mean of the column over typical mixtures.
        scales: (J,) spread of the column over typical mixtures.
        mean: (K,) mean of typical mixtures.
        unit: Root mean squared distance of two of them, after the input map.
        width: Root of the total variance of their weights.
    """

    predictor: Predictor | None
    known: tuple[str, ...]
    centers: Array
    scales: Array
    mean: Array
    unit: float
    width: float
    _memory: OrderedDict[bytes, Array] = field(default_factory=OrderedDict, init=False, repr=False)

    @classmethod
    def of(cls, predictor: Predictor | None, constraints: Constraints, seed: int, pool: Pool | None = None) -> Encoder:
        """Measure spreads over a pool, or over a seeded sample of feasible mixtures."""
        if predictor is not None and tuple(predictor.domains) != constraints.domains:
            raise ConfigError(
                f"the predictor must have the domains {', '.join(constraints.domains)} in this order, "
                f"got {', '.join(predictor.domains)}; build both from the same study"
            )
        rng = seeding.generator(seed, "surrogate", "scale")
        points = (
            simplex.sample(constraints, NUM_SCALE_SAMPLES, rng) if pool is None else np.unique(pool.weights, axis=0)
        )
        mapped = _input_map(torch.tensor(points)).numpy()
        spreads = {
            "mean": points.mean(0),
            "unit": max(_LEAST_SPREAD, float(np.sqrt(2 * mapped.var(0).sum()))),
            "width": max(_LEAST_SPREAD, float(np.sqrt(points.var(0).sum()))),
        }
        if predictor is None:
            return cls(None, (), np.zeros(0), np.zeros(0), **spreads)
        known = predictor.predict(points)
        return cls(predictor, predictor.columns, known.mean(0), np.maximum(known.std(0), LEAST_SCALE), **spreads)

    def index(self, name: str) -> int | None:
        """Return a column's place among those the predictor knows, or None."""
        return self.known.index(name) if name in self.known else None

    def encode(self, weights: Tensor) -> Encoded:
        """Encode (M, K) weights; differentiable."""
        inputs = _input_map(weights) / self.unit
        linear = (weights - torch.tensor(self.mean)) / self.width
        if self.predictor is None:
            return Encoded(inputs, linear, torch.zeros(len(weights), 0, dtype=torch.float64))
        return Encoded(inputs, linear, _Predict.apply(weights, self.predictor, self._memory))  # type: ignore[no-untyped-call]


def _input_map(weights: Tensor) -> Tensor:
    """Return (M, 2K) log and root weights, both from 0 to 1.

    The log ranks unseen mixtures better than the root; both together rank as well as the
    log and are calibrated a little better (docs/log.md). The slope of the root is bounded
    at 0 by a tiny offset.
    """
    low, high = np.log(LOG_OFFSET), np.log(1 + LOG_OFFSET)
    positive = weights.clamp_min(0)
    return torch.cat([((positive + LOG_OFFSET).log() - low) / (high - low), (positive + 1e-6).sqrt()], dim=-1)


@dataclass(frozen=True, eq=False)
class Evidence:
    """The rows of a history that a surrogate learns from, one per observation.

    Attributes:
        weights: (N, K).
        rungs: (N,) numbers of the rungs.
        groups: (N,) numbers of the trials' roots: a continuation shares its parent's.
        expert: (N,) whether the row is a data expert's.
        columns: Per row {column: value}.
        noise: Per row {column: known standard deviation}.
        roots: {trial id: number}, pending trials included.
        positions: (R,) positions of the ladder's rungs in [0, 1], the target last.
    """

    weights: Array
    rungs: Array
    groups: Array
    expert: Array
    columns: tuple[Mapping[str, float], ...]
    noise: tuple[Mapping[str, float], ...]
    roots: Mapping[str, int]
    positions: Array

    @cached_property
    def mixtures(self) -> Array:
        """(N,) number of each row's mixture: the same one for replicates, rungs and continuations."""
        return np.asarray(np.unique(self.weights, axis=0, return_inverse=True)[1].reshape(-1))

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
            np.array([ladder.index(obs.fidelity) for obs in rows], dtype=int),
            np.array([float(roots[obs.trial]) for obs in rows]),
            np.array([trials[obs.trial].role is Role.EXPERT for obs in rows], dtype=bool),
            tuple(obs.columns() for obs in rows),
            tuple(dict(obs.noise or {}) for obs in rows),
            roots,
            np.array([ladder.position(rung.name) for rung in ladder]),
        )

    def plain(self, chosen: Array | None = None, name: str | None = None) -> list[Any]:
        """Return plain data that determines every fit; of some rows, or of one column's, if asked."""
        rows = np.arange(len(self.rungs)) if chosen is None else chosen
        arrays = [values[rows].tolist() for values in (self.weights, self.rungs, self.groups, self.expert)]
        if name is None:
            return [*arrays, [dict(self.columns[i]) for i in rows], [dict(self.noise[i]) for i in rows]]
        return [*arrays, [self.columns[i][name] for i in rows], [self.noise[i].get(name, 0.0) for i in rows]]

    def combined(self, name: str, objective: Objective) -> Evidence:
        """Return the same rows with the objective as their only column, where they have all of its columns."""
        values: list[dict[str, float]] = [
            {name: float(objective.value(row))} if all(column in row for column in objective.columns) else {}
            for row in self.columns
        ]
        return replace(self, columns=tuple(values), noise=({},) * len(values))

    def select(self, name: str, *, experts: bool) -> Array:
        """Return indices of the rows that have a column; an expert's only if `experts`."""
        return np.array(
            [i for i, row in enumerate(self.columns) if name in row and (experts or not self.expert[i])], dtype=int
        )


def _root(trial: Trial, trials: Mapping[str, Trial]) -> str:
    while trial.parent is not None and trial.parent in trials:
        trial = trials[trial.parent]
    return trial.id
