"""What a mixture must satisfy: bounds, group sums and epoch caps.

All constraints are linear in the weights, so the feasible set is a convex polytope
inside the simplex. The optional KL penalty to a reference mixture belongs to the
objective, not to the feasible set. K domains; linear programs by scipy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import ConfigError, did_you_mean
from .mixture import Array, Domain, Mixture, readonly

FEASIBILITY_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Group:
    """Bounds on the summed weight of some domains: `minimum <= sum <= maximum`."""

    domains: tuple[str, ...]
    minimum: float = 0.0
    maximum: float = 1.0


@dataclass(frozen=True, eq=False)
class Constraints:
    """A convex polytope of mixtures over K domains.

    Attributes:
        domains: K names.
        lower: (K,) smallest weights, in [0, 1].
        upper: (K,) largest weights, in [0, 1]; epoch caps are already inside.
        groups: Bounds on sums of weights.

    Raises:
        ConfigError: If no mixture satisfies them; the message names the conflict.
    """

    domains: tuple[str, ...]
    lower: Array
    upper: Array
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        object.__setattr__(self, "lower", readonly(self.lower))
        object.__setattr__(self, "upper", readonly(self.upper))
        for name, low, high in zip(self.domains, self.lower, self.upper, strict=True):
            if not 0 <= low <= high <= 1:
                raise ConfigError(
                    f"constraints.bounds.{name}: expected 0 <= low <= high <= 1, got [{low:g}, {high:g}] "
                    "(epoch caps included); widen it"
                )
        for group in self.groups:
            unknown = [name for name in group.domains if name not in self.domains]
            if unknown:
                raise ConfigError(
                    f"constraints.groups: unknown domain {unknown[0]!r}{did_you_mean(unknown[0], self.domains)}; "
                    f"the study's domains are {', '.join(self.domains)}"
                )
        self._check_feasible()

    @classmethod
    def simplex(cls, domains: Sequence[str]) -> Constraints:
        """No constraint but the simplex itself."""
        return cls(tuple(domains), np.zeros(len(domains)), np.ones(len(domains)))

    @classmethod
    def with_epoch_caps(
        cls,
        domains: Sequence[Domain],
        bounds: dict[str, tuple[float, float]],
        groups: Iterable[Group] = (),
        *,
        target_tokens: int | None = None,
        max_epochs: float | None = None,
    ) -> Constraints:
        """Combine bounds with `weight * target_tokens <= max_epochs * num_tokens` per domain.

        Source: Olmix, arXiv:2602.12237, repetition constraint (METHODS 3.1).
        """
        names = [domain.name for domain in domains]
        unknown = [name for name in bounds if name not in names]
        if unknown:
            raise ConfigError(
                f"constraints.bounds: unknown domain {unknown[0]!r}{did_you_mean(unknown[0], names)}; "
                f"the study's domains are {', '.join(names)}"
            )
        lower = np.array([bounds.get(name, (0.0, 1.0))[0] for name in names])
        upper = np.array([bounds.get(name, (0.0, 1.0))[1] for name in names])
        if target_tokens and max_epochs:
            caps = np.array([max_epochs * domain.num_tokens / target_tokens for domain in domains])
            upper = np.minimum(upper, caps)
        return cls(tuple(names), lower, upper, tuple(groups))

    @property
    def trivial(self) -> bool:
        """Whether every mixture on the simplex is feasible."""
        return not self.groups and not self.lower.any() and bool(np.all(self.upper >= 1))

    def inequalities(self) -> tuple[Array, Array]:
        """Return (A, b) of the group constraints as `A @ weights <= b`."""
        rows, limits = [], []
        for group in self.groups:
            row = np.array([1.0 if name in group.domains else 0.0 for name in self.domains])
            if group.maximum < 1:
                rows.append(row)
                limits.append(group.maximum)
            if group.minimum > 0:
                rows.append(-row)
                limits.append(-group.minimum)
        return np.array(rows).reshape(-1, len(self.domains)), np.array(limits)

    def violation(self, weights: Array) -> float:
        """Return the largest violation over all constraints, 0 inside, inf for NaN; weights (..., K)."""
        if not np.all(np.isfinite(weights)):
            return np.inf
        matrix, limits = self.inequalities()
        parts = [self.lower - weights, weights - self.upper, np.abs(weights.sum(-1, keepdims=True) - 1)]
        if len(limits):
            parts.append(weights @ matrix.T - limits)
        return max(0.0, *(float(part.max()) for part in parts))

    def allows(self, mixture: Mixture) -> bool:
        """Whether a mixture is feasible within 1e-7."""
        return self.violation(mixture.weights) <= FEASIBILITY_TOLERANCE

    def linear_optimum(self, costs: Array) -> Array:
        """Return the feasible (K,) weights that minimize `costs @ weights`."""
        return np.asarray(self._solve(costs).x, dtype=np.float64)

    def interior_point(self) -> Array:
        """Return a feasible (K,) point that is as far from all bounds as it can be.

        The slack of every inequality is maximized by one linear program, so where
        the polytope has an interior the point lies in it.
        """
        from scipy.optimize import linprog

        k = len(self.domains)
        matrix, limits = self.inequalities()
        free = self.upper > self.lower
        rows = [np.append(row, 1.0) for row in matrix]
        rows += [np.append(np.eye(k)[i], 1.0) for i in range(k) if free[i]]
        rows += [np.append(-np.eye(k)[i], 1.0) for i in range(k) if free[i]]
        bounds = [*limits, *self.upper[free], *(-self.lower[free])]
        result = linprog(
            np.append(np.zeros(k), -1.0),
            A_ub=np.array(rows) if rows else None,
            b_ub=np.array(bounds) if rows else None,
            A_eq=np.append(np.ones(k), 0.0)[None],
            b_eq=[1.0],
            bounds=[*zip(self.lower, self.upper, strict=True), (0, None)],
        )
        return np.asarray(result.x[:k] if result.success else self._solve(np.zeros(k)).x, dtype=np.float64)

    def pull_inside(self, weights: Array) -> Array:
        """Move points of the simplex (M, K) towards the interior point until they are feasible.

        Feasible points stay where they are. Not the nearest feasible point: the
        one on the segment to the interior, which keeps a sample spread out.
        """
        matrix, limits = self.inequalities()
        center = self.interior_point()
        step = np.atleast_2d(weights) - center
        rows = np.vstack([np.eye(len(self.domains)), -np.eye(len(self.domains)), matrix])
        slack = np.concatenate([self.upper, -self.lower, limits]) - rows @ center
        rise = step @ rows.T
        with np.errstate(divide="ignore", invalid="ignore"):
            # A point that misses a limit by rounding only is not moved: an equality has no slack to share.
            reach = np.where(rise > np.maximum(slack, 0) + 1e-9, np.maximum(slack, 0) / rise, np.inf).min(
                -1, keepdims=True
            )
        inside = np.clip(center + np.minimum(1.0, reach) * step, self.lower, self.upper)
        return np.asarray(inside / inside.sum(-1, keepdims=True), dtype=np.float64)

    def _solve(self, costs: Array) -> Any:
        from scipy.optimize import linprog

        matrix, limits = self.inequalities()
        return linprog(
            costs,
            A_ub=matrix if len(limits) else None,
            b_ub=limits if len(limits) else None,
            A_eq=np.ones((1, len(self.domains))),
            b_eq=[1.0],
            bounds=list(zip(self.lower, self.upper, strict=True)),
        )

    def _check_feasible(self) -> None:
        if self.trivial:
            return
        if self.lower.sum() > 1 + FEASIBILITY_TOLERANCE:
            raise ConfigError(f"constraints: the lower bounds sum to {self.lower.sum():.4g}, more than 1; lower some")
        if self.upper.sum() < 1 - FEASIBILITY_TOLERANCE:
            caps = ", ".join(f"{n} {u:.3g}" for n, u in zip(self.domains, self.upper, strict=True))
            raise ConfigError(
                f"constraints: the upper bounds (epoch caps included) sum to {self.upper.sum():.4g}, less than 1 ({caps}); "
                "raise bounds or max_epochs, or lower target_tokens"
            )
        if not self._solve(np.zeros(len(self.domains))).success:
            groups = "; ".join(f"{g.minimum:g} <= {' + '.join(g.domains)} <= {g.maximum:g}" for g in self.groups)
            raise ConfigError(
                f"constraints: no mixture satisfies the bounds together with the groups ({groups}); relax one"
            )
