"""The best mixture under smooth columns: sequential quadratic programming on the polytope.

Used where values and gradients are cheap and noise-free: the predictor's losses and
the posterior means of a surrogate. For a predictor whose losses are convex, such as
the MDE, the answer is the global optimum (MixMin, arXiv:2502.10510; METHODS 1.2); for
a surrogate it is the best of a few local optima. J columns, K domains.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize as scipy_minimize

from mixopt.constraints import Constraints
from mixopt.mixture import Array
from mixopt.objective import Objective
from mixopt.protocols import Predictor

logger = logging.getLogger(__name__)

Columns = Callable[[Array], tuple[Array, Array]]
"""(K,) weights -> (J,) values and (J, K) derivatives."""

_KL_FLOOR = 1e-9  # keeps log finite at weight 0; costs at most 1e-9 * 21 nats per domain
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
        return np.asarray(self.weight * (self._log_ratio(weights) + weights / (np.maximum(weights, 0) + _KL_FLOOR)))

    def tensor(self, weights: torch.Tensor) -> torch.Tensor:
        """Return (...) penalties of (..., K) weights, differentiable."""
        if self.weight == 0:
            return torch.zeros(weights.shape[:-1], dtype=weights.dtype)
        reference = torch.as_tensor(np.array(self.reference), dtype=weights.dtype)
        ratio = (weights.clamp_min(0) + _KL_FLOOR).log() - (reference + _KL_FLOOR).log()
        return self.weight * (weights * ratio).sum(-1)

    def _log_ratio(self, weights: Array) -> Array:
        return np.asarray(np.log(np.maximum(weights, 0) + _KL_FLOOR) - np.log(self.reference + _KL_FLOOR))


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

    def tensor(self, columns: torch.Tensor) -> torch.Tensor:
        """Return (...) objectives of (..., J) columns, differentiable."""
        terms = torch.as_tensor(np.array(self.weights)) * columns
        return terms.sum(-1) if self.kind == "sum" else terms.max(-1).values


def minimize(
    columns: Columns, reduction: Reduction, *, constraints: Constraints, starts: Array, penalty: KLPenalty
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
    """
    candidates = [np.asarray(start, dtype=np.float64) for start in starts]
    for start in starts:
        solve = _solve_sum if reduction.kind == "sum" else _solve_max
        candidates.append(constraints.pull_inside(solve(columns, reduction.weights, constraints, start, penalty))[0])
    values = [float(reduction.value(columns(w)[0]) + penalty.value(w)) for w in candidates]
    return candidates[int(np.argmin(values))]


def predictor_optimum(
    predictor: Predictor, objective: Objective, *, constraints: Constraints, starts: Array, penalty: KLPenalty
) -> Array | None:
    """Return the (K,) weights a predictor thinks best, or None if it knows no objective column.

    Columns it does not know (scores, new evaluation sets) are left out.
    """
    known = [f"loss/{name}" for name in predictor.eval_sets]
    pairs = [(known.index(name), w) for name, w in zip(objective.columns, objective.weights, strict=True) if name in known]
    if not pairs:
        return None
    picked = [index for index, _ in pairs]

    def columns(weights: Array) -> tuple[Array, Array]:
        row = np.maximum(weights, 0)[None]
        return predictor.predict(row)[0, picked], predictor.gradient(row)[0, picked]

    reduction = Reduction(np.array([weight for _, weight in pairs]), objective.reduction)
    return minimize(columns, reduction, constraints=constraints, starts=starts, penalty=penalty)


def _solve_sum(columns: Columns, factors: Array, constraints: Constraints, start: Array, penalty: KLPenalty) -> Array:
    def value(w: Array) -> tuple[float, Array]:
        values, slopes = columns(w)
        return float(factors @ values + penalty.value(w)), factors @ slopes + penalty.gradient(w)

    limits = list(zip(constraints.lower, constraints.upper, strict=True))
    return _slsqp(value, start, limits, _linear(constraints, 0))


def _solve_max(columns: Columns, factors: Array, constraints: Constraints, start: Array, penalty: KLPenalty) -> Array:
    def value(x: Array) -> tuple[float, Array]:
        return float(x[-1] + penalty.value(x[:-1])), np.append(penalty.gradient(x[:-1]), 1.0)

    def slack(x: Array) -> Array:
        return np.asarray(x[-1] - factors * columns(x[:-1])[0])

    def slack_gradient(x: Array) -> Array:
        return np.column_stack([-factors[:, None] * columns(x[:-1])[1], np.ones(len(factors))])

    top = float((factors * columns(start)[0]).max())
    limits = [*zip(constraints.lower, constraints.upper, strict=True), (None, None)]
    epigraph = {"type": "ineq", "fun": slack, "jac": slack_gradient}
    return _slsqp(value, np.append(start, top), limits, [*_linear(constraints, 1), epigraph])[:-1]


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
    value: Callable[[Array], tuple[float, Array]], start: Array, limits: list[tuple[float | None, float | None]],
    conditions: list[dict[str, object]],
) -> Array:
    options = {"maxiter": _MAX_STEPS, "ftol": _TOLERANCE}
    result = scipy_minimize(value, start, jac=True, bounds=limits, constraints=conditions, method="SLSQP", options=options)
    answer = np.asarray(result.x, dtype=np.float64)
    logger.debug("slsqp steps=%d value=%.6g message=%s", result.nit, result.fun, result.message)
    return answer if np.all(np.isfinite(answer)) and answer[: len(start)].max() > 0 else np.asarray(start)
