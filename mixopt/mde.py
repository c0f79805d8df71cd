"""MDE: the mixture of data experts predicts loss and accuracy of any mixture, without training.

A mixture's next-token probability is approximated by the weighted average of the data
experts' probabilities, from cached log-probabilities. The predicted loss is convex in
the weights; with a temper, or for scores of tasks, it is not. Computed in blocks of
tokens, so memory does not grow with M * K * T.

    K experts (= domains), J columns, T tokens of one set, M mixtures

Source: Belenki et al., ACL 2025, arXiv:2502.15950 (the ensemble); the gradient and the
certified gap are METHODS 1.1 and 1.2, after MixMin, arXiv:2502.10510.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np

from . import choices, convex, mixing
from .blocks import PLAIN, BlockStore, Temper
from .choices import Measures, Questions
from .constraints import Constraints
from .convex import KLPenalty, Reduction, Smooth
from .errors import MixtureError, did_you_mean
from .mixing import Block
from .mixture import Array, Mixture
from .objective import Objective
from .passages import TEXT
from .protocols import Predictor
from .scores import ExpertScores

_MOST_PROMISING = 3
_MIXTURES_AT_ONCE = 256
"""On a task, where every token's logarithm is needed: 8 MB with the tokens of a part."""


class MDE:
    """The ensemble of K data experts.

    Its columns are `loss/<set>` of every evaluation set, in nats per token, and of a
    multiple-choice task also `score/<task>`, the smooth score: the mean probability of the
    right option. The loss of a task is that of the tokens of the right options.

    Args:
        domains: K names, in the order of the weights.
        scores: One entry per evaluation set.
        temper: How weights follow the document's prefix; by default they do not.
        sharpness: Of the smooth score, per nat per token; the larger, the nearer to the accuracy.

    Raises:
        MixtureError: If the scores are of experts of other domains, or in another order.
    """

    def __init__(
        self,
        domains: Sequence[str],
        scores: Iterable[ExpertScores],
        *,
        temper: Temper = PLAIN,
        sharpness: float = choices.SHARPNESS,
    ) -> None:
        self.domains = tuple(domains)
        self.temper, self.sharpness = temper, sharpness
        self._sets = {score.passages.name: score for score in scores}
        for name, score in self._sets.items():
            if score.domains != self.domains:
                raise MixtureError(
                    f"{name}: expected scores of experts of {', '.join(self.domains)}, got {', '.join(score.domains)}; "
                    "use scores of the same domains in the same order"
                )
        self._columns = {column: name for name, score in self._sets.items() for column in score.passages.columns}
        self._store = BlockStore(temper)

    @property
    def columns(self) -> tuple[str, ...]:
        """J columns."""
        return tuple(self._columns)

    def with_temper(self, temper: Temper) -> MDE:
        """Return the same experts with another temper."""
        return MDE(self.domains, self._sets.values(), temper=temper, sharpness=self.sharpness)

    def predict(self, weights: Array, columns: Sequence[str] | None = None) -> Array:
        """Predict columns of the runs table.

        Args:
            weights: (M, K) mixture weights, each row on the simplex.
            columns: J columns, or None for all.

        Returns:
            (M, J) losses in nats per token, and scores in [0, 1]. Without temper, the loss
            at a vertex is that expert's own, and elsewhere at most the weighted mean of the
            experts' losses (Jensen).

        Raises:
            MixtureError: If there are not K weights per mixture, or a column is unknown.
        """
        losses = partial(self._mean, mixing.log_sums)
        return self._stack(weights, columns, losses, lambda name, rows: self._measures(name, rows).score)

    def gradient(self, weights: Array, columns: Sequence[str] | None = None) -> Array:
        """Return (M, J, K) derivatives of `predict` with respect to the weights.

        Of a loss `dL/dw_k = -mean_t p_k(t) / sum_i w_i p_i(t)`, METHODS 1.1 step 5.
        """
        return self._stack(weights, columns, partial(self._mean, mixing.slopes), self._score_gradient)

    def hessian(self, weights: Array, column: str) -> Array:
        """Return second derivatives of a loss, (K, K) of (K,) weights or (M, K, K) of (M, K).

        `d2L/dw_i dw_k = mean_t p_i(t) p_k(t) / (sum w p)^2`, METHODS 1.1 step 5: positive
        semi-definite without temper.

        Raises:
            MixtureError: If the column is unknown, or a score.
        """
        rows, name = self._check(weights), self._set_of(column)
        if not column.startswith("loss/"):
            raise MixtureError(f"expected a loss, got {column}; second derivatives of scores are not made")
        total = self._mean(mixing.curvatures, name, rows)
        return np.asarray(total if np.ndim(weights) > 1 else total[0])

    def measures(self, weights: Array, task: str) -> Measures:
        """Predict accuracy, margin and smooth score of (M, K) mixtures on a multiple-choice task.

        Raises:
            MixtureError: If no evaluation set has this name, or it is no task.
        """
        self._set_of(f"score/{task}")
        return self._measures(task, self._check(weights))

    def num_tokens(self, column: str) -> int:
        """Return how many tokens a column is measured on."""
        name = self._set_of(column)
        return self._num_counted(name) if column.startswith("loss/") else self._sets[name].num_tokens

    def _stack(
        self,
        weights: Array,
        columns: Sequence[str] | None,
        loss: Callable[[str, Array], Array],
        score: Callable[[str, Array], Array],
    ) -> Array:
        rows = self._check(weights)
        names = self.columns if columns is None else columns
        parts = [(loss if c.startswith("loss/") else score)(self._set_of(c), rows) for c in names]
        return np.stack(parts, axis=1)

    def _mean(self, sums: Callable[[Array, Block], Array], name: str, rows: Array) -> Array:
        """Return minus the sums over all blocks, per counted token."""
        total: Array = reduce(np.add, (sums(rows, block) for block in self._blocks(name)))
        return -total / self._num_counted(name)

    def _measures(self, name: str, rows: Array) -> Measures:
        shares = []
        for block, questions in self._questions(name):
            starts = range(0, max(1, len(rows)), _MIXTURES_AT_ONCE)  # no mixtures are one empty part
            parts = [rows[first : first + _MIXTURES_AT_ONCE] for first in starts]
            found = [questions.measures(self._option_scores(block, questions, part), self.sharpness) for part in parts]
            shares.append(choices.joined(found))
        return choices.added(shares)

    def _score_gradient(self, name: str, rows: Array) -> Array:
        total = np.zeros(rows.shape)
        for block, questions in self._questions(name):
            for first in range(0, len(rows), _MIXTURES_AT_ONCE):
                here = slice(first, first + _MIXTURES_AT_ONCE)
                scores_DM = self._option_scores(block, questions, rows[here])
                total[here] += mixing.slopes(rows[here], block, questions.factors(scores_DM, self.sharpness))
        return total

    def _option_scores(self, block: Block, questions: Questions, rows: Array) -> Array:
        return questions.option_scores(mixing.logs(rows, block))

    def _questions(self, name: str) -> Iterator[tuple[Block, Questions]]:
        """Yield a task in parts that end where questions end."""
        parts = choices.parts(self._sets[name].passages)
        return zip(self._blocks(name), (questions for _, questions in parts), strict=True)

    def _blocks(self, name: str) -> Iterable[Block]:
        scores = self._sets[name]
        if scores.passages.kind == TEXT:
            return self._store.blocks(scores)
        return self._store.blocks(scores, [0, *(end for end, _ in choices.parts(scores.passages))])

    def _num_counted(self, name: str) -> int:
        counted = self._sets[name].passages.counted
        return self._sets[name].num_tokens if counted is None else int(counted.sum())

    def _set_of(self, column: str) -> str:
        if column not in self._columns:
            raise MixtureError(
                f"unknown column {column!r}{did_you_mean(column, self.columns)}; the ensemble predicts {', '.join(self.columns)}"
            )
        return self._columns[column]

    def _check(self, weights: Array) -> Array:
        rows = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        if rows.shape[1] != len(self.domains):
            raise MixtureError(
                f"expected {len(self.domains)} weights per mixture, for {', '.join(self.domains)}, got {rows.shape[1]}"
            )
        return rows


@dataclass(frozen=True)
class Optimum:
    """The minimizer of a predicted objective.

    Attributes:
        mixture: The weights.
        value: Objective there.
        gap: Certified: no feasible mixture is better by more, under the predictor, up to
            1e-7 of rounding. Infinite without a certificate.
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

    A sum of losses of the MDE without temper, with non-negative weights, is convex, so the
    optimum is global and certified. For anything else it is the best of some local optima: from
    the middle; with temper from the optimum without; with scores from mixtures that lean to one
    domain.

    Args:
        predictor: The MDE or a relative.
        objective: What to minimize; its columns must be known to the predictor.
        constraints: The feasible set.
        reference: Mixture of the KL term; needed if `kl` is positive.
        kl: Weight of `KL(weights || reference)`, in objective units.

    Source: MixMin, arXiv:2502.10510 (the convex program); the gap is METHODS 1.2.
    """
    center = constraints.interior_point()
    penalty = KLPenalty(center if reference is None else reference.weights, kl)
    tempered = isinstance(predictor, MDE) and predictor.temper.tau > 0
    losses = bool(np.all(objective.weights >= 0)) and all(name.startswith("loss/") for name in objective.columns)
    if isinstance(predictor, MDE) and losses and not tempered and objective.reduction == "sum":
        function = _smooth(predictor, objective, penalty)
        weights, gap = convex.newton(function, constraints, center)
        return Optimum(Mixture.normalized(constraints.domains, weights), function.value(weights), gap)
    starts = [center]
    if isinstance(predictor, MDE) and tempered:
        plain = minimize(predictor.with_temper(PLAIN), objective, constraints, reference=reference, kl=kl)
        starts.append(plain.mixture.weights)
    if not losses:
        starts += _leaning(predictor, objective, constraints, center)
    return _local_optimum(predictor, objective, constraints, np.array(starts), penalty)


def _local_optimum(
    predictor: Predictor, objective: Objective, constraints: Constraints, starts: Array, penalty: KLPenalty
) -> Optimum:
    at = [predictor.columns.index(name) for name in objective.columns]
    reduction = Reduction.of(objective)

    def columns(weights: Array) -> tuple[Array, Array]:
        row = np.maximum(weights, 0)[None]
        return predictor.predict(row)[0, at], predictor.gradient(row)[0, at]

    weights = convex.minimize(columns, reduction, constraints=constraints, starts=starts, penalty=penalty)
    value = float(reduction.value(columns(weights)[0]) + penalty.value(weights))
    return Optimum(Mixture.normalized(constraints.domains, weights), value, np.inf)


def _smooth(mde: MDE, objective: Objective, penalty: KLPenalty) -> Smooth:
    """Return a weighted sum of an MDE's losses and a penalty, with two derivatives."""
    names, factors = objective.columns, objective.weights

    def hessian(weights: Array) -> Array:
        parts = [factor * mde.hessian(weights, name) for factor, name in zip(factors, names, strict=True)]
        return np.asarray(np.sum(parts, axis=0) + penalty.hessian(weights))

    return Smooth(
        lambda weights: float(factors @ mde.predict(weights, names)[0] + penalty.value(weights)),
        lambda weights: factors @ mde.gradient(weights, names)[0] + penalty.gradient(weights),
        hessian,
    )


def _leaning(predictor: Predictor, objective: Objective, constraints: Constraints, center: Array) -> list[Array]:
    """Return the most promising mixtures halfway between the middle and a single domain."""
    found = constraints.pull_inside((center + np.eye(len(center))) / 2)
    at = [predictor.columns.index(name) for name in objective.columns]
    values = Reduction.of(objective).value(predictor.predict(found)[:, at])
    return list(found[np.argsort(values, kind="stable")[:_MOST_PROMISING]])
