"""What a study says of its predictor: agreement with the runs measured so far, in the study's units.

The statistics are those of `mixopt/trust.py`; the command line and the report show the
same rows. Says nothing before all experts are scored and a mixture is measured.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from typing import Any

from mixopt.errors import StudyError
from mixopt.observation import History, Role, Status
from mixopt.study import Study
from mixopt.trust import agreements

from .build import load_predictor
from .comparison import unit_factor

logger = logging.getLogger(__name__)


def trust_rows(study: Study) -> list[dict[str, Any]]:
    """Return one row per column that the MDE predicts and runs have measured, the objective last.

    Rows hold the fields of `Agreement` and its verdict; shift, error and spread of losses
    are in the objective's unit, those of scores are accuracies. None stands for what
    cannot be computed.
    """
    if study.header.external:
        return []
    history = study.history()
    done = {t.label for t in history.of(Role.EXPERT).trials if t.status is Status.DONE}
    if not done.issuperset(study.header.domain_names):
        return []
    try:
        predictor = load_predictor(study)
    except StudyError as error:
        logger.warning("mde unavailable reason=%s; its agreement with the runs is not shown", error)
        return []
    found = agreements(predictor, _alike(study, history), study.header.ladder, objective=study.objective)
    rows = [{**asdict(a.in_units(unit_factor(study, a.column))), "verdict": a.verdict} for a in found]
    return [{name: _finite(value) for name, value in row.items()} for row in rows]


def _alike(study: Study, history: History) -> History:
    """Leave out validation runs where they start from scratch and experts do not: their level is another."""
    if study.header.warm_start is None:
        return history
    kept = [history.of(role) for role in (Role.EXPERT, Role.SEARCH)]
    return History(
        tuple(trial for part in kept for trial in part.trials),
        tuple(observation for part in kept for observation in part.observations),
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
