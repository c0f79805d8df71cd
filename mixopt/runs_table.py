"""The runs table: finished training runs as mixtures, rungs, losses and scores.

How users bring their own runs, how a replay reads history, what `Study.to_frame`
returns. One row per run; missing values are NaN. N rows, K domains; a table keeps its
own unit of losses and costs. Files are read and written by `runs.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import runs_checks
from .errors import ConfigError, did_you_mean
from .fidelity import Fidelity, Ladder
from .mixture import Array, Mixture, readonly
from .observation import History, Observation, Role, Status, Trial
from .sheet import listed

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class RunsTable:
    """Finished runs.

    Attributes:
        domains: K names.
        runs: N ids, unique.
        fidelities: N rung names.
        weights: (N, K) mixture weights, each row on the simplex.
        columns: {`loss/<name>` or `score/<name>`: (N,)}, NaN where not measured or failed.
        costs: (N,) in any one unit.
        noise: {column: (N,) known standard deviations, NaN where unknown}.
        seeds: N random seeds, None where not given.
        parents: N ids of the runs that were continued, None where there is none.
        params: (N,) active parameters, NaN where not given.
        tokens: (N,) training tokens, NaN where not given.
        notes: What reading changed, in words.

    Raises:
        ConfigError: If the lengths differ or a value cannot be; the message names column and rows.
    """

    domains: tuple[str, ...]
    runs: tuple[str, ...]
    fidelities: tuple[str, ...]
    weights: Array
    columns: Mapping[str, Array]
    costs: Array
    noise: Mapping[str, Array] = field(default_factory=dict)
    seeds: tuple[int | None, ...] = ()
    parents: tuple[str | None, ...] = ()
    params: Array | None = None
    tokens: Array | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("weights", "costs", "params", "tokens"):
            values = getattr(self, name)
            object.__setattr__(self, name, None if values is None else readonly(values))
        for name in ("columns", "noise"):
            object.__setattr__(self, name, {column: readonly(v) for column, v in getattr(self, name).items()})
        for name in ("domains", "runs", "fidelities", "seeds", "parents", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        runs_checks.check_names(self)
        runs_checks.check_lengths(self)
        runs_checks.check_weights(self.domains, self.runs, self.weights)
        runs_checks.check_values(self)
        runs_checks.check_parents(self)

    def __len__(self) -> int:
        return len(self.runs)

    def ladder(self, target: str) -> Ladder:
        """Return the rungs by mean cost, `target` last, in units of its mean cost; no rungs nest."""
        names = list(dict.fromkeys(self.fidelities))
        if target not in names:
            raise ConfigError(
                f"unknown fidelity {target!r}{did_you_mean(target, names)}; the table has {', '.join(names)}"
            )
        of = np.array(self.fidelities)
        costs = {name: float(self.costs[of == name].mean()) for name in names}
        order = [*sorted((n for n in names if n != target), key=lambda n: costs[n]), target]
        return Ladder(tuple(Fidelity(n, n, 0, 0, 0.0, costs[n] / costs[target]) for n in order))

    def trial(self, row: int) -> Trial:
        """Return a row as a finished search trial, its id the run's."""
        finite = any(np.isfinite(values[row]) for values in self.columns.values())
        return Trial(
            id=self.runs[row],
            role=Role.SEARCH,
            mixture=Mixture(self.domains, self.weights[row]),
            fidelity=self.fidelities[row],
            seed=(self.seeds[row] if self.seeds else None) or 0,
            proposed_by="table",
            status=Status.DONE if finite else Status.ABANDONED,
        )

    def observation(self, row: int) -> Observation | None:
        """Return what a row shows, or None if nothing is finite."""
        values = {name: float(v[row]) for name, v in self.columns.items() if np.isfinite(v[row])}
        if not values:
            return None
        noise = {name: float(v[row]) for name, v in self.noise.items() if np.isfinite(v[row])}
        return Observation(
            trial=self.runs[row],
            fidelity=self.fidelities[row],
            losses={n.removeprefix("loss/"): v for n, v in values.items() if n.startswith("loss/")},
            scores={n.removeprefix("score/"): v for n, v in values.items() if n.startswith("score/")},
            noise=noise or None,
            cost=float(self.costs[row]),
        )

    def require(self, columns: Iterable[str], *, fidelity: str | None = None) -> None:
        """Check that columns exist and hold a number in every row, or in every row of a rung.

        Raises:
            ConfigError: If not; the message names the columns and the rows.
        """
        for column in columns:
            if column not in self.columns:
                raise ConfigError(
                    f"unknown column {column!r}{did_you_mean(column, self.columns)}; the table has {', '.join(self.columns) or 'none'}"
                )
            here = np.array([fidelity in (None, name) for name in self.fidelities], dtype=np.bool_)
            there = ~(here & np.isnan(self.columns[column]))
            runs_checks.check(self.runs, there, f"{column} must be known, it is missing in", "drop these rows")

    def select(self, rows: Iterable[int] | NDArray[Any]) -> RunsTable:
        """Return some rows, in the order given; a parent that is left out is forgotten."""
        chosen = [int(row) for row in rows]
        runs = tuple(self.runs[row] for row in chosen)
        parents = [self.parents[row] for row in chosen] if self.parents else []
        kept = runs_checks.possible_parents(runs)
        return replace(
            self,
            runs=runs,
            fidelities=tuple(self.fidelities[row] for row in chosen),
            weights=self.weights[chosen],
            columns={name: values[chosen] for name, values in self.columns.items()},
            costs=self.costs[chosen],
            noise={name: values[chosen] for name, values in self.noise.items()},
            seeds=tuple(self.seeds[row] for row in chosen) if self.seeds else (),
            parents=tuple(parent if parent in kept else None for parent in parents),
            params=None if self.params is None else self.params[chosen],
            tokens=None if self.tokens is None else self.tokens[chosen],
        )

    def priced(self, costs: Mapping[str, float]) -> RunsTable:
        """Return the table with the costs of some rungs replaced.

        Raises:
            ConfigError: If a rung has no row.
        """
        unknown = [name for name in costs if name not in self.fidelities]
        if unknown:
            raise ConfigError(
                f"unknown fidelity {unknown[0]!r}{did_you_mean(unknown[0], self.fidelities)}; the table has {', '.join(dict.fromkeys(self.fidelities))}"
            )
        pairs = zip(self.fidelities, self.costs, strict=True)
        return replace(self, costs=np.array([costs.get(name, cost) for name, cost in pairs]))

    def history(self, rows: Array | None = None) -> History:
        """Return rows (all by default) as a history, in the order given."""
        chosen = range(len(self)) if rows is None else [int(row) for row in rows]
        observations = [self.observation(row) for row in chosen]
        return History(tuple(self.trial(row) for row in chosen), tuple(obs for obs in observations if obs is not None))


def concat(tables: Sequence[RunsTable]) -> RunsTable:
    """Put the rows of several tables under each other, domains in the order of the first.

    A column that a table does not have is NaN in its rows. All costs must be in one unit.

    Raises:
        ConfigError: If the domains differ or a run is in two tables.
    """
    if not tables:
        raise ConfigError("expected at least one table to join, got none; name one")
    first = tables[0]
    for table in tables:
        odd = sorted(set(first.domains) ^ set(table.domains))
        if odd:
            raise ConfigError(
                f"tables to be joined must have the same domains, only one of two has {listed(odd)}; "
                "rename them, or add columns of weight 0"
            )
    sizes = _union([({n: v for n in ("params", "tokens") if (v := getattr(t, n)) is not None}, len(t)) for t in tables])
    return RunsTable(
        domains=first.domains,
        runs=tuple(run for table in tables for run in table.runs),
        fidelities=tuple(name for table in tables for name in table.fidelities),
        weights=np.concatenate([t.weights[:, [t.domains.index(name) for name in first.domains]] for t in tables]),
        columns=_union([(table.columns, len(table)) for table in tables]),
        costs=np.concatenate([table.costs for table in tables]),
        noise=_union([(table.noise, len(table)) for table in tables]),
        seeds=_gathered([(table.seeds, len(table)) for table in tables]),
        parents=_gathered([(table.parents, len(table)) for table in tables]),
        params=sizes.get("params"),
        tokens=sizes.get("tokens"),
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
    )


def _union(parts: Sequence[tuple[Mapping[str, Array], int]]) -> dict[str, Array]:
    names = dict.fromkeys(name for columns, _ in parts for name in columns)
    return {name: np.concatenate([c.get(name, np.full(num, np.nan)) for c, num in parts]) for name in names}


def _gathered(parts: Sequence[tuple[Sequence[_Value | None], int]]) -> tuple[_Value | None, ...]:
    if not any(values for values, _ in parts):
        return ()
    return tuple(value for values, num in parts for value in (values or (None,) * num))
