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

import numpy as np
from numpy.typing import NDArray

from . import convex
from .constraints import Constraints
from .convex import KLPenalty, Reduction
from .errors import MixtureError, StudyError
from .mixture import Array, Mixture
from .objective import Objective
from .protocols import Predictor

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
    predictor: Predictor,
    objective: Objective,
    constraints: Constraints,
    *,
    reference: Mixture | None = None,
    kl: float = 0.0,
) -> Optimum:
    """Minimize the predicted objective over the feasible mixtures.

    Convex, so the optimum is global, for objectives with non-negative weights on losses
    of the MDE. The gap is the Frank-Wolfe gap from one linear program; a maximum has
    no gradient to certify with and reports an infinite one.

    Args:
        predictor: The MDE or a relative.
        objective: What to minimize; its columns must be losses the predictor knows.
        constraints: The feasible set.
        reference: Mixture of the KL term; needed if `kl` is positive.
        kl: Weight of `KL(weights || reference)`, in objective units.

    Source: MixMin, arXiv:2502.10510 (the convex program); the gap is METHODS 1.2.
    """
    at = [predictor.eval_sets.index(name.removeprefix("loss/")) for name in objective.columns]
    start = constraints.interior_point()
    penalty = KLPenalty(start if reference is None else reference.weights, kl)
    reduction = Reduction.of(objective)

    def columns(weights: Array) -> tuple[Array, Array]:
        row = np.maximum(weights, 0)[None]
        return predictor.predict(row)[0, at], predictor.gradient(row)[0, at]

    weights = convex.minimize(columns, reduction, constraints=constraints, starts=start[None], penalty=penalty)
    values, slopes = columns(weights)
    gap = np.inf
    if reduction.kind == "sum":
        gradient = reduction.weights @ slopes + penalty.gradient(weights)
        gap = max(0.0, float(gradient @ (weights - constraints.linear_optimum(gradient))))
    mixture = Mixture.normalized(constraints.domains, weights)
    return Optimum(mixture, float(reduction.value(values) + penalty.value(weights)), gap)


def load_mde(domains: Sequence[str], files: Mapping[str, Sequence[Path]]) -> MDE:
    """Open {evaluation set: score files of the K experts} as an ensemble."""
    return MDE(domains, [ExpertScores.load(name, paths) for name, paths in files.items()])
