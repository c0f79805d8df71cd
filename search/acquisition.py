"""What a training run is worth: discrete knowledge gradient of a composite objective.

An action a = (mixture, rung, trial) shows each column once. Column j's posterior mean
at pool point m and the target rung then moves by c_j(m, a) / sqrt(s_j(a)) * N(0, 1),
where c_j is the posterior covariance of the point with the observation and s_j the
observation's variance, noise included (Frazier et al. 2009, "The knowledge-gradient
policy for correlated normal beliefs", Section 2.2). With h(m; u) the objective of the
moved means and m0 today's best point, the value is

    E_u [ h(m0; u) - min_m h(m; u) ]  >= 0

by 128 fixed, antithetic quasi-random normals, so that a gain less likely than about
1 in 128 reads 0. For a sum this equals the drop of the
minimum of the posterior mean; for a maximum h composes means (certainty equivalent:
the spread inside the maximum is left out), and the value stays non-negative.
Rungs that the run passes below its last one are not credited.

J columns, M pool points, S normals, B actions, K domains; objective units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.utils.sampling import draw_sobol_normal_samples
from torch import Tensor

from mixopt.convex import KLPenalty, Reduction

from .convex import penalty_tensor, reduce_tensor
from .encoding import Encoded, Encoder
from .surrogate import Column

NUM_NORMALS = 128
TARGET = 1.0  # position of the target rung
_CHUNK = 64
_MAY_BE_BEST = 0.05
_BAR_SAMPLES = 256
_BAR_SEED = 0


def antithetic_normals(num: int, dimension: int, seed: int) -> Tensor:
    """Return (num, dimension) scrambled Sobol normals and their mirror images; their mean is 0."""
    half = draw_sobol_normal_samples(d=dimension, n=num // 2, dtype=torch.float64, seed=seed % 2**31)
    return torch.cat([half, -half])


@dataclass(frozen=True, eq=False)
class Beliefs:
    """Posterior of all columns at the target rung over a pool of mixtures.

    Attributes:
        encoder: From mixtures to rows.
        columns: J posteriors, pending runs believed.
        reduction: From columns to the objective.
        penalty: Added to the objective.
        pool: (M, K) mixtures that may be recommended.
        encoded: The pool, encoded.
        rows: Per column, the pool at the target rung.
        halves: Per column, the pool's whitened covariances (N, M).
        means: (M, J) posterior means.
        penalties: (M,) penalties.
    """

    encoder: Encoder
    columns: tuple[Column, ...]
    reduction: Reduction
    penalty: KLPenalty
    pool: Tensor
    encoded: Encoded
    rows: tuple[Tensor, ...] = field(init=False)
    halves: tuple[Tensor, ...] = field(init=False)
    means: Tensor = field(init=False)
    penalties: Tensor = field(init=False)

    def __post_init__(self) -> None:
        rows = tuple(column.rows(self.encoded, TARGET) for column in self.columns)
        pairs = list(zip(self.columns, rows, strict=True))
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "halves", tuple(column.posterior.half(r) for column, r in pairs))
        object.__setattr__(self, "means", torch.stack([column.mean(r) for column, r in pairs], dim=-1))
        object.__setattr__(self, "penalties", penalty_tensor(self.penalty, self.pool))

    def objective(self) -> Tensor:
        """Return (M,) objectives of the posterior means, penalty included."""
        return reduce_tensor(self.reduction, self.means) + self.penalties

    @cached_property
    def bar(self) -> float:
        """The largest predicted objective of a pool point that may still be the best.

        A point may be if it beats today's best in at least one of 20 joint posterior
        samples, where what is common to both (the shift) cancels.
        """
        generator = torch.Generator().manual_seed(_BAR_SEED)
        draws = torch.randn(len(self.columns), _BAR_SAMPLES, len(self.pool), generator=generator, dtype=torch.float64)
        samples = [c.samples(rows, z) for c, rows, z in zip(self.columns, self.rows, draws, strict=True)]
        values = reduce_tensor(self.reduction, torch.stack(samples, dim=-1)) + self.penalties
        objective = self.objective()
        beats = (values <= values[:, objective.argmin()][:, None]).double().mean(0)
        return float(objective[beats >= _MAY_BE_BEST].max())

    def may_be_best(self, weights: Tensor) -> Tensor:
        """Return (B,) whether (B, K) mixtures are predicted within the bar."""
        encoded = self.encoder.encode(weights)
        means = torch.stack([c.mean(c.rows(encoded, TARGET)) for c in self.columns], dim=-1)
        return reduce_tensor(self.reduction, means) + penalty_tensor(self.penalty, weights) <= self.bar + 1e-12

    def believe(self, weights: Tensor, positions: Sequence[float], group: float) -> Beliefs:
        """Add a pending run of (K,) weights that will be observed at some rungs."""
        encoded = self.encoder.encode(weights.expand(len(positions), -1))
        where = torch.tensor(positions, dtype=torch.float64)
        columns = tuple(column.believe(column.rows(encoded, where, group)) for column in self.columns)
        return Beliefs(self.encoder, columns, self.reduction, self.penalty, self.pool, self.encoded)


class KnowledgeGradient(AcquisitionFunction):  # type: ignore[misc]
    """Expected gain of one observation at one rung, in objective units over `unit`.

    Args:
        beliefs: Where we stand.
        normals: (S, J) base samples.
        position: Rung position of the action.
        group: Number of the trial the action continues, or a fresh one.
        unit: Divides the value, so that optimizers see numbers near 1.
    """

    def __init__(self, beliefs: Beliefs, normals: Tensor, position: float, group: float, unit: float = 1.0) -> None:
        super().__init__(model=None)
        self.beliefs, self.normals = beliefs, normals
        self.position, self.group, self.unit = position, group, unit

    def forward(self, X: Tensor) -> Tensor:
        """Return (B,) values of (B, 1, K) mixtures."""
        groups = torch.full((len(X),), self.group, dtype=torch.float64)
        return self.gain(X[:, 0], groups) / self.unit

    def gain(self, weights: Tensor, groups: Tensor) -> Tensor:
        """Return (B,) gains of observing (B, K) mixtures, as trials numbered (B,)."""
        starts = range(0, len(weights), _CHUNK)
        return torch.cat([self._gain(weights[i : i + _CHUNK], groups[i : i + _CHUNK]) for i in starts])

    def _gain(self, weights: Tensor, groups: Tensor) -> Tensor:
        encoded = self.beliefs.encoder.encode(weights)
        means, steps = [], []
        for index in range(len(self.beliefs.columns)):
            mean, step = self._column(index, encoded, groups)
            means.append(mean)
            steps.append(step)
        own_penalty = penalty_tensor(self.beliefs.penalty, weights)[:, None]
        penalties = torch.cat([self.beliefs.penalties.expand(len(weights), -1), own_penalty], dim=-1)
        best = (reduce_tensor(self.beliefs.reduction, torch.stack(means, dim=-1)) + penalties).argmin(-1)
        moved = self._moved(means, steps) + penalties
        today = moved.gather(-1, best[None, :, None].expand(len(moved), -1, 1))[..., 0]
        return (today - moved.min(-1).values).mean(0)

    def _column(self, index: int, encoded: Encoded, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, M+1) means and steps of one column: the pool, then the action's mixture."""
        column, pool_half = self.beliefs.columns[index], self.beliefs.halves[index]
        process, num = column.posterior, len(groups)
        action, own = column.rows(encoded, self.position, groups), column.rows(encoded, TARGET)
        # One call for all covariances: [train; pool] with [action; own], then the pairs.
        everything = torch.cat([process.rows, self.beliefs.rows[index]])
        covariance = process.kernel.forward(everything, torch.cat([action, own]))
        to_train, to_pool = covariance[: len(process.rows)], covariance[len(process.rows) :]
        pairs = process.kernel.forward(torch.cat([action, own]), torch.cat([action, action]), diag=True)
        halves = torch.linalg.solve_triangular(process.factor, to_train, upper=False)
        half, own_half = halves[:, :num], halves[:, num:]
        variance = (pairs[:num] - half.square().sum(0)).clamp_min(1e-12) + process.noise
        across = to_pool[:, :num].T - half.T @ pool_half
        itself = pairs[num:] - (own_half * half).sum(0)
        steps = torch.cat([across, itself[:, None]], dim=-1) * (column.units.scale / variance.sqrt())[:, None]
        own_mean = column.mean_from(own, to_train[:, num:])
        return torch.cat([self.beliefs.means[:, index].expand(num, -1), own_mean[:, None]], dim=-1), steps

    def _moved(self, means: list[Tensor], steps: list[Tensor]) -> Tensor:
        """Return (S, B, M+1) objectives of the moved means, without penalty."""
        factors = torch.as_tensor(self.beliefs.reduction.weights.copy())
        if self.beliefs.reduction.kind == "sum":
            step = torch.stack(steps)
            moves = (self.normals * factors) @ step.reshape(len(steps), -1)
            return moves.reshape(-1, *step.shape[1:]) + reduce_tensor(
                self.beliefs.reduction, torch.stack(means, dim=-1)
            )
        terms = (
            f * (mean + u[:, None, None] * step)
            for f, u, mean, step in zip(factors, self.normals.T, means, steps, strict=True)
        )
        return torch.as_tensor(reduce(torch.maximum, terms))
