"""The best mixture under smooth columns: sequential quadratic programming on the polytope.

Used where values and gradients are cheap and noise-free: a predictor's losses (convex
for the MDE, so the answer is the global optimum) and the posterior means of a
surrogate (the best of a few local optima). J columns, K domains; scipy inside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .constraints import FEASIBILITY_TOLERANCE, Constraints
from .mixture import Array
from .objective import Objective

logger = logging.getLogger(__name__)

Columns = Callable[[Array], tuple[Array, Array]]
"""(K,) weights -> (J,) values and (J, K) derivatives."""

KL_FLOOR = 1e-9  # keeps log finite at weight 0; costs at most 1e-9 * 21 nats per domain
_MAX_STEPS = 100
_TOLERANCE = 1e-10  # in objective units, nats per token: far below any noise


@dataclass(frozen=True, eq=False)
class KLPenalty:
    """`weight * KL(w || reference)`, added to the objective; convex in w.

    Attributes:
        reference: (K,) weights; where they are 0 a floor of 1e-9 stands in.
        weight: Objective units per nat; 0 switches the penalty off.
    """

    reference: Array
    weight: float = 0.0

    def value(self, weights: Array) -> Array:
        """Return (...) penalties of (..., K) weights."""
        return np.asarray(self.weight * (weights * self._log_ratio(weights)).sum(-1), dtype=np.float64)

    def gradient(self, weights: Array) -> Array:
        """Return (..., K) derivatives of `value`."""
        return np.asarray(self.weight * (self._log_ratio(weights) + weights / (np.maximum(weights, 0) + KL_FLOOR)))

    def _log_ratio(self, weights: Array) -> Array:
        return np.asarray(np.log(np.maximum(weights, 0) + KL_FLOOR) - np.log(self.reference + KL_FLOOR))


@dataclass(frozen=True, eq=False)
class Reduction:
    """How J columns become one number: a weighted sum, or the maximum of weighted columns."""

    weights: Array
    kind: str

    @classmethod
    def of(cls, objective: Objective) -> Reduction:
        """Take over an objective's weights and reduction."""
        return cls(objective.weights, objective.reduction)

    def value(self, columns: Array) -> Array:
        """Return (...) objectives of (..., J) columns."""
        terms = self.weights * columns
        return np.asarray(terms.sum(-1) if self.kind == "sum" else terms.max(-1), dtype=np.float64)


def minimize(
    columns: Columns,
    reduction: Reduction,
    *,
    constraints: Constraints,
    starts: Array,
    penalty: KLPenalty,
    max_steps: int = _MAX_STEPS,
) -> Array:
    """Return the feasible (K,) weights with the smallest reduced value that were found.

    A maximum is solved in epigraph form (minimize t with every weighted column <= t),
    which is smooth where the maximum is not.

    Args:
        columns: Values and derivatives of the J columns.
        reduction: From columns to one number.
        constraints: The polytope.
        starts: (R, K) feasible starting points; also candidates themselves.
        penalty: Added to the reduced value.
        max_steps: Limit of steps per start.
    """
    candidates = [np.asarray(start, dtype=np.float64) for start in starts]
    for start in starts:
        solve = _solve_sum if reduction.kind == "sum" else _solve_max
        found = constraints.pull_inside(solve(columns, reduction.weights, constraints, start, penalty, max_steps))[0]
        if np.all(np.isfinite(found)) and constraints.violation(found) <= FEASIBILITY_TOLERANCE:
            candidates.append(found)
    values = [float(reduction.value(columns(w)[0]) + penalty.value(w)) for w in candidates]
    return candidates[int(np.argmin(values))]


def _solve_sum(
    columns: Columns, factors: Array, constraints: Constraints, start: Array, penalty: KLPenalty, max_steps: int
) -> Array:
    def value(w: Array) -> tuple[float, Array]:
        values, slopes = columns(w)
        return float(factors @ values + penalty.value(w)), factors @ slopes + penalty.gradient(w)

    limits = list(zip(constraints.lower, constraints.upper, strict=True))
    return _slsqp(value, start, limits, _linear(constraints, 0), max_steps)


def _solve_max(
    columns: Columns, factors: Array, constraints: Constraints, start: Array, penalty: KLPenalty, max_steps: int
) -> Array:
    def value(x: Array) -> tuple[float, Array]:
        return float(x[-1] + penalty.value(x[:-1])), np.append(penalty.gradient(x[:-1]), 1.0)

    def slack(x: Array) -> Array:
        return np.asarray(x[-1] - factors * columns(x[:-1])[0])

    def slack_gradient(x: Array) -> Array:
        return np.column_stack([-factors[:, None] * columns(x[:-1])[1], np.ones(len(factors))])

    top = float((factors * columns(start)[0]).max())
    limits = [*zip(constraints.lower, constraints.upper, strict=True), (None, None)]
    epigraph = {"type": "ineq", "fun": slack, "jac": slack_gradient}
    return _slsqp(value, np.append(start, top), limits, [*_linear(constraints, 1), epigraph], max_steps)[:-1]


def _linear(constraints: Constraints, extra: int) -> list[dict[str, object]]:
    k = len(constraints.domains)
    matrix, limits = constraints.inequalities()
    total = np.append(np.ones(k), np.zeros(extra))
    form: list[dict[str, object]] = [{"type": "eq", "fun": lambda x: x @ total - 1, "jac": lambda _: total}]
    if len(limits):
        rows = np.column_stack([matrix, np.zeros((len(limits), extra))])
        form.append({"type": "ineq", "fun": lambda x: limits - rows @ x, "jac": lambda _: -rows})
    return form


def _slsqp(
    value: Callable[[Array], tuple[float, Array]],
    start: Array,
    limits: list[tuple[float | None, float | None]],
    conditions: list[dict[str, object]],
    max_steps: int,
) -> Array:
    from scipy.optimize import minimize as scipy_minimize

    options = {"maxiter": max_steps, "ftol": _TOLERANCE}
    result = scipy_minimize(
        value, start, jac=True, bounds=limits, constraints=conditions, method="SLSQP", options=options
    )
    logger.debug("slsqp steps=%d value=%.6g message=%s", result.nit, result.fun, result.message)
    return np.asarray(result.x, dtype=np.float64)
