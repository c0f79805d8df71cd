"""What a table of finished runs adds to a ledger: its rows that are new, known, or in conflict.

Reads a study and changes nothing; recording is up to `external.py`. A row is a run of
the table; a run that was told before must be told the same again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mixopt.errors import ConfigError, ConflictError, MixoptError
from mixopt.fidelity import Ladder
from mixopt.mixture import Mixture
from mixopt.objective import Objective
from mixopt.observation import Observation, Role, Status, Trial
from mixopt.protocols import TrialResult
from mixopt.runs import RunsTable
from mixopt.study import USER, Header, Study

_SAME_WEIGHT = 1e-6  # what a table written with seven digits keeps
_SAME_VALUE = 1e-9  # relative; what a table written with ten digits keeps
_SUGGESTED = re.compile(r"search-\d+")
_SHOWN = 5


@dataclass(frozen=True)
class Telling:
    """What a table adds to a ledger.

    Attributes:
        columns: Columns of the table that the study takes, in the table's order.
        trials: The user's own runs that the ledger does not have yet.
        results: What new runs showed, and known runs where it adds something.
        known: Ids of the rows that the ledger has as they are.
        ignored: Columns of the table that the study file does not list.
        notes: What reading the table changed, in words.
    """

    columns: tuple[str, ...]
    trials: tuple[Trial, ...]
    results: tuple[TrialResult, ...]
    known: tuple[str, ...]
    ignored: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the runs that are told as failed."""
        return tuple(result.trial for result in self.results if result.status is Status.ABANDONED)


def compare_with_ledger(table: RunsTable, header: Header, study: Study) -> Telling:
    """Return what a table adds to a study.

    Args:
        table: Finished runs. Ids of suggestions mean these, all others are the user's own.
        header: The study as its file says it now.
        study: The ledger, perhaps without any event yet.

    Raises:
        ConfigError: If rows cannot be used; a ConflictError if they contradict the ledger. The message lists them.
    """
    columns = _columns(table, header, study)
    ignored = tuple(name for name in table.columns if name not in columns)
    table = replace(
        table,
        columns={name: table.columns[name] for name in columns},
        noise={name: values for name, values in table.noise.items() if name in columns},
    )
    trials = {trial.id: trial for trial in study.trials}
    seen = {observation.trial: observation for observation in study.observations}
    new, results, known = [], [], []
    wrong: dict[str, MixoptError] = {}
    for row, run in enumerate(table.runs):
        try:
            trial = _trial(table, row, header=header, known=trials.get(run))
            result = _result(_observation(table, row, header.ladder), trial, seen.get(run))
        except MixoptError as error:
            wrong[run] = error
            continue
        new += [trial] if run not in trials else []
        results += [result] if result else []
        known += [] if result else [run]
    _refuse(wrong)
    return Telling(columns, tuple(new), tuple(results), tuple(known), ignored, table.notes)


def _columns(table: RunsTable, header: Header, study: Study) -> tuple[str, ...]:
    """Return the columns of the table that the study takes.

    A list in the study file selects. Without one the first table told decides, and a
    later one must not bring others: they would change what patterns in the objective mean.
    """
    expected = header.columns or study.told_columns
    if not expected:
        if table.columns:
            Objective.parse(header.objective["expression"], list(table.columns))
        return tuple(table.columns)
    strange = [name for name in table.columns if name not in expected]
    if not header.columns and strange:
        raise ConfigError(
            f"columns: the first runs told have {', '.join(expected)}, this table also {', '.join(strange)}; "
            f"drop them, or list all that count in the study file, as columns: [{', '.join([*expected, *strange])}]"
        )
    if table.columns and len(strange) == len(table.columns):
        raise ConfigError(
            f"columns: the study lists {', '.join(expected)}, the table has only {', '.join(strange)}; rename or list them"
        )
    return tuple(name for name in table.columns if name in expected)


def _trial(table: RunsTable, row: int, *, header: Header, known: Trial | None) -> Trial:
    """Return the trial that a row is about: the known one, or a new one of the user's."""
    rung = header.ladder[table.fidelities[row]].name
    mixture = Mixture(table.domains, table.weights[row])
    if known is None:
        run = table.runs[row]
        if _SUGGESTED.fullmatch(run):
            raise ConfigError("this study suggested no such run, and ids search-<number> are its own; correct the id")
        seed = table.seeds[row] if table.seeds else None
        return Trial(run, Role.SEARCH, mixture.over(header.domain_names), rung, seed or 0, USER, reason="told")
    if known.fidelity != rung:
        raise ConflictError(f"its fidelity is {known.fidelity}, the table says {rung}; correct the table")
    name, difference = _farthest(known.mixture.as_dict(), mixture.as_dict())
    if difference > _SAME_WEIGHT:
        raise ConflictError(
            f"its mixture differs by {difference:.3g} in {name}, more than {_SAME_WEIGHT:g}; tell what was trained "
            "under an id of your own"
        )
    return known


def _farthest(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[str, float]:
    """Return the domain in which two mixtures differ most, and by how much."""
    differences = {name: abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {**one, **other}}
    return max(differences.items(), key=lambda item: item[1])


def _observation(table: RunsTable, row: int, ladder: Ladder) -> Observation | None:
    """Return what a row shows, charged as the ladder says; None where it has no value."""
    observation = table.observation(row)
    return observation and replace(observation, cost=ladder.price(observation.fidelity))


def _result(told: Observation | None, trial: Trial, before: Observation | None) -> TrialResult | None:
    """Return what telling a run adds, or None if the ledger has it already.

    Raises:
        ConfigError: If it contradicts what was told before.
    """
    if told is None:
        if before is not None:
            raise ConflictError("it was told with values before, now it has none; drop the row")
        if trial.status is Status.ABANDONED:
            return None
        return TrialResult(trial.id, Status.ABANDONED, note="told without any value")
    if trial.status is Status.ABANDONED:
        raise ConflictError("it was told as failed before; give a repeated run an id of its own")
    if before is None:
        return TrialResult(trial.id, Status.DONE, (told,))
    merged = _merged(before, told)
    return None if merged == before else TrialResult(trial.id, Status.DONE, (merged,))


def _merged(before: Observation, told: Observation) -> Observation:
    """Return an observation with the columns that were told later; those of both must agree."""
    old, new = before.columns(), told.columns()
    for name in old.keys() & new.keys():
        if not math.isclose(old[name], new[name], rel_tol=_SAME_VALUE, abs_tol=_SAME_VALUE):
            raise ConflictError(
                f"{name} was told as {old[name]:.10g} before, now as {new[name]:.10g}; "
                "correct the table, or give a repeated run an id of its own"
            )
    return replace(
        before,
        losses={**told.losses, **before.losses},
        scores={**told.scores, **before.scores},
        noise={**(told.noise or {}), **(before.noise or {})} or None,
    )


def _refuse(wrong: Mapping[str, MixoptError]) -> None:
    """Raise one error that names the wrong runs: a conflict if every one of them contradicts the ledger."""
    if wrong:
        lines = [f"run {run!r}: {error}" for run, error in wrong.items()]
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        shown = lines if len(lines) == 1 else ["", *lines[:_SHOWN], *more]
        kind = ConflictError if all(isinstance(error, ConflictError) for error in wrong.values()) else ConfigError
        raise kind("nothing was recorded. " + "\n  - ".join(shown).strip())
