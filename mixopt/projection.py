"""What a dashboard shows of a study: names, tags, parameters and metric points.

Pure functions of the ledger and the curves beside it; knows nothing of MLflow, which
`tracking.py` writes them to.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .fidelity import Fidelity
from .mixture import Mixture
from .observation import Observation, Role, Trial

if TYPE_CHECKING:
    from .study import Study

logger = logging.getLogger(__name__)

Point = tuple[str, float, int]  # metric, value, step

_MOST_SHARES = 12  # more columns fit on no screen
LONGEST_TAG = 5000  # MLflow's limit for tag values is 8000 since 3.0, 5000 before


def shared_tags(study: Study) -> dict[str, str]:
    """Return the tags of every run of a study."""
    # On every run: a filter in the MLflow UI drops the children of runs it keeps.
    return {"mixopt.study": study.header.name, "mixopt.run_dir": str(study.files.path.absolute())}


def run_name(study: Study, trial: Trial) -> str:
    """Return a trial's readable name: `search-003 top`, `uniform seed 2`."""
    if trial.role is not Role.VALIDATION:
        return f"{trial.id} {trial.fidelity}"
    seeds = list(dict.fromkeys(t.seed for t in study.trials if t.role is Role.VALIDATION))
    return f"{trial.label} seed {seeds.index(trial.seed) + 1}"


def trial_tags(trial: Trial) -> dict[str, str]:
    """Return what a trial is and why it was run."""
    tags = {
        "mixopt.kind": str(trial.role),
        "mixopt.trial": trial.id,
        "mixopt.fidelity": trial.fidelity,
        "mixopt.domain": trial.label if trial.role is Role.EXPERT else "",
        "mixopt.label": trial.label if trial.role is Role.VALIDATION else "",
        "mixopt.proposed_by": trial.proposed_by,
        "mixopt.reason": trial.reason[:LONGEST_TAG],
        "mixopt.parent_trial": trial.parent or "",
        "mlflow.note.content": _trial_note(trial)[:LONGEST_TAG],
    }
    return {key: value for key, value in tags.items() if value}


def _trial_note(trial: Trial) -> str:
    """Return what a trial is, in Markdown: its part in the study, why it was made, its mixture."""
    shares = sorted(trial.mixture.as_dict().items(), key=lambda item: -item[1])
    rows = [f"| {name} | {weight:.3f} |" for name, weight in shares if weight > 0]
    why = f": {trial.reason}" if trial.reason else "."
    by = f" by {trial.proposed_by}" if trial.proposed_by else ""
    return "\n".join(
        [
            f"A run of the {trial.role} phase to rung `{trial.fidelity}`, proposed{by}{why}",
            "",
            "| domain | weight |",
            "|---|---|",
            *rows,
        ]
    )


def trial_params(study: Study, trial: Trial) -> dict[str, Any]:
    """Return the few numbers that define a trial: rung, seed, sizes, weights."""
    rung = rung_of(study, trial.fidelity)
    return {
        "fidelity": trial.fidelity,
        "seed": trial.seed,
        "tokens": rung.num_tokens,
        "params": rung.num_params,
        "proposed_by": trial.proposed_by,
        **{f"w.{name}": round(weight, 4) for name, weight in trial.mixture.as_dict().items()},
    }


def rung_of(study: Study, name: str) -> Fidelity:
    """Return a rung of the newest header that knows it; old trials may use one since removed."""
    return next(rung for header in reversed(study.headers) for rung in header.ladder if rung.name == name)


def trial_points(
    study: Study, observations: Sequence[Observation], objectives: Mapping[tuple[str, str], float | None]
) -> list[Point]:
    """Return the metrics at each rung, with its tokens as step; costs and seconds add up over rungs."""
    factors = {s.name: s.bits_per_byte for s in study.header.eval_sets if s.num_bytes}
    points: list[Point] = []
    totals = dict.fromkeys(("cost", "flops", "process_seconds", "wall_seconds"), 0.0)
    for o in sorted(observations, key=lambda o: rung_of(study, o.fidelity).num_tokens):
        values = {f"eval/{name}/loss": loss for name, loss in o.losses.items()}
        values |= {f"eval/{name}/bpb": loss * factors[name] for name, loss in o.losses.items() if name in factors}
        values |= {f"eval/{name}/accuracy": score for name, score in o.scores.items()}
        values |= {f"epochs/{name}": passes for name, passes in o.epochs.items()}
        totals = {name: total + getattr(o, name) for name, total in totals.items()}
        objective = objectives.get(o.key)
        values |= totals if objective is None else {**totals, "objective": objective}
        step = rung_of(study, o.fidelity).num_tokens
        points += [(key, float(value), step) for key, value in values.items()]
    if observations:
        points += [
            (f"load/{layer}.{ffn_expert}", float(load), step)
            for layer, loads in enumerate(o.router_loads)
            for ffn_expert, load in enumerate(loads)
        ]
    return points


def curve(path: Path) -> list[Point]:
    """Return the training curve of one trial; a torn line is left out, a missing file is empty."""
    points: list[Point] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            points.append(("train/loss", float(entry["loss"]), int(entry["step"])))
        except (ValueError, KeyError, TypeError):
            logger.debug("curve line skipped path=%s", path)
    return points


def study_params(study: Study) -> dict[str, Any]:
    """Return what a study is about."""
    header = study.header
    return {
        "objective": header.objective["expression"],
        "unit": header.objective["unit"],
        "ladder": ", ".join(rung.name for rung in header.ladder),
        "domains": len(header.domains),
        "budget": header.budget,
        "seed": header.seed,
    }


def study_points(study: Study, objectives: Mapping[tuple[str, str], float | None]) -> list[Point]:
    """Return the running best over the search's results and its spending, both in ledger order."""
    header, search = study.header, study.history().of(Role.SEARCH)
    ids, target = {trial.id for trial in search.trials}, header.ladder.target.name
    points: list[Point] = []
    best = math.inf
    done: set[str] = set()
    for o in study.observations:
        if o.trial in ids:
            done.add(o.trial)
            value = objectives.get(o.key)
            best = min(best, value) if o.fidelity == target and value is not None else best
            points.append(("best_objective", best, len(done)))
    points = list({point[2]: point for point in points}.values())
    spent = 0.0
    for count, trial in enumerate(search.trials, start=1):
        spent += trial.price(header.ladder)
        points.append(("spent", spent, count))
    advice = study.recommendation
    if advice:
        values = {f"mixture/{name}": weight for name, weight in advice.mixture.as_dict().items()}
        values["predicted_objective"] = advice.mean.get("objective", math.nan)
        values["predicted_std"] = advice.std.get("objective", math.nan)
        values["regret_bound"] = math.nan if advice.regret_bound is None else advice.regret_bound
        values["best_probability"] = math.nan if advice.best_probability is None else advice.best_probability
        points += [(key, float(value), len(done)) for key, value in values.items()]
    return points


def study_tags(study: Study) -> dict[str, str]:
    """Return where a study stands, and its description in Markdown."""
    header = study.header
    lines = [
        f"Minimizes `{header.objective['expression']}` ({header.objective['unit'].replace('_', ' ')}) over "
        f"{len(header.domains)} domains with a budget of {header.budget:g} top-rung runs."
    ]
    if study.stopped:
        lines += ["", f"The search ended: {study.stopped}."]
    lines += ["", *(_recommendation_lines(study) if study.recommendation else ["No recommendation yet."])]
    lines += ["", f"More: `mixopt report {study.files.path.absolute()}`"]
    return {"mixopt.status": study.stopped or "searching", "mlflow.note.content": "\n".join(lines)[:LONGEST_TAG]}


def dashboard_view(study: Study) -> dict[str, Any]:
    """Return the columns that MLflow's table of runs shows, in the words of its shared views."""
    metrics = ("objective", "best_objective", "cost", "process_seconds")
    shares = [f"w.{name}" for name in study.header.domain_names[:_MOST_SHARES]]
    columns = [f"metrics.`{name}`" for name in metrics]
    columns += [f"params.`{name}`" for name in ("fidelity", "proposed_by", *shares)]
    columns += [f"tags.`mixopt.{name}`" for name in ("kind", "status", "domain")]
    return {"selectedColumns": columns}


def _recommendation_lines(study: Study) -> list[str]:
    advice = study.recommendation
    assert advice is not None
    natural = Mixture.natural(study.header.domains).as_dict()
    rows = [f"| {name} | {w:.3f} | {natural.get(name, 0.0):.3f} |" for name, w in advice.mixture.as_dict().items()]
    mean, std = advice.mean.get("objective"), advice.std.get("objective")
    sure = "" if mean is None or std is None else f"Predicted objective {mean:.4f} ± {std:.4f}. "
    bound = "" if advice.regret_bound is None else f"Regret bound {advice.regret_bound:.4f} (95 %). "
    if advice.best_probability is not None:
        bound += f"Best but for the noise of one run with probability {advice.best_probability:.2f}."
    table = ["| domain | recommended | natural |", "|---|---|---|", *rows]
    return [*table, "", f"{sure}{bound}", "", f"By {advice.recommended_by}: {advice.reason}"]
