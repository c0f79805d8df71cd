"""What a training run is worth: knowledge gradient and expected improvement of a composite objective.

An action a = (mixture, rung, trial) shows each column once. Column j's posterior mean
at pool point m and the target rung then moves by c_j(m, a) / sqrt(s_j(a)) * N(0, 1),
where c_j is the posterior covariance of the point with the observation and s_j the
observation's variance, noise included; errors of columns are correlated (Frazier et al. 2009, "The knowledge-gradient
policy for correlated normal beliefs", Section 2.2). With h(m; u) the objective of the
moved means and m0 today's best point, the value is

    E_u [ h(m0; u) - min_m h(m; u) ]  >= 0

by 128 fixed, antithetic quasi-random normals, so that a gain less likely than about
1 in 128 reads 0. For a sum this equals the drop of the
minimum of the posterior mean; for a maximum h composes means (certainty equivalent:
the spread inside the maximum is left out), and the value stays non-negative.
Rungs that the run passes below its last one are not credited.

A run at the target also verifies its mixture. Its expected improvement is E[(f(b) - f(a))+]
over the joint posterior of the run's mixture a and the best verified one b; before any
target run, b is the average mixture of the pool (Jones et al. 1998, Section 4.1, on the
contrast, in which what all mixtures share cancels).

J columns, M pool points, S normals, B actions, K domains; objective units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.utils.sampling import draw_sobol_normal_samples
from torch import Tensor

from mixopt.convex import KLPenalty, Reduction

from . import gp
from .convex import penalty_tensor, reduce_tensor
from .encoding import Encoded, Encoder
from .surrogate import Column
from .witness import Witness

NUM_NORMALS = 128
_CHUNK = 256
_PROMISING, _FEW = 48, 8  # mixtures measured by all normals; pairs of normals for the others
_MAY_BE_BEST = 0.05
ENOUGH_NATS = 3.0  # 20 to 1, as for the predictor (`doubt.py`)
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
        correlation: (J, J) correlation of the columns' errors.
        closed: Whether only these may be, not the mixture of any run.
        verified: Indices of the pool's mixtures that were measured at the target.
        alternatives: What would be believed under other links of the cheap rungs, equally probable.
        witness: What target runs tell of the links; None where they are known, or judged by two runs already.
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
    correlation: Tensor
    closed: bool = False
    verified: tuple[int, ...] = ()
    alternatives: tuple[Beliefs, ...] = ()
    witness: Witness | None = None
    rows: tuple[gp.Prepared, ...] = field(init=False)
    halves: tuple[Tensor, ...] = field(init=False)
    means: Tensor = field(init=False)
    penalties: Tensor = field(init=False)

    def __post_init__(self) -> None:
        rows = tuple(column.rows(self.encoded, column.target) for column in self.columns)
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
        values = self.samples(_BAR_SAMPLES, _BAR_SEED)
        objective = self.objective()
        beats = (values <= values[:, objective.argmin()][:, None]).double().mean(0)
        return float(objective[beats >= _MAY_BE_BEST].max())

    def samples(self, num: int, seed: int) -> Tensor:
        """Return (num, M) joint posterior samples of the objective over the pool, penalty included."""
        size = (num, len(self.columns), len(self.pool))
        normals = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        together = torch.einsum("jk,skm->jsm", self.shared, normals)
        draws = [
            mean + z @ _root(column.covariance(rows)).T
            for mean, z, column, rows in zip(self.means.T, together, self.columns, self.rows, strict=True)
        ]
        return reduce_tensor(self.reduction, torch.stack(draws, dim=-1)) + self.penalties

    def run_noise(self) -> float:
        """Return the standard deviation of the objective of one run at the target, between seeds."""
        best = int(self.objective().argmin())
        rows = [rows.select(torch.tensor([best])) for rows in self.rows]
        stds = [
            column.deviation * column.posterior.kernel.noise(row).sqrt()
            for column, row in zip(self.columns, rows, strict=True)
        ]
        normals = antithetic_normals(_BAR_SAMPLES, len(self.columns), _BAR_SEED)
        shown = self.means[best] + (normals @ self.shared.T) * torch.cat(stds)
        return float(reduce_tensor(self.reduction, shown).std(correction=0))

    @cached_property
    def shared(self) -> Tensor:
        """(J, J) root of the correlation: times independent normals, it gives correlated ones."""
        return _root(self.correlation)

    def predicted(self, weights: Tensor) -> Tensor:
        """Return (B,) objectives of the posterior means of (B, K) mixtures, penalty included."""
        encoded = self.encoder.encode(weights)
        means = torch.stack([c.mean(c.rows(encoded, c.target)) for c in self.columns], dim=-1)
        return reduce_tensor(self.reduction, means) + penalty_tensor(self.penalty, weights)

    def may_be_best(self, weights: Tensor) -> Tensor:
        """Return (B,) whether (B, K) mixtures are predicted within the bar."""
        able = self.predicted(weights) <= self.bar + 1e-12
        return reduce(torch.logical_or, (other.may_be_best(weights) for other in self.alternatives), able)

    def believe(self, weights: Tensor, rungs: Sequence[int], group: float) -> Beliefs:
        """Add a pending run of (K,) weights that will be observed at some rungs."""
        encoded = self.encoder.encode(weights.expand(len(rungs), -1))
        where = torch.tensor(rungs)
        columns = tuple(column.believe(encoded, where, group) for column in self.columns)
        same = torch.nonzero((self.pool == weights).all(-1))[:, 0].tolist()
        target = self.columns[0].target in rungs
        verified = tuple(sorted({*self.verified, *same})) if target else self.verified
        others = tuple(other.believe(weights, rungs, group) for other in self.alternatives)
        witness = self.witness and self.witness.believe(weights, where, group)
        return replace(self, columns=columns, verified=verified, alternatives=others, witness=witness)

    @cached_property
    def yardstick(self) -> Tensor:
        """(M,) weights of the pool's mixtures in what a target run is to improve on."""
        num = len(self.pool)
        if not self.verified:
            return torch.full((num,), 1 / num, dtype=torch.float64)
        values = self.objective()[list(self.verified)]
        weights = torch.zeros(num, dtype=torch.float64)
        weights[self.verified[int(values.argmin())]] = 1.0
        return weights

    def improvement(self, weights: Tensor, normals: Tensor) -> Tensor:
        """Return (B,) expected improvements of (B, K) mixtures on the yardstick; normals (S, J).

        What a cheap rung's favorite is worth depends on how the rung is linked to the target: the average
        over what is still possible. The first target run trusts the cheap rungs; the second one has to
        tell whether they deserve it. If no mixture's columns would, it is chosen as if they misled (by the
        lowest of the alternatives): two runs that believe them cannot disagree.
        """
        if self.alternatives:
            second = self.witness is not None and len(self.verified) == 1
            if second and not self._can_tell:
                return self.alternatives[0].improvement(weights, normals)
            averaged = torch.stack([other.improvement(weights, normals) for other in self.alternatives]).mean(0)
            return averaged * self._tells(weights) if second else averaged
        encoded, against = self.encoder.encode(weights), self.yardstick
        terms = [self._contrast(index, encoded) for index in range(len(self.columns))]
        means, stds = (torch.stack([term[i] for term in terms], dim=-1) for i in (0, 1))
        levels = against @ self.means
        drift = penalty_tensor(self.penalty, weights) - against @ self.penalties
        if self.reduction.kind == "sum":
            factors = torch.as_tensor(self.reduction.weights.copy())
            return _expected_positive(-(means @ factors) - drift, ((stds * factors) @ self.shared).norm(dim=-1))
        moved = reduce_tensor(self.reduction, levels + means + (normals @ self.shared.T)[:, None] * stds)
        return (reduce_tensor(self.reduction, levels[None])[0] - moved - drift).clamp_min(0).mean(0)

    @cached_property
    def _can_tell(self) -> bool:
        return bool(self._tells(self.pool).any())

    def _tells(self, weights: Tensor) -> Tensor:
        assert self.witness is not None
        return self.witness.nats(weights) >= ENOUGH_NATS

    def _contrast(self, index: int, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Return (B,) means and standard deviations of f(a) - f(b) in one column."""
        column, against = self.columns[index], self.yardstick
        process, half = column.posterior, self.halves[index]
        used = against > 0
        rows, pool = column.rows(encoded, column.target), self.rows[index].select(used)
        share = against[used]
        own_half = process.half(rows)
        half_b = half[:, used] @ share
        var_b = share @ process.kernel.matrix(pool, pool) @ share - half_b @ half_b
        var_a = process.kernel.pairs(rows, rows) - own_half.square().sum(0)
        between = process.kernel.matrix(rows, pool) @ share - own_half.T @ half_b
        mean = column.mean(rows) - against @ self.means[:, index]
        return mean, column.deviation * (var_a + var_b - 2 * between).clamp_min(1e-12).sqrt()


def _root(covariance: Tensor) -> Tensor:
    """Return a lower Cholesky factor; what rounding made negative is lifted."""
    lift = 1e-12 + 1e-6 * covariance.diagonal().mean()
    factor: Tensor = torch.linalg.cholesky(covariance + lift * torch.eye(len(covariance), dtype=covariance.dtype))
    return factor


def _expected_positive(mean: Tensor, std: Tensor) -> Tensor:
    """Return E[max(0, z)] of normals."""
    normal = torch.distributions.Normal(0.0, 1.0)
    ratio = mean / std
    expected: Tensor = std * (ratio * normal.cdf(ratio) + normal.log_prob(ratio).exp()).clamp_min(0)
    return expected


class KnowledgeGradient(AcquisitionFunction):  # type: ignore[misc]
    """Expected gain of one observation at one rung, in objective units over `unit`.

    Args:
        beliefs: Where we stand.
        normals: (S, J) base samples.
        rung: Number of the action's rung.
        group: Number of the trial the action continues, or a fresh one.
        unit: Divides the value, so that optimizers see numbers near 1.
    """

    def __init__(self, beliefs: Beliefs, normals: Tensor, rung: int, group: float, unit: float = 1.0) -> None:
        super().__init__(model=None)
        self.beliefs, self.normals = beliefs, normals @ beliefs.shared.T
        self.rung, self.group, self.unit = rung, group, unit

    def forward(self, X: Tensor) -> Tensor:
        """Return (B,) values of (B, 1, K) mixtures."""
        groups = torch.full((len(X),), self.group, dtype=torch.float64)
        return self.gain(X[:, 0], groups) / self.unit

    def gain(self, weights: Tensor, groups: Tensor) -> Tensor:
        """Return (B,) gains of observing (B, K) mixtures, as trials numbered (B,).

        Of many mixtures all but the most promising ones are measured by fewer normals.
        """
        if len(weights) <= 2 * _PROMISING:
            return self._gain(weights, groups, self.normals)
        few = torch.cat([self.normals[:_FEW], self.normals[len(self.normals) // 2 :][:_FEW]])
        starts = range(0, len(weights), _CHUNK)
        rough = torch.cat([self._gain(weights[i : i + _CHUNK], groups[i : i + _CHUNK], few) for i in starts])
        best = rough.argsort(descending=True, stable=True)[:_PROMISING]
        gains = torch.minimum(rough, rough[best[-1]])
        gains[best] = self._gain(weights[best], groups[best], self.normals)
        return gains

    def _gain(self, weights: Tensor, groups: Tensor, normals: Tensor) -> Tensor:
        encoded = self.beliefs.encoder.encode(weights)
        parts = [self._column(index, encoded, groups) for index in range(len(self.beliefs.columns))]
        means, steps = [mean for mean, _ in parts], [step for _, step in parts]
        penalties = self.beliefs.penalties.expand(len(weights), -1)
        if not self.beliefs.closed:
            penalties = torch.cat([penalties, penalty_tensor(self.beliefs.penalty, weights)[:, None]], dim=-1)
        best = (reduce_tensor(self.beliefs.reduction, torch.stack(means, dim=-1)) + penalties).argmin(-1)
        moved = self._moved(means, steps, normals) + penalties
        today = moved.gather(-1, best[None, :, None].expand(len(moved), -1, 1))[..., 0]
        return (today - moved.min(-1).values).mean(0)

    def _column(self, index: int, encoded: Encoded, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, M+1) means and steps of one column: the pool, then the action's mixture (unless closed)."""
        column, pool_half = self.beliefs.columns[index], self.beliefs.halves[index]
        process, kernel = column.posterior, column.posterior.kernel
        action = column.rows(encoded, self.rung, groups)
        half = process.half(action)
        variance = (kernel.pairs(action, action) - half.square().sum(0)).clamp_min(1e-12) + kernel.noise(action)
        unit = (column.deviation / variance.sqrt())[:, None]
        steps = kernel.matrix(action, self.beliefs.rows[index]) - half.T @ pool_half
        means = self.beliefs.means[:, index].expand(len(groups), -1)
        if self.beliefs.closed:
            return means, steps * unit
        own = column.rows(encoded, column.target)
        to_train = kernel.matrix(process.own, own)
        itself = kernel.pairs(own, action) - (process.whiten(to_train) * half).sum(0)
        means = torch.cat([means, column.mean_from(own, to_train)[:, None]], dim=-1)
        return means, torch.cat([steps, itself[:, None]], dim=-1) * unit

    def _moved(self, means: list[Tensor], steps: list[Tensor], normals: Tensor) -> Tensor:
        """Return (S, B, M+1) objectives of the moved means, without penalty."""
        factors = torch.as_tensor(self.beliefs.reduction.weights.copy())
        if self.beliefs.reduction.kind == "sum":
            step = torch.stack(steps)
            moves = (normals * factors) @ step.reshape(len(steps), -1)
            return moves.reshape(-1, *step.shape[1:]) + reduce_tensor(
                self.beliefs.reduction, torch.stack(means, dim=-1)
            )
        terms = (
            f * (mean + u[:, None, None] * step)
            for f, u, mean, step in zip(factors, normals.T, means, steps, strict=True)
        )
        return torch.as_tensor(reduce(torch.maximum, terms))
