"""MDE: the mixture of data experts predicts the loss of any mixture, without training.

A mixture's next-token probability is approximated by the weighted average of the data
experts' probabilities, from cached log-probabilities. The predicted loss is convex in
the weights. Computed in blocks of tokens, so memory does not grow with M * K * T.

    K experts (= domains), J evaluation sets, T tokens of one set, M mixtures

Source: Belenki et al., ACL 2025, arXiv:2502.15950 (the ensemble); the gradient and the
certified gap are METHODS 1.1 and 1.2, after MixMin, arXiv:2502.10510.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constraints import Constraints
from .errors import MixtureError, StudyError
from .mixture import Array, Mixture
from .objective import Objective

_BLOCK_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class ExpertScores:
    """Token log-probabilities of K experts on one evaluation set.

    Attributes:
        eval_set: Its name.
        logprobs: K arrays (T,) float32, nats; memory-mapped, one file per expert.
    """

    eval_set: str
    logprobs: tuple[NDArray[np.float32], ...]

    def __post_init__(self) -> None:
        lengths = {len(array) for array in self.logprobs}
        if len(lengths) != 1 or 0 in lengths:
            raise StudyError(f"expert scores on {self.eval_set} have {sorted(lengths)} tokens; score the experts again")

    @classmethod
    def load(cls, eval_set: str, paths: Sequence[Path]) -> ExpertScores:
        """Open the score files of K experts, in the order of the domains."""
        try:
            return cls(eval_set, tuple(np.load(path, mmap_mode="r") for path in paths))
        except (OSError, ValueError, EOFError) as error:
            raise StudyError(
                f"expert scores on {eval_set} are missing or damaged ({error}); run the study again"
            ) from error

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.logprobs[0])

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], Array]]:
        """Yield (K, t) probabilities divided by their per-token maximum, and its log (t,)."""
        for start in range(0, self.num_tokens, _BLOCK_TOKENS):
            block = np.stack([array[start : start + _BLOCK_TOKENS] for array in self.logprobs])
            peak = block.max(axis=0)
            yield np.exp(block - peak), peak.astype(np.float64)


class MDE:
    """The ensemble of a study's data experts.

    Args:
        domains: K names, in the order of the weights.
        scores: One entry per evaluation set.
    """

    def __init__(self, domains: Sequence[str], scores: Sequence[ExpertScores]) -> None:
        self.domains = tuple(domains)
        self._scores = {score.eval_set: score for score in scores}
        for score in scores:
            if len(score.logprobs) != len(self.domains):
                raise MixtureError(
                    f"{score.eval_set}: expected scores of {len(self.domains)} experts, got {len(score.logprobs)}; train or score the missing ones"
                )

    @property
    def eval_sets(self) -> tuple[str, ...]:
        """J names."""
        return tuple(self._scores)

    def predict(self, weights: Array, eval_sets: Sequence[str] | None = None) -> Array:
        """Predict losses.

        Args:
            weights: (M, K) mixture weights, each row on the simplex.
            eval_sets: J names, or None for all.

        Returns:
            (M, J) losses, nats per token. At a vertex that expert's own loss;
            elsewhere at most the weighted mean of the experts' losses (Jensen).
        """
        rows = self._check(weights)
        return np.stack([_losses(self._scores[name], rows) for name in eval_sets or self.eval_sets], axis=1)

    def gradient(self, weights: Array, eval_sets: Sequence[str] | None = None) -> Array:
        """Return (M, J, K) derivatives of the losses with respect to the weights.

        `dL/dw_k = -mean_t p_k(t) / sum_i w_i p_i(t)`, METHODS 1.1 step 5.
        """
        rows = self._check(weights)
        return np.stack([_gradients(self._scores[name], rows) for name in eval_sets or self.eval_sets], axis=1)

    def _check(self, weights: Array) -> Array:
        rows = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        if rows.shape[1] != len(self.domains):
            raise MixtureError(f"expected {len(self.domains)} weights per mixture, got {rows.shape[1]}")
        return rows


def _losses(scores: ExpertScores, weights: Array) -> Array:
    total = np.zeros(len(weights))
    rows = weights.astype(np.float32)
    for probs_KT, peak_T in scores.blocks():
        # Shifted probabilities have maximum 1, so float32 products lose nothing that matters.
        mixed_MT = np.maximum(rows @ probs_KT, np.finfo(np.float32).tiny)
        total -= np.log(mixed_MT).sum(axis=1, dtype=np.float64) + peak_T.sum()
    return np.asarray(total / scores.num_tokens)


def _gradients(scores: ExpertScores, weights: Array) -> Array:
    total = np.zeros(weights.shape)
    rows = weights.astype(np.float32)
    for probs_KT, _ in scores.blocks():
        mixed_MT = np.maximum(rows @ probs_KT, np.finfo(np.float32).tiny)
        total -= (1 / mixed_MT) @ probs_KT.T
    return np.asarray(total / scores.num_tokens)


@dataclass(frozen=True)
class Optimum:
    """The minimizer of a predicted objective.

    Attributes:
        mixture: The weights.
        value: Objective there.
        gap: Certified: no feasible mixture is better by more, under the predictor.
    """

    mixture: Mixture
    value: float
    gap: float


def minimize(
    predictor: Any, objective: Objective, constraints: Constraints, *, reference: Mixture | None = None, kl: float = 0.0
) -> Optimum:
    """Minimize the predicted objective over the feasible mixtures.

    Convex for objectives with non-negative weights on losses. Solved by sequential
    quadratic programming with exact gradients (a maximum in epigraph form); the gap is
    the Frank-Wolfe gap from one linear program, and infinite for a maximum.

    Args:
        predictor: A `Predictor` (the MDE or a relative).
        objective: What to minimize; its columns must be losses the predictor knows.
        constraints: The feasible set.
        reference: Mixture of the KL term.
        kl: Weight of `KL(weights || reference)`, in objective units.
    """
    from scipy.optimize import minimize as scipy_minimize

    names = [column.removeprefix("loss/") for column in objective.columns]
    at = [predictor.eval_sets.index(name) for name in names]
    epigraph = objective.reduction == "max"
    k = len(constraints.domains)

    def terms(weights: Array) -> Array:
        return np.asarray(predictor.predict(weights[None])[0, at] * objective.weights)

    def jacobian(weights: Array) -> Array:
        return np.asarray(predictor.gradient(weights[None])[0, at] * objective.weights[:, None])

    def penalty(weights: Array) -> tuple[float, Array]:
        if reference is None or kl == 0:
            return 0.0, np.zeros(k)
        ratio = np.log(np.maximum(weights, 1e-12) / np.maximum(reference.weights, 1e-12))
        return kl * float(weights @ ratio), kl * (ratio + 1)

    def value(x: Array) -> float:
        extra = penalty(x[:k])[0]
        return float(x[k] if epigraph else terms(x[:k]).sum()) + extra

    def slope(x: Array) -> Array:
        extra = penalty(x[:k])[1]
        return np.append(extra, 1.0) if epigraph else jacobian(x[:k]).sum(axis=0) + extra

    start = constraints.interior_point()
    matrix, limits = constraints.inequalities()
    pad = np.zeros((len(limits), 1 if epigraph else 0))
    rules: list[dict[str, Any]] = [
        {"type": "eq", "fun": lambda x: x[:k].sum() - 1, "jac": lambda x: np.append(np.ones(k), np.zeros(len(x) - k))}
    ]
    if len(limits):
        wide = np.hstack([matrix, pad])
        rules.append({"type": "ineq", "fun": lambda x: limits - wide @ x, "jac": lambda x: -wide})
    if epigraph:
        rules.append(
            {
                "type": "ineq",
                "fun": lambda x: x[k] - terms(x[:k]),
                "jac": lambda x: np.hstack([-jacobian(x[:k]), np.ones((len(at), 1))]),
            }
        )
    bounds = list(zip(constraints.lower, constraints.upper, strict=True)) + ([(None, None)] if epigraph else [])
    first = np.append(start, terms(start).max()) if epigraph else start
    result = scipy_minimize(
        value,
        first,
        jac=slope,
        bounds=bounds,
        constraints=rules,
        method="SLSQP",
        options={"maxiter": 300, "ftol": 1e-10},
    )
    weights = constraints.pull_inside(np.maximum(result.x[:k], 0)[None] / np.maximum(result.x[:k], 0).sum())[0]
    gap = np.inf
    if not epigraph:
        gradient = jacobian(weights).sum(axis=0) + penalty(weights)[1]
        gap = float(gradient @ (weights - constraints.linear_optimum(gradient)))
    total = float(terms(weights).max() if epigraph else terms(weights).sum()) + penalty(weights)[0]
    return Optimum(Mixture.normalized(constraints.domains, weights), total, max(0.0, gap))


def load_mde(domains: Sequence[str], files: Mapping[str, Sequence[Path]]) -> MDE:
    """Open {evaluation set: score files of the K experts} as an ensemble."""
    return MDE(domains, [ExpertScores.load(name, paths) for name, paths in files.items()])
