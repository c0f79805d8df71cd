"""Reports: what single runs showed, as one would say it in Python or JSON, made into a runs table.

A suggested run needs no more than its id, since the ledger has its mixture and rung; a
run of the user's own brings both. What a table means for the ledger is in `telling.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mixopt.errors import ConfigError
from mixopt.mixture import Array
from mixopt.observation import Trial
from mixopt.runs import RunsTable, normalized

_SHOWN = 8


@dataclass(frozen=True)
class Report:
    """What one run showed.

    Attributes:
        run: Its id.
        losses: {name: value}, lower is better; the names may start with `loss/`.
        scores: {name: value}, higher is better; the names may start with `score/`.
        noise: {column: known standard deviation}, columns as `loss/<name>`.
        fidelity: Name of its rung; None means that of the suggestion.
        weights: {domain: weight}; None means the mixture of the suggestion.
        seed: Random seed of the run, or None.
        failed: Whether it failed; then it has neither losses nor scores.

    Raises:
        ConfigError: If a run that did not fail has no number, or a failed one has.
    """

    run: str
    losses: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    fidelity: str | None = None
    weights: Mapping[str, float] | None = None
    seed: int | None = None
    failed: bool = False

    def __post_init__(self) -> None:
        measured = any(math.isfinite(value) for value in self.columns.values())
        if not (measured or self.failed):
            raise ConfigError(
                f"run {self.run!r}: expected losses or scores, got no number; tell a failed run by fail(run), or with failed: true"
            )
        if measured and self.failed:
            raise ConfigError(f"run {self.run!r}: a failed run has no losses and scores; drop them, or failed")

    @property
    def columns(self) -> dict[str, float]:
        """Values under their runs-table names, `loss/<name>` and `score/<name>`."""
        losses = {f"loss/{name.removeprefix('loss/')}": value for name, value in self.losses.items()}
        return losses | {f"score/{name.removeprefix('score/')}": value for name, value in self.scores.items()}


def as_table(reports: Sequence[Report], trials: Mapping[str, Trial]) -> RunsTable:
    """Return reports as a runs table, one row each.

    Args:
        reports: At least one; what they leave out is taken from the trials.
        trials: The study's trials by id.

    Raises:
        ConfigError: If an unknown run says no mixture or rung, or a value cannot be.
    """
    if not reports:
        raise ConfigError("expected what at least one run showed, got nothing; name a run")
    runs = [report.run for report in reports]
    weights = [_weights(report, trials) for report in reports]
    domains = tuple(dict.fromkeys(name for row in weights for name in row))
    shares, notes = normalized(
        domains, runs, np.array([[row.get(name, 0.0) for name in domains] for row in weights], dtype=np.float64)
    )
    return RunsTable(
        domains=domains,
        runs=tuple(runs),
        fidelities=tuple(report.fidelity or trials[report.run].fidelity for report in reports),
        weights=shares,
        columns=_stacked(reports, lambda report: report.columns),
        costs=np.ones(len(reports)),
        noise=_stacked(reports, lambda report: report.noise),
        seeds=tuple(report.seed for report in reports),
        notes=notes,
    )


def _weights(report: Report, trials: Mapping[str, Trial]) -> Mapping[str, float]:
    """Return {domain: weight} of a report, which must say mixture and rung if the study does not know the run."""
    known = trials.get(report.run)
    if known is not None:
        return known.mixture.as_dict() if report.weights is None else report.weights
    if report.weights is None or report.fidelity is None:
        waiting = [trial.id for trial in trials.values() if not trial.status.finished]
        shown = ", ".join(waiting[:_SHOWN]) + " ..." * (len(waiting) > _SHOWN) or "none"
        raise ConfigError(
            f"this study suggested no run {report.run!r}; those not told yet: {shown}; "
            "correct the id, or add weights and fidelity if the run is your own"
        )
    return report.weights


def _stacked(reports: Sequence[Report], of: Callable[[Report], Mapping[str, float]]) -> dict[str, Array]:
    """Return {column: one value per report}, NaN where a report does not have it."""
    rows = [of(report) for report in reports]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, math.nan) for row in rows], dtype=np.float64) for name in names}
