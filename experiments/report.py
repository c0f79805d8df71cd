"""The report: what a study found, how sure that is and what it cost, as one HTML file.

Statistics are those of `comparison.py`, sentences those of `sentences.py`, drawings those
of `figures.py`. The page needs no network and no script, and its policy forbids both;
every figure and table comes with its numbers as CSV. A study that is not finished gets a
report that says what is missing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixopt.errors import MixoptError
from mixopt.observation import Role
from mixopt.protocols import Optimizer
from mixopt.service import RECOMMENDED
from mixopt.storage import write_text

from .comparison import Comparison, compare, costs, unit_label
from .drawing import Figure, Missing, csv_link, csv_of
from .sentences import (
    commands,
    gain_sentences,
    in_short,
    in_time,
    missing,
    mixture_rows,
    next_steps,
    target_tokens_of,
)

if TYPE_CHECKING:
    from mixopt.study import Study

logger = logging.getLogger(__name__)

MISSING = "n/a"
# What does not fit a page that a person reads is in the CSV.
_MOST_TRIALS = 150
_MOST_COMPARISONS = 45
_MOST_WEIGHTS = 8
_SECTIONS = {
    "mixture": ("mixture",),
    "gain": ("validation",),
    "certainty": ("calibration", "around", "responses"),
    "cost": ("compute", "search"),
    "behind": ("trials", "trade-offs", "effects", "experts", "redundancy"),
}


def write_report(study: Study, path: Path, *, target_tokens: int | None = None) -> Path:
    """Write the report as one self-contained HTML file and return its path.

    Args:
        study: The study, finished or not.
        path: File to write, atomically.
        target_tokens: Length of the training the mixture is for; adds implied epochs.
            Default: what the study says.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mixopt.experiments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, give_or_take=_give_or_take, share=_share, seconds=in_time)
    page = _page(study, target_tokens or target_tokens_of(study))
    write_text(path, environment.get_template("report.html.j2").render(page))
    return path


def optimizer_of(study: Study) -> Optimizer | None:
    """Return the optimizer of a study's run directory, or None where it cannot be opened, with a warning."""
    from . import build

    if not study.files.config.exists():
        return None
    try:
        return build.open_optimizer(build.locate(study.files.path), study)
    except MixoptError as error:
        logger.warning("surrogate unavailable reason=%s; figures that ask it are left out", error)
        return None


def _page(study: Study, target_tokens: int | None) -> dict[str, Any]:
    from .trusting import trust_rows

    comparisons, phases = compare(study), costs(study)
    mixtures, trials, trust = mixture_rows(study, target_tokens), _trial_rows(study), trust_rows(study)
    steps = next_steps(study, comparisons, mixtures)
    return {
        "study": study,
        "header": study.header,
        "unit": unit_label(study),
        "advice": study.recommendation,
        "best": study.best(),
        "target_tokens": target_tokens,
        "short": in_short(study, comparisons, steps),
        "mixtures": mixtures,
        "comparisons": comparisons[:_MOST_COMPARISONS],
        "num_comparisons": len(comparisons),
        "gain_sentences": gain_sentences(study, comparisons),
        "own": next((c for c in comparisons if c.column == "objective" and c.label == RECOMMENDED), None),
        "trust": trust,
        "costs": phases,
        "missing": missing(study),
        "next_steps": steps,
        "commands": commands(study),
        "figures": _sections(study),
        "trials": _fewer(trials),
        "num_trials": len(trials),
        "downloads": _downloads(study, trials, mixtures, comparisons, trust),
    }


def _sections(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Return {section: its figures, drawn or with the reason why not}."""
    from markupsafe import Markup

    from .figures import all_figures

    made: dict[str, Figure | Missing] = {figure.name: figure for figure in all_figures(study, optimizer_of(study))}

    def plain(figure: Figure | Missing) -> dict[str, Any]:
        if isinstance(figure, Missing):
            return {"title": figure.title, "reason": figure.reason}
        return {
            **vars(figure),
            "svg": Markup(figure.svg),  # nosec B704: figures escape every text themselves
            "link": csv_link(figure.csv),
            "reason": "",
        }

    return {section: [plain(made[name]) for name in names] for section, names in _SECTIONS.items()}


def _downloads(
    study: Study,
    trials: Sequence[dict[str, Any]],
    mixtures: Sequence[dict[str, Any]],
    comparisons: Sequence[Comparison],
    trust: Sequence[dict[str, Any]],
) -> dict[str, str]:
    tables: dict[str, Iterable[dict[str, Any]]] = {
        "runs.csv": [{str(k): v for k, v in row.items()} for row in study.to_frame().to_dict("records")],
        "trials.csv": trials,
        "mixture.csv": mixtures,
        "comparison.csv": [asdict(c) for c in comparisons],
        "cost.csv": [asdict(c) for c in costs(study)],
        **({"predictor.csv": trust} if trust else {}),
    }
    return {name: csv_link(csv_of(rows)) for name, rows in tables.items()}


def _trial_rows(study: Study) -> list[dict[str, Any]]:
    values = {o.key: study.value(o) for o in study.history().observations}
    rungs = {o.trial: o.fidelity for o in study.history().observations}
    rows = []
    for trial in study.trials:
        weights = sorted(((w, k) for k, w in trial.mixture.as_dict().items() if w >= 0.0005), key=lambda pair: -pair[0])
        rest = f" and {len(weights) - _MOST_WEIGHTS} more" if len(weights) > _MOST_WEIGHTS else ""
        rows.append(
            {
                "trial": trial.id,
                "role": str(trial.role),
                "status": str(trial.status),
                "rung": trial.fidelity,
                "weights": ", ".join(f"{name} {weight:.3f}" for weight, name in weights[:_MOST_WEIGHTS]) + rest,
                "objective": values.get((trial.id, rungs.get(trial.id, ""))),
                "proposed_by": trial.proposed_by,
                "reason": trial.reason,
                "note": trial.note,
            }
        )
    return rows


def _fewer(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the rows that a page has room for: validation, then the newest, in the order of the ledger."""
    if len(rows) <= _MOST_TRIALS:
        return list(rows)
    ranked = sorted(range(len(rows)), key=lambda i: (rows[i]["role"] != Role.VALIDATION, -i))
    return [rows[i] for i in sorted(ranked[:_MOST_TRIALS])]


def _number(value: float | None, digits: int = 4) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _give_or_take(value: float | None, error: float | None) -> str:
    return _number(value) if error is None else f"{_number(value)} ± {_number(error)}"


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f} %"
