"""The best mixture under smooth columns: sequential quadratic programming on the polytope.

`newton` is for one convex function with two derivatives, the MDE's loss: it ends with a
certificate. `minimize` needs values and gradients only, and takes maxima too: for the
posterior means of a surrogate and other predictors (the best of a few local optima).
J columns, K domains; scipy inside.
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
_MAX_NEWTON_STEPS = 50  # 4 to 14 were needed on random problems of 4 to 64 domains
_ENOUGH = 1e-7  # a gap, nats per token: what single precision can tell apart
_RIDGE = 1e-10  # of the mean curvature: experts that are copies of each other have none between them
_SHORTEST_STEP = 1e-4


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

    def hessian(self, weights: Array) -> Array:
        """Return the (K, K) second derivatives of `value` at (K,) weights."""
        floored = np.maximum(weights, 0) + KL_FLOOR
        return np.diag(self.weight * (1 + KL_FLOOR / floored) / floored)

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


@dataclass(frozen=True, eq=False)
class Smooth:
    """A convex function of (K,) weights with two derivatives, each a function of the weights."""

    value: Callable[[Array], float]
    gradient: Callable[[Array], Array]
    hessian: Callable[[Array], Array]


def newton(function: Smooth, constraints: Constraints, start: Array) -> tuple[Array, float]:
    """Minimize a convex function by quadratic programs with its true second derivatives.

    Ends below a gap of 1e-7 on random problems of 4 to 64 domains, bounded or not, with KL or
    without, where SLSQP, which guesses curvature, ends at 1e-6 to 2e-4 in the same time.

    Args:
        function: What to minimize.
        constraints: The polytope.
        start: (K,) feasible weights.

    Returns:
        The (K,) feasible weights with the smallest gap that were found, and the gap.
    """
    best, least = start, np.inf
    here, value = start, function.value(start)
    for _ in range(_MAX_NEWTON_STEPS):
        gradient = function.gradient(here)
        bound = gap(gradient, here, constraints)
        if bound < least:
            best, least = here, bound
        if bound <= _ENOUGH:
            break
        goal = _quadratic_optimum(function.hessian(here), gradient, here, constraints)
        found = None if goal is None else _step(function, here, goal, value)
        if found is None:
            break
        here, value = found
    logger.debug("newton gap=%.3g value=%.6g", least, value)
    return best, least


def gap(gradient: Array, weights: Array, constraints: Constraints) -> float:
    """Return what feasible weights can be better by at most, for a convex function with this gradient.

    Source: Frank and Wolfe 1956; Jaggi, ICML 2013, Section 2 (the duality gap, from one linear program).
    """
    return max(0.0, float(gradient @ (weights - constraints.linear_optimum(gradient))))


def _step(function: Smooth, here: Array, goal: Array, value: float) -> tuple[Array, float] | None:
    """Return a point towards the goal that is not worse, and its value; None if there is none."""
    step = 1.0
    while step > _SHORTEST_STEP:
        there = here + step * (goal - here)
        found = function.value(there)
        # Values are good to single precision only; the gap decides in the end.
        if found <= value + _ENOUGH:
            return there, found
        step /= 2
    return None


def _quadratic_optimum(hessian: Array, gradient: Array, center: Array, constraints: Constraints) -> Array | None:
    """Return the feasible (K,) weights that minimize a quadratic model around a feasible center; None if it fails.

    The sum is eliminated, the curvature made a unit matrix, and the nearest point of the
    polytope found by non-negative least squares.

    Source: Lawson and Hanson 1974, Solving Least Squares Problems, Chapter 23, LDP.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    k = len(center)
    groups, limits = constraints.inequalities()
    rows = np.vstack([np.eye(k), -np.eye(k), groups])
    slack = np.maximum(np.concatenate([constraints.upper, -constraints.lower, limits]) - rows @ center, 0)
    # Columns after the first are orthogonal to the vector of ones: directions that keep the sum.
    basis = np.linalg.qr(np.column_stack([np.ones(k), np.eye(k)[:, 1:]]))[0][:, 1:]
    curvature = basis.T @ hessian @ basis
    last = np.append(np.zeros(k - 1), 1.0)
    try:
        root = np.linalg.cholesky(curvature + _RIDGE * np.trace(curvature) / k * np.eye(k - 1)).T
        offset = solve_triangular(root, basis.T @ gradient, trans="T")
        scaled = solve_triangular(root, (rows @ basis).T, trans="T")
        system = np.vstack([-scaled, -slack - offset @ scaled])
        residual = system @ nnls(system, last, maxiter=50 * system.shape[1])[0] - last
    except (np.linalg.LinAlgError, RuntimeError) as error:
        logger.debug("quadratic program failed error=%s", error)
        return None
    step = basis @ solve_triangular(root, -residual[:-1] / residual[-1] - offset)
    return np.asarray(np.clip(center + step, constraints.lower, constraints.upper), dtype=np.float64)


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
