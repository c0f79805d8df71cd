"""The desk: one external study for many clients, one at a time.

Turns requests into calls of `ExternalStudy` and their results into answers. Knows
nothing of HTTP; that is `server.py`. Every call may be repeated by a client that did
not hear the answer.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import numpy as np

from mixopt.errors import ConfigError, ConflictError, MixtureError, StudyBusyError, StudyChangedError
from mixopt.mixture import Mixture
from mixopt.observation import Observation, Status, Trial
from mixopt.runs import RunsTable, normalized
from mixopt.study import USER, Study

from . import messages
from .external import ExternalStudy, Suggestion
from .reports import Report

logger = logging.getLogger(__name__)

State = Literal["pending", "done", "failed"]
_Answer = TypeVar("_Answer")

_PAUSE_SECONDS = 0.05  # between looks at a study that another process holds


class Desk:
    """Serves one study to callers in any thread.

    Calls take turns in this process by one lock, and with other processes by the lock
    of the run directory, which is held for the length of a call only.

    Args:
        study: The study; its file's settings are recorded now.
        patience_seconds: How long a call waits for another process before it is refused.

    Raises:
        StudyChangedError: If domains or rungs changed since the ledger was written.
        StudyBusyError: If another process holds the study all the time.
    """

    def __init__(self, study: ExternalStudy, *, patience_seconds: float = 10.0) -> None:
        self._study = study
        self._patience = patience_seconds
        self._lock = threading.Lock()
        self._settings: object = None
        self._waiting(study.begin)
        with study.ledger() as ledger:
            self._settings = ledger.header.to_json()

    # --- what clients ask ----------------------------------------------------

    def suggest(self, request: messages.SuggestRequest) -> messages.Suggestions:
        """Suggest runs and record them as pending; the same again under the same key."""
        table = None if request.candidates is None else _candidates(request.candidates)
        with self._turn() as study:
            wanted = study.config.search.batch_size if request.num is None else request.num
            with _about("candidates", conflict="request"):
                found = self._waiting(lambda: study.ask(request.num, candidates=table, request=request.request))
            why = self._waiting(study.why_fewer) if len(found) < wanted else None
        return messages.Suggestions(suggestions=[_suggested(suggestion) for suggestion in found], fewer_because=why)

    def tell(self, request: messages.TellRequest) -> messages.Told:
        """Record what runs showed: all of them or, on an error, none."""
        reports = [_report(item, place) for place, item in enumerate(request.runs)]
        with self._turn() as study, _about_runs(reports):
            telling = self._waiting(lambda: study.tell_reports(reports))
            pending = self._waiting(lambda: study.pending)
        return messages.Told(
            told=[result.trial for result in telling.results],
            own=[trial.id for trial in telling.trials],
            failed=list(telling.failed),
            already_known=list(telling.known),
            ignored_columns=list(telling.ignored),
            notes=list(telling.notes),
            pending=len(pending),
        )

    def predict(self, request: messages.PredictRequest) -> messages.Predictions:
        """Predict columns and objective of mixtures."""
        mixtures = []
        for place, weights in enumerate(request.mixtures):
            with _about(f"mixtures.{place}"):
                mixtures.append(Mixture.from_mapping(self._study.domains, weights))
        with self._turn() as study, _about("fidelity"):
            prediction = self._waiting(lambda: study.predict(mixtures, fidelity=request.fidelity))
        rows = [
            messages.Predicted(
                weights=mixture.as_dict(),
                fidelity=prediction.fidelity,
                mean={name: _finite(values[i]) for name, values in prediction.mean.items()},
                std={name: _finite(values[i]) for name, values in prediction.std.items()},
            )
            for i, mixture in enumerate(mixtures)
        ]
        return messages.Predictions(predictions=rows)

    def recommendation(self) -> messages.Recommended:
        """Return the mixture to use given all that was told."""
        with self._turn() as study:
            self._waiting(lambda: _check_told(study))
            found = self._waiting(study.recommend)
        return messages.Recommended(
            weights=found.mixture.as_dict(),
            fidelity=found.fidelity,
            mean={name: _finite(value) for name, value in found.mean.items()},
            std={name: _finite(value) for name, value in found.std.items()},
            regret_bound=None if found.regret_bound is None else _finite(found.regret_bound),
            best_probability=found.best_probability,
            support=list(found.support),
            recommended_by=found.recommended_by,
            reason=found.reason,
        )

    def status(self) -> messages.StudyStatus:
        """Say where the study stands."""
        with self._turn() as study:
            return self._waiting(lambda: _status(study))

    def runs(self, state: State | None = None) -> messages.Runs:
        """List the runs of the ledger, or those in one state."""
        with self._turn() as study:
            return self._waiting(lambda: _runs(study, state))

    # --- turns ---------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[ExternalStudy]:
        """Hold the study against the other threads of this process."""
        with self._lock:
            self._waiting(self._check_unchanged)
            yield self._study

    def _waiting(self, call: Callable[[], _Answer]) -> _Answer:
        """Make one call as soon as no other process holds the study.

        It must hold the ledger once, so that a refused one has not done anything yet.
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return call()
            except StudyBusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def _check_unchanged(self) -> None:
        """Refuse to go on with settings that another process has replaced since."""
        with self._study.ledger() as ledger:
            if ledger.header.to_json() != self._settings:
                raise StudyChangedError("the study file was changed since mixopt serve read it; restart mixopt serve")


@contextmanager
def _about(field: str, *, conflict: str = "") -> Iterator[None]:
    """Name the field of the request that an error in it is about, and that of a conflict with the ledger."""
    try:
        yield
    except (ConfigError, MixtureError) as error:
        error.field = conflict if conflict and isinstance(error, ConflictError) else field
        raise


@contextmanager
def _about_runs(reports: Sequence[Report]) -> Iterator[None]:
    """Name the run that an error in what is told is about, where it is a single one."""
    try:
        yield
    except ConfigError as error:
        named = [place for place, report in enumerate(reports) if f"run {report.run!r}" in str(error)]
        error.field = f"runs.{named[0]}" if len(named) == 1 else "runs"
        raise


def _suggested(s: Suggestion) -> messages.SuggestedRun:
    return messages.SuggestedRun(
        run=s.run, fidelity=s.fidelity, weights=s.weights, cost=s.cost, reason=s.reason, candidate=s.candidate or None
    )


def _check_told(study: ExternalStudy) -> None:
    """Refuse to recommend what nothing speaks for."""
    with study.ledger() as ledger:
        if not ledger.history().observations:
            raise ConflictError("no run was told yet, so no mixture can be recommended; tell at least one")


def _status(study: ExternalStudy) -> messages.StudyStatus:
    with study.ledger() as ledger:
        trials, best = ledger.history().trials, ledger.best()
        return messages.StudyStatus(
            name=study.config.name,
            domains=list(study.domains),
            objective=study.config.objective,
            columns=list(ledger.columns),
            ladder=[messages.Rung(name=rung.name, cost=rung.price or 0.0) for rung in study.config.ladder],
            runs={"pending": 0, "done": 0, "failed": 0, **Counter(_state(trial) for trial in trials)},
            pending=[trial.id for trial in trials if _state(trial) == "pending"],
            budget=_finite(ledger.header.budget),
            spent=ledger.spent(),
            best=best and messages.Best(run=best[0].id, objective=best[1], weights=best[0].mixture.as_dict()),
        )


def _runs(study: ExternalStudy, state: State | None) -> messages.Runs:
    with study.ledger() as ledger:
        history = ledger.history()
        seen = {observation.trial: observation for observation in history.observations}
        wanted = [trial for trial in history.trials if state in (None, _state(trial))]
        return messages.Runs(runs=[_known(ledger, trial, seen.get(trial.id)) for trial in wanted])


def _report(item: messages.RunReport, place: int) -> Report:
    with _about(f"runs.{place}"):
        return Report(**{name: getattr(item, name) for name in messages.RunReport.model_fields})


def _candidates(items: Sequence[messages.Candidate]) -> RunsTable:
    """Return candidates as a table without columns; every price is the ladder's."""
    with _about("candidates"):
        runs = [item.run for item in items]
        domains = tuple(dict.fromkeys(name for item in items for name in item.weights))
        rows = np.array([[item.weights.get(name, 0.0) for name in domains] for item in items], dtype=np.float64)
        weights, notes = normalized(domains, runs, rows)
        for note in notes:
            logger.warning("candidates: %s", note)
        return RunsTable(domains, tuple(runs), tuple(item.fidelity for item in items), weights, {}, np.ones(len(runs)))


def _known(ledger: Study, trial: Trial, seen: Observation | None) -> messages.KnownRun:
    return messages.KnownRun(
        run=trial.id,
        state=_state(trial),
        own=trial.proposed_by == USER,
        fidelity=trial.fidelity,
        weights=trial.mixture.as_dict(),
        reason=trial.reason,
        candidate=trial.label or None,
        losses=dict(seen.losses) if seen else {},
        scores=dict(seen.scores) if seen else {},
        objective=ledger.value(seen) if seen else None,
    )


def _state(trial: Trial) -> State:
    if not trial.status.finished:
        return "pending"
    return "done" if trial.status is Status.DONE else "failed"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
