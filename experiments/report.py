"""The report: what a study found, how sure that is and what it cost, as one HTML file.

The statistics are those of `comparison.py`. The page
needs no network and no script; every table comes with its numbers as CSV. A study
that is not finished gets a report that says what is missing.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixopt.mixture import Mixture
from mixopt.service import RECOMMENDED
from mixopt.storage import write_text

from .comparison import (
    Comparison,
    compare,
    contenders,
    costs,
    direction,
    measured,
    student_95,
    unit_label,
)

if TYPE_CHECKING:
    from mixopt.study import Study

MISSING = "n/a"
# Up to about 4 passes repeated text is worth nearly as much as new text (Muennighoff et al., arXiv:2305.16264, Section 6).
_WORTHWHILE_EPOCHS = 4


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
    from .trusting import trust_rows

    comparisons = compare(study)
    mixtures, trials, trust = mixture_rows(study, target_tokens), _trial_rows(study), trust_rows(study)
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
        "trust": trust,
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
            **({"predictor.csv": _table_link(trust)} if trust else {}),
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
        outcome = {"better": "it wins", "worse": "it loses", "equal": "it ties"}[direction(c.difference)]
        end = f"{outcome} beyond noise" if c.is_clear else "that is within noise: no difference is shown"
        if c.standard_error is None:
            end = "one seed gives no standard error, so this shows no more than a direction"
        sentences.append(f"Against {c.label}, the recommended mixture is {amount} {word}{error}; {end}.")
    freedom = max((c.freedom for c in gains), default=0)
    if freedom:
        sentences.append(
            f"Standard errors are pooled over the contenders and rest on {freedom} degree{'s' if freedom > 1 else ''} of freedom; "
            f"beyond noise means {student_95(freedom):.1f} standard errors, the 95% level of Student's t."
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
    """Return the seeds at which a difference of this size would be two standard errors, about the 95% level."""
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
