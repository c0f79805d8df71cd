"""Points of the feasible polytope: samples, and the constraints as BoTorch reads them.

Everything is a function of its arguments and of an explicit seed or generator.
K domains, M points. No density over the polytope is claimed: points drawn on the
simplex are pulled inside, which keeps them spread out but does not make them uniform.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import qmc

from mixopt.constraints import Constraints
from mixopt.mixture import Array, Mixture

LinearConstraint = tuple[torch.Tensor, torch.Tensor, float]

TINY_WEIGHT = 1e-4  # shares below this are noise of the optimizer: 0.01% of the tokens
_DIRICHLET_FLOOR = 2.0  # total mass that `sample_around` spreads over domains its center leaves at 0


def sample(constraints: Constraints, num: int, rng: np.random.Generator) -> Array:
    """Return (num, K) points: Dirichlet(1), uniform on the simplex, pulled inside."""
    return constraints.pull_inside(rng.dirichlet(np.ones(len(constraints.domains)), size=num))


def sample_around(
    center: Mixture | Array, strength: float, *, constraints: Constraints, num: int, rng: np.random.Generator
) -> Array:
    """Return (num, K) points around a center: Dirichlet(strength * center + floor), pulled inside.

    Args:
        center: Mixture, or (K,) weights on the simplex.
        strength: Concentration; a weight w has a standard deviation of about
            sqrt(w (1 - w) / (strength + 1)).
        constraints: The polytope.
        num: Number of points.
        rng: Source of randomness.
    """
    weights = center.weights if isinstance(center, Mixture) else np.asarray(center, dtype=np.float64)
    alpha = strength * np.maximum(weights, 0) + _DIRICHLET_FLOOR / len(weights)
    return constraints.pull_inside(rng.dirichlet(alpha, size=num))


def sobol(constraints: Constraints, num: int, seed: int, *, skip: int = 0) -> Array:
    """Return points skip..skip+num of a scrambled Sobol sequence over the polytope, (num, K).

    Coordinates u become exponential spacings -log(u), which divided by their sum are
    uniform on the simplex (Devroye 1986, Chapter V, Theorem 2.2), then are pulled inside.
    A prefix of the sequence does not depend on `num`.
    """
    log2 = max(0, math.ceil(math.log2(max(1, skip + num))))
    unit = qmc.Sobol(len(constraints.domains), scramble=True, seed=seed).random_base2(log2)[skip : skip + num]
    spacings = -np.log(np.clip(unit, 1e-12, 1 - 1e-12))
    return constraints.pull_inside(spacings / spacings.sum(-1, keepdims=True))


def clean(weights: Array, constraints: Constraints) -> Mixture:
    """Return the feasible mixture that an optimizer's (K,) answer stands for.

    Weights below 0.0001 become 0 where the bounds allow it; what that breaks is
    mended by a pull towards the interior.
    """
    values = np.clip(np.asarray(weights, dtype=np.float64), constraints.lower, constraints.upper)
    values = np.where((values < TINY_WEIGHT) & (constraints.lower <= 0), 0.0, values)
    mixture = Mixture.normalized(constraints.domains, values)
    if constraints.allows(mixture):
        return mixture
    return Mixture.normalized(constraints.domains, constraints.pull_inside(mixture.weights)[0])


def has_freedom(constraints: Constraints) -> bool:
    """Whether more than one mixture satisfies the bounds (groups are not looked at)."""
    free = int((constraints.upper - constraints.lower > TINY_WEIGHT).sum())
    return bool(free > 1 and constraints.lower.sum() < 1 - TINY_WEIGHT and constraints.upper.sum() > 1 + TINY_WEIGHT)


def bounds(constraints: Constraints) -> torch.Tensor:
    """Return the (2, K) lower and upper bounds."""
    return torch.tensor(np.stack([constraints.lower, constraints.upper]), dtype=torch.float64)


def equalities(constraints: Constraints) -> list[LinearConstraint]:
    """Return the simplex itself: the weights sum to 1."""
    k = len(constraints.domains)
    return [(torch.arange(k), torch.ones(k, dtype=torch.float64), 1.0)]


def inequalities(constraints: Constraints) -> list[LinearConstraint]:
    """Return the group constraints in BoTorch's direction, `sum(coefficients * w) >= limit`."""
    matrix, limits = constraints.inequalities()
    form = []
    for row, limit in zip(matrix, limits, strict=True):
        indices = np.flatnonzero(row)
        form.append((torch.tensor(indices), torch.tensor(-row[indices], dtype=torch.float64), -float(limit)))
    return form
