"""Predictions of mixtures from a runs table alone: no study, no training, no ledger.

The surrogate is that of the search; what is added here is which rung can be answered
and what is said when it is not the one asked for. M mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.constraints import Constraints
from mixopt.errors import ConfigError
from mixopt.mixture import Array, Mixture
from mixopt.objective import Objective
from mixopt.runs_table import RunsTable

_SEED = 0  # of the samples behind a maximum; the fits draw nothing


@dataclass(frozen=True, eq=False)
class RunsPrediction:
    """What a table says of mixtures that it may not hold.

    Attributes:
        objective: What `objective` in the numbers means.
        fidelity: The rung that is predicted.
        mean: {column or `objective`: (M,) means}, in the table's units; scores keep their sign.
        std: {column or `objective`: (M,) standard deviations}.
        notes: What was replaced or is extrapolated, in words.
    """

    objective: Objective
    fidelity: str
    mean: dict[str, Array]
    std: dict[str, Array]
    notes: tuple[str, ...]

    def rows(self) -> dict[str, Array]:
        """Return the columns `mean/<column>` and `std/<column>`, the objective's last."""
        both = {"mean": self.mean, "std": self.std}
        return {f"{kind}/{name}": values[name] for name in self.mean for kind, values in both.items()}


def predict_from_runs(
    table: RunsTable, mixtures: Sequence[Mixture], *, fidelity: str | None = None, objective: str | None = None
) -> RunsPrediction:
    """Predict every column and the objective of mixtures, averaged over seeds.

    Args:
        table: Finished runs; failed ones teach nothing.
        mixtures: M mixtures over domains of the table.
        fidelity: The rung; default the dearest. One without finished runs is answered
            from the dearest that has some: levels are that rung's, ranks mean as much as
            the rungs agree.
        objective: An expression; default `mean(loss/*)`, or `mean(score/*)` without losses.

    Raises:
        ConfigError: If no run has a number, or the objective names a column without one.
    """
    from mixopt.search.catalog import Task, make
    from mixopt.search.pool import Pool

    finished = _finished(table)
    known = [name for name, values in finished.columns.items() if np.isfinite(values).any()]
    parsed = Objective.parse(objective or _default_objective(known), known)
    ladder = finished.ladder(_dearest(finished, known))
    rung = _answerable(finished, parsed.columns, fidelity)
    # The table's mixtures say how far apart mixtures are; nothing is bought.
    pool = Pool(table.domains, finished.weights, finished.fidelities, np.ones(len(finished)))
    task = Task(Constraints.simplex(table.domains), ladder, parsed, _SEED, pool)
    believed = make("mfbo", task).predict(finished.history(), mixtures, fidelity=rung)
    names = [*known, "objective"]
    return RunsPrediction(
        objective=parsed,
        fidelity=rung,
        mean={name: np.asarray(believed.mean[name]) for name in names},
        std={name: np.asarray(believed.std[name]) for name in names},
        notes=tuple(_notes(table, finished, fidelity=fidelity, rung=rung)),
    )


def _finished(table: RunsTable) -> RunsTable:
    rows = [row for row in range(len(table)) if table.observation(row) is not None]
    if not rows:
        raise ConfigError("no run of the table has a number in a loss/ or score/ column; add finished runs")
    return table.select(rows)


def _default_objective(known: Sequence[str]) -> str:
    return "mean(loss/*)" if any(name.startswith("loss/") for name in known) else "mean(score/*)"


def _rungs_with(table: RunsTable, columns: Sequence[str]) -> dict[str, float]:
    """Return {rung: mean cost} of the rungs where one of the columns has a number."""
    measured = np.any([np.isfinite(table.columns[name]) for name in columns], axis=0)
    rungs = np.array(table.fidelities)
    return {name: float(table.costs[rungs == name].mean()) for name in dict.fromkeys(rungs[measured].tolist())}


def _dearest(table: RunsTable, columns: Sequence[str]) -> str:
    costs = _rungs_with(table, columns)
    return max(costs, key=lambda name: costs[name])


def _answerable(table: RunsTable, columns: Sequence[str], fidelity: str | None) -> str:
    return fidelity if fidelity in _rungs_with(table, columns) else _dearest(table, columns)


def _notes(table: RunsTable, finished: RunsTable, *, fidelity: str | None, rung: str) -> list[str]:
    notes = []
    if fidelity not in (None, rung):
        notes.append(
            f"no finished run at fidelity {fidelity}: predicted at {rung}, the dearest rung that has some; "
            f"levels are those of {rung}, only ranks can be meant for {fidelity}"
        )
    empty = [name for name in table.columns if not np.isfinite(finished.columns[name]).any()]
    if empty:
        notes.append(f"no run has a number in {', '.join(empty)}: not predicted")
    here = np.array(finished.fidelities) == rung
    far = [n for n, v in finished.columns.items() if n not in empty and not np.isfinite(v[here]).any()]
    if far:
        notes.append(f"never measured at {rung}, so their level there is extrapolated: {', '.join(far)}")
    return notes
