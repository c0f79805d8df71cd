"""What the validation runs show: contenders compared, and what every phase cost.

Plain statistics of a study, free of any drawing; the report, the figures and the
command line show the same numbers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from mixopt.mixture import Mixture
from mixopt.observation import Observation, Role, Status
from mixopt.proposal import Contender
from mixopt.service import RECOMMENDED

if TYPE_CHECKING:
    from mixopt.study import Study

UNIT_LABELS = {"bits_per_byte": "bits per byte", "nats_per_token": "nats per token"}  # nosec B105: tokens of text
_SAME_MIXTURE = 1e-9  # the tolerance of a mixture's sum


@dataclass(frozen=True)
class Comparison:
    """One contender on one column, beside the recommended mixture.

    Losses are in the objective's unit, scores are accuracies.

    Attributes:
        label: The contender.
        column: `objective`, or a column of the objective.
        num_seeds: Measured validation seeds.
        mean: Measured mean over seeds, or None.
        spread: Standard deviation over seeds; None below two seeds.
        num_pairs: Seeds measured for both this contender and the recommended one.
        difference: Mean over these seeds of this contender minus the recommended one;
            positive where the recommended mixture has the lower value.
        standard_error: Of the difference, pooled over contenders; None below two seeds common to all.
        freedom: Degrees of freedom of the standard error; 0 where there is none.
        predicted_mean: What the search predicted before validation, or None.
        predicted_std: Standard deviation of that prediction, or None.
    """

    label: str
    column: str
    num_seeds: int
    mean: float | None
    spread: float | None
    num_pairs: int
    difference: float | None
    standard_error: float | None
    freedom: int
    predicted_mean: float | None
    predicted_std: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the difference is beyond the two-sided 95% level of Student's t."""
        if self.difference is None or self.standard_error is None:
            return False
        return self.difference != 0 and abs(self.difference) >= student_95(self.freedom) * self.standard_error

    @property
    def verdict(self) -> str:
        """How the recommended mixture did against this one, in words; empty for scores."""
        if self.label == RECOMMENDED or self.column.startswith("score/"):
            return ""
        if self.difference is None:
            return "not measured"
        if self.standard_error is None:
            return f"recommended {direction(self.difference)}, from one seed: no standard error"
        return f"recommended {direction(self.difference)}" if self.is_clear else "within noise"


@dataclass(frozen=True)
class PhaseCost:
    """What one phase was charged and what it took.

    Attributes:
        role: `seed`, `expert`, `search` or `validation`.
        num_trials: Trials proposed.
        num_done: Trials that finished with a result.
        cost: Charge in runs of the top rung, failed and pending trials included.
        process_seconds: CPU seconds.
        wall_seconds: Wall seconds of the workers; less passes when several run at a time.
    """

    role: str
    num_trials: int
    num_done: int
    cost: float
    process_seconds: float
    wall_seconds: float


def unit_label(study: Study) -> str:
    """Return the objective's unit in words; only those who train elsewhere know theirs."""
    return "in the unit told" if study.header.external else UNIT_LABELS[study.header.objective["unit"]]


def unit_factor(study: Study, column: str) -> float:
    """Return the factor from a column as recorded to the objective's unit."""
    if column == "objective" or study.header.objective["unit"] == "nats_per_token":
        return 1.0
    return {f"loss/{s.name}": s.bits_per_byte for s in study.header.eval_sets}.get(column, 1.0)


def contenders(study: Study) -> tuple[Contender, ...]:
    """Return the mixtures compared, the recommended one first; none before a recommendation."""
    if study.recommendation is None:
        return ()
    return tuple(sorted(study.contenders, key=lambda contender: contender.label != RECOMMENDED))


def measured(study: Study, contender: Contender) -> dict[str, dict[int, float]]:
    """Return {column: {seed: value}} of a contender's validation runs at the target rung.

    Runs are matched by their mixture, not by their label: those of an earlier
    recommendation do not count for the newest.
    """
    history, values = study.history().of(Role.VALIDATION), defaultdict[str, dict[int, float]](dict)
    trials = {t.id: t for t in history.trials if _same(t.mixture, contender.mixture)}
    for o in history.observations:
        if o.trial in trials and o.fidelity == study.header.ladder.target.name:
            for column, value in values_of(study, o).items():
                values[column][trials[o.trial].seed] = value
    return dict(values)


def values_of(study: Study, observation: Observation) -> dict[str, float]:
    """Return the objective and its columns of an observation, in the objective's unit."""
    columns, objective = observation.columns(), study.value(observation)
    values = {c: columns[c] * unit_factor(study, c) for c in study.objective.columns if c in columns}
    return values if objective is None else {"objective": objective, **values}


def compare(study: Study) -> list[Comparison]:
    """Compare the contenders' validation runs, seed by seed, and with their predictions.

    Returns:
        One entry per column and contender, the objective first and within a column the
        recommended mixture first; empty before there is a recommendation.
    """
    rivals = contenders(study)
    results = [measured(study, contender) for contender in rivals]
    baseline = results[0] if rivals and rivals[0].label == RECOMMENDED else {}
    rows = []
    for column in ("objective", *study.objective.columns):
        noise = _noise([result.get(column, {}) for result in results])
        for contender, result in zip(rivals, results, strict=True):
            values = result.get(column, {})
            rows.append(_comparison(study, contender, column, values, baseline.get(column, {}), noise=noise))
    return rows


def student_95(freedom: int) -> float:
    """Return the two-sided 95% quantile of Student's t, infinite without degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom)) if freedom > 0 else math.inf


def costs(study: Study) -> list[PhaseCost]:
    """Return what each phase was charged and took, in the order of the study."""
    ladder, phases = study.header.ladder, []
    for role in Role:
        history = study.history(seeds=True).of(role)
        if history.trials:
            phases.append(
                PhaseCost(
                    str(role),
                    len(history.trials),
                    sum(trial.status is Status.DONE for trial in history.trials),
                    history.spent(ladder),
                    sum(o.process_seconds for o in history.observations),
                    sum(o.wall_seconds for o in history.observations),
                )
            )
    return phases


def _noise(results: Sequence[dict[int, float]]) -> tuple[float, int]:
    """Return the variance of a run beyond its contender's and its seed's means, and its degrees of freedom.

    The residual of a two-way layout without replication, over the seeds that all
    contenders have; with two contenders it is half the variance of their paired
    difference. Pooling is worth it: two seeds of two contenders leave one degree of
    freedom, of three contenders two.

    Source: Scheffe, The Analysis of Variance, 1959, Section 4.2.
    """
    seeds = sorted(set.intersection(*(set(values) for values in results))) if results else []
    if len(results) < 2 or len(seeds) < 2:
        return 0.0, 0
    freedom = (len(results) - 1) * (len(seeds) - 1)
    table = [[values[seed] for seed in seeds] for values in results]
    rows, columns = [fmean(row) for row in table], [fmean(column) for column in zip(*table, strict=True)]
    grand = fmean(rows)
    squares = sum(
        (v - r - c + grand) ** 2 for row, r in zip(table, rows, strict=True) for v, c in zip(row, columns, strict=True)
    )
    return squares / freedom, freedom


def _comparison(
    study: Study,
    contender: Contender,
    column: str,
    values: dict[int, float],
    baseline: dict[int, float],
    *,
    noise: tuple[float, int],
) -> Comparison:
    variance, freedom = noise
    factor, numbers = unit_factor(study, column), list(values.values())
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    mean, std = contender.mean.get(column), contender.std.get(column)
    return Comparison(
        contender.label,
        column,
        num_seeds=len(numbers),
        mean=fmean(numbers) if numbers else None,
        spread=stdev(numbers) if len(numbers) > 1 else None,
        num_pairs=len(differences),
        difference=fmean(differences) if differences else None,
        standard_error=math.sqrt(2 * variance / len(differences)) if differences and freedom else None,
        freedom=freedom,
        predicted_mean=None if mean is None else mean * factor,
        predicted_std=None if std is None else std * factor,
    )


def _same(one: Mixture, other: Mixture) -> bool:
    return one.domains == other.domains and one.distance(other) < _SAME_MIXTURE


def direction(difference: float) -> str:
    """Return how the recommended mixture does, given a contender's value minus its own."""
    return "better" if difference > 0 else "worse" if difference < 0 else "equal"
