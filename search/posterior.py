"""What the surrogate says: predictions, the best mixture, and how much better another could be.

Aggregates columns to the objective after prediction. A sum is exact; a maximum is
measured on seeded samples. The best mixture minimizes the objective of the posterior
means, which for a maximum leaves out the spread inside it. S samples, M mixtures.
"""

from __future__ import annotations

import numpy as np
import torch

from mixopt import convex, seeding
from mixopt.constraints import Constraints
from mixopt.convex import KLPenalty, Reduction
from mixopt.mixture import Array
from mixopt.objective import Objective

from . import simplex
from .acquisition import Beliefs
from .convex import reduce_tensor
from .surrogate import Surrogate

NUM_SAMPLES = 512
REGRET_LEVEL = 0.95
_MAX_STEPS = 40  # the surrogate is not known to the precision that more would give
_NUM_AROUND = 56
_NUM_FILLING = 80
_NUM_OBSERVED = 60  # the latest ones: older measured mixtures that matter are near the best one
_STRENGTHS = (20.0, 100.0)  # wide and narrow Dirichlet clouds


def predict(
    surrogate: Surrogate, objective: Objective, weights: Array, *, rung: int, seed: int
) -> dict[str, tuple[Array, Array]]:
    """Return {column: (means, standard deviations)}, (M,) each, and `objective`.

    Args:
        surrogate: The posterior.
        objective: What is minimized; penalties are not part of it.
        weights: (M, K) mixtures.
        rung: Number of the rung.
        seed: For the samples of a maximum.
    """
    believed = {}
    with torch.no_grad():
        encoded = surrogate.encoder.encode(torch.tensor(weights))
        for name in dict.fromkeys([*objective.columns, *surrogate.known_columns()]):
            column = surrogate.column(name)
            rows = column.rows(encoded, rung)
            believed[name] = (column.mean(rows).numpy(), column.std(rows).numpy())
    shared = surrogate.correlation(objective.columns)
    believed["objective"] = _aggregate(objective, believed, shared, seeding.generator(seed, "predict"))
    return believed


def _aggregate(
    objective: Objective, believed: dict[str, tuple[Array, Array]], shared: Array, rng: np.random.Generator
) -> tuple[Array, Array]:
    means = np.stack([believed[name][0] for name in objective.columns], axis=-1)
    stds = np.stack([believed[name][1] for name in objective.columns], axis=-1)
    if objective.reduction == "sum":
        weighted = stds * objective.weights
        return means @ objective.weights, np.sqrt(np.einsum("mj,jk,mk->m", weighted, shared, weighted))
    normals = rng.multivariate_normal(np.zeros(means.shape[-1]), shared, size=(NUM_SAMPLES, 1))
    samples = Reduction.of(objective).value(means + stds * np.concatenate([normals, -normals]))
    return np.asarray(samples.mean(0)), np.asarray(samples.std(0))


def best_mixture(
    surrogate: Surrogate, objective: Objective, *, constraints: Constraints, starts: Array, penalty: KLPenalty
) -> Array:
    """Return the feasible (K,) weights with the smallest objective of the posterior means at the target."""
    fitted = [surrogate.column(name) for name in objective.columns]
    reduction = Reduction.of(objective)

    def columns(weights: Array) -> tuple[Array, Array]:
        point = torch.tensor(np.maximum(weights, 0))[None].requires_grad_(True)
        encoded = surrogate.encoder.encode(point)
        values = torch.stack([column.mean(column.rows(encoded, column.target))[0] for column in fitted])
        if reduction.kind == "sum":  # one derivative instead of J
            values = reduce_tensor(reduction, values)[None]
        slopes = [torch.autograd.grad(value, point, retain_graph=True)[0][0] for value in values]
        return values.detach().numpy(), torch.stack(slopes).numpy()

    whole = Reduction(np.ones(1), "sum") if reduction.kind == "sum" else reduction
    return convex.minimize(
        columns, whole, constraints=constraints, starts=starts, penalty=penalty, max_steps=_MAX_STEPS
    )


def scored(surrogate: Surrogate, objective: Objective, weights: Array, penalty: KLPenalty) -> Array:
    """Return (M,) objectives of the posterior means at the target, penalty included."""
    reduction = Reduction.of(objective)
    with torch.no_grad():
        encoded = surrogate.encoder.encode(torch.tensor(weights))
        fitted = [surrogate.column(name) for name in objective.columns]
        means = torch.stack([column.mean(column.rows(encoded, column.target)) for column in fitted], dim=-1)
    return reduction.value(means.numpy()) + penalty.value(weights)


def make_pool(constraints: Constraints, anchors: Array, observed: Array, seed: int) -> Array:
    """Return up to about 260 feasible (M, K) mixtures that may turn out best.

    Args:
        constraints: The polytope.
        anchors: (R, K) optimum of predictor or surrogate; first in the pool, with clouds around them.
        observed: (N, K) mixtures that were measured, oldest first.
        seed: Root seed.
    """
    rng = seeding.generator(seed, "pool", len(observed))
    num = max(1, _NUM_AROUND // len(anchors))
    clouds = [
        simplex.sample_around(anchor, strength, constraints=constraints, num=num, rng=rng)
        for anchor in anchors
        for strength in _STRENGTHS
    ]
    inside = observed[[constraints.violation(w) <= 1e-7 for w in observed]] if len(observed) else observed
    filling = simplex.sobol(constraints, _NUM_FILLING, seeding.derive(seed, "pool", "sobol") % 2**32)
    distinct = np.unique(inside[::-1][:_NUM_OBSERVED], axis=0)
    return np.concatenate([anchors, distinct.reshape(-1, anchors.shape[-1]), *clouds, filling])


def possible_regrets(beliefs: Beliefs, weights: Array, *, seed: int) -> Array:
    """Return (512,) samples of how much better the best pool mixture is than `weights`.

    Joint posterior samples at the target rung, penalty included; objective units, >= 0.

    Args:
        beliefs: Posterior and pool.
        weights: (K,) the recommended mixture; the pool has it, or one that differs by rounding.
        seed: For the samples.
    """
    own = int((beliefs.pool - torch.tensor(weights)).abs().sum(-1).argmin())
    with torch.no_grad():
        values = beliefs.samples(NUM_SAMPLES, seed % 2**31)
    return np.asarray((values[:, own] - values.min(-1).values).clamp_min(0).numpy(), dtype=np.float64)
