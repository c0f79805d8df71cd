"""What a finished study leaves for people: mixture.yaml, the report, a summary as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mixopt.mixture import Mixture
from mixopt.observation import Role
from mixopt.storage import write_text
from mixopt.study import Study

from .build import Location
from .comparison import compare, costs
from .report import write_report

_DIGITS = 4


def round_weights(mixture: Mixture, digits: int = _DIGITS) -> dict[str, float]:
    """Round weights to a grid so that they still sum to exactly 1 (largest remainder)."""
    unit = 10**digits
    scaled = mixture.weights * unit
    floors = np.floor(scaled)
    for i in np.argsort(floors - scaled)[: round(unit - floors.sum())]:
        floors[i] += 1
    return {name: round(float(value) / unit, digits) for name, value in zip(mixture.domains, floors, strict=True)}


def write_outputs(location: Location, study: Study) -> None:
    """Write mixture.yaml and the report of a study with a recommendation."""
    write_text(study.files.mixture, mixture_yaml(study))
    write_report(study, study.files.report, target_tokens=location.config.constraints.target_tokens)


def mixture_yaml(study: Study) -> str:
    """Return the recommended mixture as YAML; weights are shares of tokens and sum to 1."""
    recommendation = study.recommendation
    assert recommendation is not None
    objective: dict[str, Any] = {
        "unit": study.header.objective["unit"],
        "expression": study.header.objective["expression"],
    }
    # A baseline that measured nothing at the top rung predicts nothing.
    if "objective" in recommendation.mean:
        objective["predicted"] = round(recommendation.mean["objective"], 5)
        objective["std"] = round(recommendation.std["objective"], 5)
    data = {
        "weights": round_weights(recommendation.mixture),
        "unit": "tokens",
        "study": study.header.name,
        "tokenizer": study.header.tokenizer,
        "fidelity": recommendation.fidelity,
        "recommended_by": recommendation.recommended_by,
        "objective": objective,
    }
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def artifacts(study: Study) -> list[Path]:
    """Return the files that the dashboard shows with the study."""
    return [study.files.report, study.files.mixture, study.files.config]


def summarize(location: Location, study: Study) -> dict[str, Any]:
    """Return a study's result as plain data: what `mixopt run --json` prints."""
    header, files = study.header, study.files
    recommendation = study.recommendation
    target = header.ladder.target.num_tokens
    sizes = {domain.name: domain.num_tokens for domain in header.domains}
    planned = location.config.constraints.target_tokens
    return {
        "name": header.name,
        "objective": dict(header.objective),
        "stopped": study.stopped,
        "recommendation": recommendation and recommendation.to_json(),
        "contenders": [
            {
                "label": c.label,
                "weights": c.mixture.as_dict(),
                "epochs": {
                    name: round(weight * (planned or target) / sizes[name], 4)
                    for name, weight in c.mixture.as_dict().items()
                },
            }
            for c in study.contenders
        ],
        "epochs_at_tokens": planned or target,
        "comparison": [vars(row) for row in compare(study)],
        "costs": [vars(row) for row in costs(study)],
        "search_spent": study.history().of(Role.SEARCH).spent(header.ladder),
        "files": {
            "run_directory": str(files.path),
            "mixture": str(files.mixture),
            "report": str(files.report),
            "ledger": str(files.ledger),
        },
    }
