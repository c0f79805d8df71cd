"""Trust: does a predictor rank the runs measured so far, and what is left after a shift?

A predictor is exact at the data experts by construction, so their own runs say nothing
and are left out; replicates of a mixture are averaged. What is compared is one rung: the
predictor is used with a level fitted per rung, so that only the order of the mixtures and
the error after a shift count. Decides nothing: the surrogate weighs its own evidence.

    M mixtures measured at the rung, J columns
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from .choices import beats_chance
from .fidelity import Ladder
from .mixture import Array
from .objective import EvalSet, Objective
from .observation import History, Role
from .protocols import Predictor

LEVEL = 0.9
TRUSTED, UNCLEAR, NOT_TRUSTED = "trusted", "unclear", "not trusted"
FEWEST = 5  # mixtures; an interval of fewer says nothing
ENOUGH = 8  # mixtures at which the target is looked at instead of a rung with more of them
GOOD_RANK = 0.5  # MDE reaches 0.8 to 0.97 at full length, and 0.6 with experts that are far too short (PROXIES 5)


@dataclass(frozen=True)
class Agreement:
    """How one column's predictions compare with its measured values at one rung.

    Attributes:
        column: Such as `loss/code`, or `objective`.
        fidelity: The rung.
        num_mixtures: M.
        rank: Spearman correlation, or None where one side does not vary or M < 5.
        low: Lower end of its 90% interval, or None.
        high: Upper end, or None.
        shift: Mean of measured less predicted, column units.
        error: Root mean square error of predictions with a shift fitted to the others, column units.
        spread: Likewise of the mean of the others, which needs no predictor.
    """

    column: str
    fidelity: str
    num_mixtures: int
    rank: float | None
    low: float | None
    high: float | None
    shift: float
    error: float
    spread: float

    @property
    def verdict(self) -> str:
        """`trusted`, `unclear` or `not trusted`."""
        if self.rank is None or self.low is None or self.high is None:
            return UNCLEAR
        if self.high < GOOD_RANK or self.error >= self.spread:
            return NOT_TRUSTED
        return TRUSTED if self.low >= GOOD_RANK else UNCLEAR

    def in_units(self, factor: float) -> Agreement:
        """Return the same in other units of the column: its own times a factor."""
        return replace(self, shift=self.shift * factor, error=self.error * factor, spread=self.spread * factor)


def agreements(
    predictor: Predictor, history: History, ladder: Ladder, *, objective: Objective | None = None
) -> tuple[Agreement, ...]:
    """Compare a predictor with what was measured, column by column.

    Looks at the dearest rung that eight mixtures have reached, else at the one with the
    most mixtures.

    Args:
        predictor: The MDE or a relative.
        history: Trials and observations; experts' are ignored.
        ladder: Rungs, the target last.
        objective: Compared besides, if the predictor knows all of its columns.

    Returns:
        One entry per column that both know, and `objective` last; none before a mixture
        was measured.
    """
    rung = _rung(history, ladder, predictor.domains)
    measured = _measured(history, rung, predictor.domains)
    if not measured:
        return ()
    weights = np.array(list(measured))
    predicted = dict(zip(predictor.columns, predictor.predict(weights).T, strict=True))
    values = {
        name: np.array([row.get(name, np.nan) for row in measured.values()])
        for name in predictor.columns
        if any(name in row for row in measured.values())
    }
    if objective is not None and all(name in values for name in objective.columns):
        values["objective"], predicted["objective"] = objective.value(values), objective.value(predicted)
    return tuple(_compare(name, rung, values[name], predicted[name]) for name in values)


def at_chance(history: History, eval_sets: Iterable[EvalSet], objective: Objective) -> tuple[str, ...]:
    """Say in words which tasks of an objective no data expert answers better than guessing.

    A one-sided exact test of the best expert at its dearest rung, at the level 0.05
    divided by the number of experts. Tasks that no expert was measured on are left out.
    """
    experts = {trial.id for trial in history.of(Role.EXPERT).trials}
    seen = {o.trial: o for o in history.observations if o.trial in experts}  # the last is of the dearest rung
    said = []
    for task in eval_sets:
        accuracies = [o.scores[task.name] for o in seen.values() if task.name in o.scores]
        if f"score/{task.name}" not in objective.columns or not accuracies or not task.chance:
            continue
        options = np.full(task.num_questions, 1 / task.chance)
        if not beats_chance(max(accuracies), options, level=0.05 / len(accuracies)):
            said.append(
                f"score/{task.name} (best of {len(accuracies)} experts {max(accuracies):.3f} on {task.num_questions} "
                f"questions, guessing {task.chance:.3f})"
            )
    return tuple(said)


def rank_interval(rank: float, num: int, level: float = LEVEL) -> tuple[float, float]:
    """Return an interval for a Spearman correlation of `num` >= 4 pairs.

    Fisher's z with the standard error `sqrt((1 + r^2 / 2) / (num - 3))`. Perfect ranks
    are read as half a swap of neighbors. Of 90% intervals 0.88 to 0.98 cover for true
    correlations up to 0.95 and 5 to 40 pairs, and err towards too low above
    (docs/log.md); a bootstrap has too few ranks to draw from here.

    Source: Bonett and Wright 2000, Psychometrika 65(1), Eq. 5.
    """
    limit = 1 - 6 / (num * (num**2 - 1))
    inside = min(max(rank, -limit), limit)
    half = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt((1 + inside**2 / 2) / (num - 3))
    return math.tanh(math.atanh(inside) - half), math.tanh(math.atanh(inside) + half)


def spearman(a: Array, b: Array) -> float | None:
    """Return the correlation of the ranks of two (M,) arrays, or None if one does not vary."""
    x, y = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else None


def _compare(name: str, rung: str, values: Array, predicted: Array) -> Agreement:
    known = np.isfinite(values)
    measured, predicted, num = values[known], predicted[known], int(known.sum())
    rank = spearman(measured, predicted) if num >= FEWEST else None
    low, high = (None, None) if rank is None else rank_interval(rank, num)
    left = measured - predicted
    return Agreement(name, rung, num, rank, low, high, float(left.mean()), _left_out(left), _left_out(measured))


def _left_out(values: Array) -> float:
    """Return the root mean square error of (M,) values from the mean of the others; infinite for one value."""
    num = len(values)
    return float(values.std()) * num / (num - 1) if num > 1 else math.inf


def _ranks(values: Array) -> Array:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])


def _rung(history: History, ladder: Ladder, domains: Sequence[str]) -> str:
    counts = {rung.name: len(_measured(history, rung.name, domains)) for rung in reversed(ladder.rungs)}
    enough = [name for name, count in counts.items() if count >= ENOUGH]
    return enough[0] if enough else max(counts, key=lambda name: counts[name])


def _measured(history: History, rung: str, domains: Sequence[str]) -> Mapping[tuple[float, ...], Mapping[str, float]]:
    """Return {(K,) weights: {column: mean over the mixture's runs}} at a rung, experts left out."""
    trials = {trial.id: trial for trial in history.trials if trial.role is not Role.EXPERT}
    found: dict[tuple[float, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for observation in history.observations:
        if observation.trial in trials and observation.fidelity == rung:
            weights = tuple(trials[observation.trial].mixture.over(domains).weights.tolist())
            for name, value in observation.columns().items():
                found[weights][name].append(value)
    return {
        weights: {name: float(np.mean(values)) for name, values in columns.items()}
        for weights, columns in found.items()
    }
