"""Runs predicted from all others: is the surrogate right about what it has not seen?

A run is predicted by an optimizer that sees neither it nor any other run of its mixture,
and of the other runs the objective's columns only. Several mixtures are left out at a
time, as each fit costs seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixopt.mixture import Mixture
from mixopt.observation import History, Observation, Role
from mixopt.protocols import Optimizer
from mixopt.study import Study

from .drawing import spaced

_MOST_FOLDS = 6  # each costs a fit
_MOST_LEFT_OUT = 60


@dataclass(frozen=True)
class LeftOut:
    """A run that was predicted from the others.

    Attributes:
        trial: Its id.
        measured: Its objective.
        mean: What was predicted.
        std: Standard deviation of the prediction, of an average over seeds.
    """

    trial: str
    measured: float
    mean: float
    std: float


def predict_left_out(study: Study, optimizer: Optimizer, history: History) -> tuple[LeftOut, ...]:
    """Predict the search runs at the target, each without any run of its mixture.

    Args:
        study: What is minimized, and where.
        optimizer: What predicts.
        history: What is known; of many mixtures 60 are left out, evenly spaced.

    Returns:
        One entry per run, in the order of the ledger.
    """
    target, measured = study.header.ladder.target.name, _measured(study, history)
    groups: dict[Mixture, list[str]] = defaultdict(list)
    for name, (mixture, _) in measured.items():
        groups[mixture].append(name)
    chosen = spaced(list(groups), _MOST_LEFT_OUT)
    found: dict[str, LeftOut] = {}
    for fold in range(min(_MOST_FOLDS, len(chosen))):
        mixtures = chosen[fold::_MOST_FOLDS]
        rest = without(history, set(mixtures), study.objective.columns)
        if not _measured(study, rest):
            continue
        answer = optimizer.predict(rest, mixtures, fidelity=target)
        for i, mixture in enumerate(mixtures):
            mean, std = float(answer.mean["objective"][i]), float(answer.std["objective"][i])
            found |= {name: LeftOut(name, measured[name][1], mean, std) for name in groups[mixture]}
    return tuple(found[name] for name in measured if name in found)


def _measured(study: Study, history: History) -> dict[str, tuple[Mixture, float]]:
    """Return {search trial: its mixture and objective} of those measured at the target rung."""
    trials = {t.id: t for t in history.trials if t.role is Role.SEARCH}
    found = {}
    for o in history.observations:
        if (
            o.trial in trials
            and o.fidelity == study.header.ladder.target.name
            and (value := study.value(o)) is not None
        ):
            found[o.trial] = (trials[o.trial].mixture, value)
    return found


def only(observation: Observation, columns: Sequence[str]) -> Observation:
    """Return an observation with some of its columns."""
    losses = {name: value for name, value in observation.losses.items() if f"loss/{name}" in columns}
    scores = {name: value for name, value in observation.scores.items() if f"score/{name}" in columns}
    return replace(observation, losses=losses, scores=scores)


def without(history: History, mixtures: set[Mixture], columns: Sequence[str]) -> History:
    """Return the history without any search run of some mixtures, and with some columns only."""
    gone = {t.id for t in history.trials if t.role is Role.SEARCH and t.mixture in mixtures}
    return History(
        tuple(t for t in history.trials if t.id not in gone),
        tuple(only(o, columns) for o in history.observations if o.trial not in gone),
    )
