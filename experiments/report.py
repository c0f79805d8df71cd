"""The report: what a study found, how sure that is and what it cost, as one HTML file.

`compare` holds the statistics of the validation runs, free of any plotting. The page
needs no network and no script; every table comes with its numbers as CSV. A study
that is not finished gets a report that says what is missing.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from mixopt.mixture import Mixture
from mixopt.observation import Observation, Role, Status
from mixopt.proposal import Contender
from mixopt.storage import write_text

if TYPE_CHECKING:
    from mixopt.study import Study

UNIT_LABELS = {"bits_per_byte": "bits per byte", "nats_per_token": "nats per token"}
RECOMMENDED = "recommended"
MISSING = "n/a"
# Up to about 4 passes repeated text is worth nearly as much as new text (Muennighoff et al., arXiv:2305.16264, Section 6).
_WORTHWHILE_EPOCHS = 4
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
        standard_error: Of the difference; None below two pairs.
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
    predicted_mean: float | None
    predicted_std: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the difference is at least two standard errors."""
        if self.difference is None or self.standard_error is None:
            return False
        return self.difference != 0 and abs(self.difference) >= 2 * self.standard_error

    @property
    def verdict(self) -> str:
        """How the recommended mixture did against this one, in words; empty for scores."""
        if self.label == RECOMMENDED or self.column.startswith("score/"):
            return ""
        if self.difference is None:
            return "not measured"
        if self.standard_error is None:
            return f"recommended {_direction(self.difference)}, from one seed: no standard error"
        return f"recommended {_direction(self.difference)}" if self.is_clear else "within noise"


@dataclass(frozen=True)
class PhaseCost:
    """What one phase was charged and what it took.

    Attributes:
        role: `expert`, `search` or `validation`.
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


# --- the numbers -------------------------------------------------------------


def unit_label(study: Study) -> str:
    """Return the objective's unit in words."""
    return UNIT_LABELS[study.header.objective["unit"]]


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
    return [
        _comparison(study, contender, column, result.get(column, {}), baseline.get(column, {}))
        for column in ("objective", *study.objective.columns)
        for contender, result in zip(rivals, results, strict=True)
    ]


def costs(study: Study) -> list[PhaseCost]:
    """Return what each phase was charged and took, in the order of the study."""
    ladder, phases = study.header.ladder, []
    for role in Role:
        history = study.history().of(role)
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


def _comparison(
    study: Study, contender: Contender, column: str, values: dict[int, float], baseline: dict[int, float]
) -> Comparison:
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
        standard_error=stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None,
        predicted_mean=None if mean is None else mean * factor,
        predicted_std=None if std is None else std * factor,
    )


def _same(one: Mixture, other: Mixture) -> bool:
    return one.domains == other.domains and one.distance(other) < _SAME_MIXTURE


def _direction(difference: float) -> str:
    return "better" if difference > 0 else "worse" if difference < 0 else "equal"


# --- the page ----------------------------------------------------------------


def write_report(study: Study, path: Path, *, target_tokens: int | None = None) -> Path:
    """Write the report as one self-contained HTML file and return its path.

    Args:
        study: The study, finished or not.
        path: File to write, atomically.
        target_tokens: Length of the training the mixture is for; adds implied epochs.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mixopt.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, give_or_take=_give_or_take, share=_share, seconds=_seconds)
    write_text(path, environment.get_template("report.html.j2").render(_page(study, target_tokens)))
    return path


def _page(study: Study, target_tokens: int | None) -> dict[str, Any]:
    from markupsafe import Markup

    from .figures import all_figures

    comparisons = compare(study)
    mixtures, trials = mixture_rows(study, target_tokens), _trial_rows(study)
    return {
        "study": study,
        "header": study.header,
        "unit": unit_label(study),
        "advice": study.recommendation,
        "best": study.best(),
        "target_tokens": target_tokens,
        "mixtures": mixtures,
        "comparisons": comparisons,
        "gains": [c for c in comparisons if c.column == "objective" and c.label != RECOMMENDED],
        "gain_sentences": gain_sentences(study, comparisons),
        "own": next((c for c in comparisons if c.column == "objective" and c.label == RECOMMENDED), None),
        "costs": costs(study),
        "missing": _missing(study),
        "next_steps": next_steps(study, comparisons, mixtures),
        "figures": [(figure, Markup(figure.svg)) for figure in all_figures(study)],
        "trials": trials,
        "downloads": {
            "runs.csv": _link(study.to_frame().to_csv(index=False)),
            "trials.csv": _table_link(trials),
            "mixture.csv": _table_link(mixtures),
            "comparison.csv": _table_link(asdict(c) for c in comparisons),
            "cost.csv": _table_link(asdict(c) for c in costs(study)),
        },
    }


def mixture_rows(study: Study, target_tokens: int | None = None) -> list[dict[str, Any]]:
    """Return one row per domain: weights of recommended, natural and uniform, and passes over its text."""
    header, advice = study.header, study.recommendation
    natural = Mixture.natural(header.domains).as_dict()
    top = header.ladder.target.num_tokens
    rows = []
    for domain in header.domains:
        weight = advice.mixture.as_dict()[domain.name] if advice else None
        passes = None if weight is None else weight / domain.num_tokens
        rows.append(
            {
                "domain": domain.name,
                "recommended": weight,
                "natural": natural[domain.name],
                "uniform": 1 / len(header.domains),
                "tokens": domain.num_tokens,
                "epochs_proxy": None if passes is None else passes * top,
                "epochs_target": None if passes is None or not target_tokens else passes * target_tokens,
            }
        )
    return rows


def gain_sentences(study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    """Say plainly what the validation runs show about each baseline, also when it is nothing."""
    unit, sentences = unit_label(study), []
    gains = [c for c in comparisons if c.column == "objective" and c.label != RECOMMENDED]
    for c in gains:
        if c.difference is None:
            sentences.append(f"The recommended mixture was not measured against {c.label}.")
            continue
        amount = f"{abs(c.difference):.4f} {unit}"
        word = "lower" if c.difference > 0 else "higher"
        error = "" if c.standard_error is None else f" (standard error {c.standard_error:.4f})"
        outcome = {"better": "it wins", "worse": "it loses", "equal": "it ties"}[_direction(c.difference)]
        end = f"{outcome} beyond noise" if c.is_clear else "that is within noise: no difference is shown"
        if c.standard_error is None:
            end = "one seed gives no standard error, so this shows no more than a direction"
        sentences.append(f"Against {c.label}, the recommended mixture is {amount} {word}{error}; {end}.")
    if any(c.num_pairs == 2 for c in gains):
        sentences.append(
            "Each standard error rests on two seeds and is itself weak: it can easily be off by a factor of two."
        )
    return sentences


def next_steps(study: Study, comparisons: Sequence[Comparison], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return at most two sentences on what would help most."""
    if _missing(study):
        return ["Continue the study with the command that started it: mixopt run resumes where it stopped."]
    steps = [
        f"Against {c.label} the difference is within noise; validating with {_seeds_needed(c)} seeds would settle one of this size."
        for c in comparisons
        if c.column == "objective" and c.standard_error and c.difference and not c.is_clear and _seeds_needed(c) <= 30
    ][:1]
    steps += [
        f"{row['domain']} would be read {row['epochs_target']:.1f} times; beyond about {_WORTHWHILE_EPOCHS} passes "
        "repeated text teaches less: add text, or cap it with constraints.max_epochs."
        for row in sorted(rows, key=lambda row: -(row["epochs_target"] or 0))
        if (row["epochs_target"] or 0) > _WORTHWHILE_EPOCHS
    ][:1]
    advice = study.recommendation
    std = advice.std.get("objective") if advice else None
    if advice and advice.regret_bound is not None and std is not None and advice.regret_bound > 2 * std:
        steps.append(
            f"The regret bound ({advice.regret_bound:.4f}) is more than twice the predicted standard deviation "
            f"({std:.4f}): a larger search.budget may still find a better mixture."
        )
    return steps[:2] or [
        "Train the target model on this mixture, or test it first on a larger proxy: add a rung to the ladder and run again."
    ]


def _seeds_needed(comparison: Comparison) -> int:
    """Return the seeds at which a difference of this size would be two standard errors."""
    spread = (comparison.standard_error or 0.0) * math.sqrt(comparison.num_pairs)
    return math.ceil((2 * spread / abs(comparison.difference or math.inf)) ** 2)


def _missing(study: Study) -> list[str]:
    missing = []
    history = study.history()
    if history.pending:
        missing.append(f"{len(history.pending)} of {len(history.trials)} trials are not finished")
    if not study.stopped:
        missing.append("the search has not ended")
    if study.recommendation is None:
        missing.append("no mixture is recommended yet")
    elif any(not measured(study, contender) for contender in contenders(study)):
        missing.append("some contenders have no validation run yet")
    return missing


def _trial_rows(study: Study) -> list[dict[str, Any]]:
    values = {o.key: study.value(o) for o in study.history().observations}
    rungs = {o.trial: o.fidelity for o in study.history().observations}
    rows = []
    for trial in study.trials:
        weights = [(name, weight) for name, weight in trial.mixture.as_dict().items() if weight >= 0.0005]
        rows.append(
            {
                "trial": trial.id,
                "role": str(trial.role),
                "status": str(trial.status),
                "rung": trial.fidelity,
                "weights": ", ".join(f"{name} {weight:.3f}" for name, weight in sorted(weights, key=lambda w: -w[1])),
                "objective": values.get((trial.id, rungs.get(trial.id, ""))),
                "proposed_by": trial.proposed_by,
                "reason": trial.reason,
                "note": trial.note,
            }
        )
    return rows


def _table_link(rows: Iterable[dict[str, Any]]) -> str:
    listed, file = list(rows), io.StringIO()
    if listed:
        writer = csv.DictWriter(file, list(listed[0]))
        writer.writeheader()
        writer.writerows(listed)
    return _link(file.getvalue())


def _link(text: str) -> str:
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()


def _number(value: float | None, digits: int = 4) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _give_or_take(value: float | None, error: float | None) -> str:
    return _number(value) if error is None else f"{_number(value)} ± {_number(error)}"


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f} %"


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
