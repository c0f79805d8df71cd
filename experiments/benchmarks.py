"""Replays in bulk: optimizers x objectives x seeds on one table, kept, repeated and compared.

A replay is a job for an executor, found again by content: table, settings and the
sources of the search. Statistics are over seeds; the regret arithmetic is in
`search/replay.py`. Nothing here draws or prints.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

import mixopt
from mixopt import search
from mixopt.errors import ConfigError, MixoptError, did_you_mean
from mixopt.execution import SerialExecutor
from mixopt.fidelity import Ladder
from mixopt.identity import file_fingerprint, fingerprint
from mixopt.protocols import Predictor
from mixopt.ray_executor import RayExecutor
from mixopt.runs_table import RunsTable
from mixopt.search import catalog
from mixopt.search.replay import CAP_REACHED, Case, Replay, replay
from mixopt.storage import RunDirectory, read_json, write_json

Expression = str | Mapping[str, float]

DECISION_COLUMNS = (
    "optimizer", "objective", "seed", "step", "run", "fidelity", "cost", "total_cost", "value", "regret",
    "recommendation_regret", "seconds",
)  # fmt: skip
_METRICS: dict[str, Callable[[Replay], float]] = {
    "cost_to_best": lambda r: r.score.cost_to_best,
    "auc": lambda r: r.score.area,
    "regret_at_budget": lambda r: r.score.regret,
    "recommendation_regret": lambda r: r.recommendation_regret,
}


@dataclass(frozen=True)
class Ground:
    """What replays are made of; plain data.

    Attributes:
        table: Finished runs.
        predictor: What the experts' scores say, or None.
        content: Content hash of the scores, empty without.
        experts_fidelity: Rung of the experts, empty without.
    """

    table: RunsTable
    predictor: Predictor | None = None
    content: str = ""
    experts_fidelity: str = ""

    def notes(self, ladder: Ladder) -> list[str]:
        """Say what the experts cost, which no replay is charged."""
        if self.predictor is None or self.experts_fidelity not in [rung.name for rung in ladder]:
            return []
        num, rung = len(self.table.domains), self.experts_fidelity
        cost = num * ladder[rung].cost / ladder.target.cost
        return [f"{num} experts at {rung} cost {cost:.3g} target runs, which mfbo+mde and mde are not charged here"]


@dataclass(frozen=True)
class ReplayJob:
    """One replay to do; plain data.

    Attributes:
        fingerprint: Content hash of all that determines it.
        target: Name of the target rung.
        optimizer: A name of the catalog.
        label: Short name of the objective.
        expression: The objective: text, or {column: weight}.
        seed: Of the optimizer.
        budget: Runs of the target rung.
        max_decisions: Cap on purchases, or None.
        until_best: Whether a replay ends once the best row is measured.
    """

    fingerprint: str
    target: str
    optimizer: str
    label: str
    expression: Expression
    seed: int
    budget: float
    max_decisions: int | None = None
    until_best: bool = False


@dataclass(frozen=True)
class Result:
    """A finished replay beside its job."""

    job: ReplayJob
    replay: Replay


@dataclass(frozen=True)
class Paired:
    """A difference over pairs (same objective and seed): one optimizer minus another.

    Attributes:
        mean: Mean difference.
        error: Its standard error; None below two pairs.
        num_pairs: Pairs.
    """

    mean: float
    error: float | None
    num_pairs: int

    @property
    def not_worse(self) -> bool:
        """Whether the first is at most two standard errors above the second; one pair shows nothing."""
        return self.error is None or self.mean <= 2 * self.error


@dataclass(frozen=True)
class Benchmark:
    """Which replays to do on a table: every optimizer on every objective with every seed.

    Attributes:
        target: Name of the target rung.
        objectives: {label: expression}.
        optimizers: Names of the catalog.
        seeds: Seeds of the optimizers.
        budget: Runs of the target rung.
        max_decisions: Cap on purchases, or None.
        until_best: Whether a replay ends once the best row is measured.
    """

    target: str
    objectives: Mapping[str, Expression]
    optimizers: Sequence[str]
    seeds: Sequence[int]
    budget: float
    max_decisions: int | None = None
    until_best: bool = False

    def columns(self, table: RunsTable) -> set[str]:
        """Return all columns that an objective has."""
        cases = (Case.of(table, self.target, expression) for expression in self.objectives.values())
        return {column for case in cases for column in case.objective.columns}

    def jobs(self, ground: Ground) -> list[ReplayJob]:
        """Return the jobs on a table, optimizer by optimizer.

        Raises:
            ConfigError: If an optimizer is unknown or the table cannot be searched.
        """
        for name in self.optimizers:
            if name not in catalog.names():
                raise ConfigError(
                    f"unknown optimizer {name!r}{did_you_mean(name, catalog.names())}; known are {', '.join(catalog.names())}"
                )
        for expression in self.objectives.values():
            case = Case.of(ground.table, self.target, expression)
            for name in {*self.optimizers} & catalog.NEED_PREDICTOR:
                catalog.make(name, case.task(0, ground.predictor))
        content = [table_fingerprint(ground.table), ground.content, sources_fingerprint(), mixopt.__version__]
        return [
            self._job(content, name, label, seed)
            for name in dict.fromkeys(self.optimizers)
            for label in self.objectives
            for seed in self.seeds
        ]

    def _job(self, content: list[str], optimizer: str, label: str, seed: int) -> ReplayJob:
        expression = self.objectives[label]
        plain = dict(expression) if isinstance(expression, Mapping) else expression
        key = [content, self.target, optimizer, plain, seed, float(self.budget), self.max_decisions, self.until_best]
        return ReplayJob(
            fingerprint(key), self.target, optimizer, label, plain, seed, float(self.budget), self.max_decisions,
            self.until_best,
        )  # fmt: skip


def run_all(
    ground: Ground,
    jobs: Sequence[ReplayJob],
    *,
    workers: int = 1,
    cache: Path | None = None,
    done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Do all jobs and return their results in the jobs' order.

    Args:
        ground: Finished runs.
        jobs: From `Benchmark.jobs`.
        workers: Replays at the same time; 1 is this process, more are a local Ray.
        cache: Folder of finished replays, or None to keep none.
        done: Called with every result once it is there, kept ones first.

    Raises:
        MixoptError: If a replay fails.
    """
    found: dict[str, Result] = {}
    for job in jobs:
        kept = _read(job, cache) if cache else None
        if kept is not None:
            found[job.fingerprint] = Result(job, kept)
            done(found[job.fingerprint])
    for result in _execute(ground, [job for job in jobs if job.fingerprint not in found], workers, cache):
        found[result.job.fingerprint] = result
        done(result)
    return [found[job.fingerprint] for job in jobs]


def run_replay(ground: Ground, job: ReplayJob, directory: Path) -> Replay:
    """Do a job; what a worker calls where nothing is kept."""
    case = Case.of(ground.table, job.target, job.expression)
    return replay(
        case, job.optimizer, seed=job.seed, budget=job.budget, max_decisions=job.max_decisions,
        until_best=job.until_best, predictor=ground.predictor,
    )  # fmt: skip


def run_kept_replay(ground: Ground, job: ReplayJob, directory: Path) -> Replay:
    """Do a job and leave its result file behind; what a worker calls where there is a cache."""
    done = run_replay(ground, job, directory)
    write_json(RunDirectory(directory).result(job.fingerprint), done.to_json())
    return done


def random_objectives(columns: Sequence[str], num: int, seed: int) -> dict[str, Expression]:
    """Draw weightings of all loss columns, or of all score columns where there is no loss.

    Returns:
        {`random-1`: {column: weight}, ...}, weights Dirichlet(0.5) over the sorted columns.

    Raises:
        ConfigError: If there is no column to weight.
    """
    kinds = (sorted(c for c in columns if c.startswith(kind)) for kind in ("loss/", "score/"))
    names = next((found for found in kinds if found), None)
    if num and not names:
        raise ConfigError("random objectives need loss/ or score/ columns, the table has none; add some")
    draws = np.random.default_rng(seed).dirichlet(np.full(len(names or [0]), 0.5), size=num)
    return {f"random-{i + 1}": dict(zip(names or [], map(float, row), strict=True)) for i, row in enumerate(draws)}


def summarize(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one plain row per objective and optimizer, over seeds, best first within an objective."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.job.label, result.job.optimizer), []).append(result)
    rows = [_row(optimizer, label, group) for (label, optimizer), group in groups.items()]
    order = list(dict.fromkeys(label for label, _ in groups))
    return sorted(rows, key=lambda row: (order.index(row["objective"]), row["cost_to_best_mean"]))


def pooled(results: Sequence[Result], label: str) -> list[dict[str, Any]]:
    """Return one row per optimizer over all objectives and seeds, best first.

    The objectives are the sample: each enters with its mean over seeds, and standard
    errors are over objectives (over seeds, where there is one objective).
    """
    by_optimizer: dict[str, list[Result]] = {}
    for result in results:
        by_optimizer.setdefault(result.job.optimizer, []).append(result)
    rows = []
    for optimizer, group in by_optimizer.items():
        row = _row(optimizer, label, group)
        labels = dict.fromkeys(result.job.label for result in group)
        if len(labels) > 1:
            for name, metric in _METRICS.items():
                means = [fmean(metric(r.replay) for r in group if r.job.label == one) for one in labels]
                row |= {f"{name}_mean": fmean(means), f"{name}_se": _standard_error(means)}
        rows.append({**row, "seeds": len({result.job.seed for result in group}), "objectives": len(labels)})
    return sorted(rows, key=lambda row: float(row["cost_to_best_mean"]))


def paired(one: Sequence[Result], other: Sequence[Result], metric: str) -> Paired:
    """Compare two optimizers on the objectives and seeds that both have.

    Args:
        one: Results of the first.
        other: Results of the second.
        metric: `cost_to_best`, `auc`, `regret_at_budget` or `recommendation_regret`; lower is better.

    Raises:
        ConfigError: If they share no objective and seed.
    """
    value = _METRICS[metric]
    others = {(r.job.label, r.job.seed): value(r.replay) for r in other}
    gaps = [value(r.replay) - others[r.job.label, r.job.seed] for r in one if (r.job.label, r.job.seed) in others]
    if not gaps:
        raise ConfigError("a paired comparison needs common objectives and seeds, got none; replay both on the same")
    return Paired(fmean(gaps), _standard_error(gaps), len(gaps))


def decision_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one plain row per decision, with DECISION_COLUMNS as keys."""
    return [
        {"optimizer": r.job.optimizer, "objective": r.job.label, "seed": r.job.seed, **vars(decision)}
        for r in results
        for decision in r.replay.decisions
    ]


def notes(table: RunsTable, jobs: Sequence[ReplayJob], results: Sequence[Result]) -> list[str]:
    """Say in words what a reader of the numbers must know."""
    said, seen = [], dict.fromkeys((job.label, job.target) for job in jobs)
    expressions = {job.label: job.expression for job in jobs}
    for label, target in seen:
        if Case.of(table, target, expressions[label]).initial_regret == 0:
            said.append(f"{label}: all runs at {target} have the same objective, so every regret is 0")
    capped = Counter(r.job.optimizer for r in results if r.replay.stopped == CAP_REACHED)
    for optimizer, count in capped.items():
        cap = next(job.max_decisions for job in jobs if job.optimizer == optimizer)
        said.append(f"{optimizer}: {count} replays ended at the cap of {cap} decisions, before the budget was spent")
    return said


def table_fingerprint(table: RunsTable) -> str:
    """Return the content hash of all that a replay sees of a table."""
    digest = hashlib.sha256()
    arrays = {"weights": table.weights, "costs": table.costs, **table.columns}
    arrays |= {f"noise {name}": values for name, values in table.noise.items()}
    for name, values in arrays.items():
        digest.update(name.encode() + np.ascontiguousarray(values, dtype=np.float64).tobytes())
    plain = [table.domains, table.runs, table.fidelities, table.seeds, table.parents]
    return fingerprint([plain, digest.hexdigest()])


def sources_fingerprint() -> str:
    """Return the content hash of the code that decides: the packages mixopt and mixopt.search."""
    folders = [Path(str(package.__file__)).parent for package in (mixopt, search)]
    return fingerprint([[path.name, file_fingerprint(path)] for f in folders for path in sorted(f.glob("*.py"))])


def _execute(ground: Ground, jobs: Sequence[ReplayJob], workers: int, cache: Path | None) -> Iterator[Result]:
    run, folder = (run_kept_replay, cache) if cache else (run_replay, Path())
    executor: SerialExecutor | RayExecutor
    if workers == 1 or len(jobs) < 2:
        executor = SerialExecutor(ground, folder, run=run)
    else:
        executor = RayExecutor(ground, folder, workers=workers, run=run)
    try:
        for job in jobs:
            executor.submit(job)
        for _ in jobs:
            reports: Sequence[Any] = ()
            while not reports:
                reports = executor.collect(1.0)
            (report,) = reports
            if report.results is None:
                raise MixoptError(
                    f"the replay of {report.job.optimizer} on {report.job.label} with seed {report.job.seed} failed: "
                    f"{report.error}; where there is a cache the same command goes on"
                )
            yield Result(report.job, report.results)
    finally:
        executor.shutdown()


def _read(job: ReplayJob, cache: Path) -> Replay | None:
    data = read_json(RunDirectory(cache).result(job.fingerprint))
    return None if data is None else Replay.from_json(data)


def _row(optimizer: str, label: str, group: Sequence[Result]) -> dict[str, Any]:
    replays = [result.replay for result in group]
    row: dict[str, Any] = {"optimizer": optimizer, "objective": label, "seeds": len(replays)}
    for name, metric in _METRICS.items():
        values = [metric(r) for r in replays]
        row |= {f"{name}_mean": fmean(values), f"{name}_se": _standard_error(values)}
    rungs = replays[0].runs_bought
    return {
        **row,
        "success": fmean(r.score.success for r in replays),
        "runs_bought": {rung: fmean(r.runs_bought[rung] for r in replays) for rung in rungs},
        "seconds_per_decision": fmean(r.seconds_per_decision for r in replays),
        "stopped": dict(Counter(r.stopped for r in replays)),
    }


def _standard_error(values: Sequence[float]) -> float | None:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
