"""Ask and tell: the search around a trainer of your own, over the ledger of a study.

    study = ExternalStudy.open("study.yaml")       a study file with `trainer: external`
    for suggestion in study.ask(4): ...            what to train next
    study.tell(run, losses={"web": 2.31})          what a suggested run showed
    study.tell_runs(read_runs("runs.csv"))         runs of your own
    study.recommend()                              the mixture to use

Trains nothing; starts neither Ray nor MLflow. The verbs are in `cli_external.py`, what
a told table means for the ledger in `telling.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.config import ExternalConfig, validate_external
from mixopt.errors import ConfigError, ConflictError, did_you_mean
from mixopt.fidelity import Fidelity, Ladder
from mixopt.identity import fingerprint
from mixopt.mixture import Array, Domain, Mixture
from mixopt.objective import Objective
from mixopt.observation import Role, Trial
from mixopt.proposal import Prediction, Proposal, Recommendation
from mixopt.protocols import Optimizer
from mixopt.runs import RunsTable
from mixopt.search.catalog import names
from mixopt.search.pool import Pool
from mixopt.seeding import derive
from mixopt.storage import RunDirectory
from mixopt.study import Header, Study, columns_named

from . import build
from .candidates import Candidates
from .reports import Report, as_table
from .telling import Telling, compare_with_ledger

logger = logging.getLogger(__name__)

UNLIMITED = 1e9  # runs of the target: what an optimizer may spend where the study has no budget


@dataclass(frozen=True)
class Suggestion:
    """A run to train.

    Attributes:
        run: Its id, to be told with the result.
        fidelity: Name of the rung.
        mixture: What to train on.
        cost: Price of the run, in the unit of the study's ladder.
        reason: Why, in words.
        candidate: The row of the candidates it stands for; empty without candidates.
    """

    run: str
    fidelity: str
    mixture: Mixture
    cost: float
    reason: str
    candidate: str = ""

    @property
    def weights(self) -> dict[str, float]:
        """{domain: weight} in the study's order."""
        return self.mixture.as_dict()


class ExternalStudy:
    """A study whose runs are trained elsewhere: ask what to train, tell what it showed.

    With a run directory every call holds the ledger's lock and sees what others have
    written, so processes may take turns. Without one the study lives in this object only.

    Args:
        config: The study.
        directory: Its run directory, or None.
        accept_changes: Go on although domains or rungs changed.

    Raises:
        ConfigError: If optimizer, objective or constraints cannot be used.
    """

    def __init__(self, config: ExternalConfig, directory: Path | None = None, *, accept_changes: bool = False) -> None:
        if config.search.optimizer not in names():
            raise ConfigError(
                f"search.optimizer: unknown optimizer {config.search.optimizer!r}"
                f"{did_you_mean(config.search.optimizer, names())}; known are {', '.join(names())}"
            )
        build.check_used(config)
        self.config = config
        self.directory = directory
        self._header = build_header(config)
        self._constraints = build.build_constraints(config, self._header)
        self._accept_changes = accept_changes
        self._read = (0, Study(None)) if directory is None else None
        self._known: tuple[tuple[str, ...], Optimizer] | None = None

    @classmethod
    def open(
        cls, study: Path | str, directory: Path | str | None = None, *, accept_changes: bool = False
    ) -> ExternalStudy:
        """Open a study file or run directory; the default run directory is `runs/<name>`."""
        location = build.locate(Path(study), None if directory is None else Path(directory))
        return cls(location.external, location.directory, accept_changes=accept_changes)

    @classmethod
    def create(cls, directory: Path | str | None = None, **fields: Any) -> ExternalStudy:
        """Make a study from the fields of a study file: domains, ladder, objective, search, ...

        Args:
            directory: Run directory, or None to keep the study in memory.
            fields: As in the file; `name` may be missing, and `domains` may be any sequence of names.
        """
        domains = fields.get("domains")
        if domains is not None and not isinstance(domains, Mapping | str):
            fields["domains"] = list(domains)
        config = validate_external({"name": "study", "trainer": "external", **fields}, "study")
        return cls(config, None if directory is None else Path(directory))

    # --- reading -------------------------------------------------------------

    @property
    def domains(self) -> tuple[str, ...]:
        """K names, in the order of the weights."""
        return self._header.domain_names

    @property
    def pending(self) -> list[Suggestion]:
        """Suggestions whose results were not told yet, oldest first."""
        with self.ledger() as study:
            trials = study.history().pending if study.headers else ()
            return [self._suggestion(trial) for trial in trials]

    @property
    def budget_left(self) -> float:
        """Runs of the last rung that may still be suggested; infinite without a budget."""
        with self.ledger() as study:
            return self._left(study)

    @property
    def cheapest(self) -> float:
        """Price of the cheapest run, in runs of the last rung."""
        return min(rung.cost for rung in self._header.ladder)

    def why_fewer(self) -> str:
        """Say why fewer runs than asked for were suggested."""
        left, cheapest = self.budget_left, self.cheapest
        if left < cheapest:
            return (
                f"the budget is spent, {max(0.0, left):.3g} runs of the last rung are left "
                f"and the cheapest costs {cheapest:.3g}"
            )
        return "no further run is affordable, open among the candidates, or worth search.price"

    @property
    def best(self) -> tuple[str, Mixture, float] | None:
        """(run, mixture, objective) of the best run measured at the target, or None."""
        with self.ledger() as study:
            if not study.headers:
                return None
            self._begin(study)
            found = study.best()
            return found and (found[0].id, found[0].mixture, found[1])

    def predict(self, mixtures: Sequence[Mixture | Mapping[str, float]], *, fidelity: str | None = None) -> Prediction:
        """Predict columns and objective of mixtures at a rung, by default the target.

        Args:
            mixtures: M mixtures, or {domain: weight} each.
            fidelity: Name of the rung.
        """
        rung = self._header.ladder[fidelity] if fidelity else self._header.ladder.target
        points = [m if isinstance(m, Mixture) else Mixture.from_mapping(self.domains, m) for m in mixtures]
        with self.ledger() as study:
            self._begin(study)
            return self._optimizer(study).predict(study.history(), points, fidelity=rung.name)

    # --- ask -----------------------------------------------------------------

    def ask(
        self, num: int | None = None, *, candidates: RunsTable | None = None, request: str | None = None
    ) -> list[Suggestion]:
        """Suggest runs and record them as pending; asked again, suggest others.

        Args:
            num: How many at most; default `search.batch_size`. Fewer where the budget,
                the candidates or what a run may still gain do not suffice.
            candidates: If given, only its rows are suggested, each once.
            request: A key of the caller's; asked again under it, the same runs are returned.

        Raises:
            ConfigError: If a candidate cannot be used.
            ConflictError: If something else was asked for under the same key.
            StudyError: If another process holds the study.
        """
        wanted = self.config.search.batch_size if num is None else num
        if wanted < 1:
            raise ConfigError(f"the number of runs to suggest must be at least 1, got {wanted}")
        chosen = None if candidates is None else Candidates.of(candidates, self._header.ladder, self._constraints)
        asked = _asked(num, candidates)
        with self.ledger() as study:
            self._begin(study)
            if request in study.requests:
                return self._repeated(study, request, asked)
            history, left = study.history(), min(self._left(study), UNLIMITED)
            optimizer = self._optimizer(study, None if chosen is None else chosen.pool)
            proposals = optimizer.propose(history, wanted, budget=left) if left > 0 else []
            labels = [""] * len(proposals)
            if chosen is not None:
                proposals, labels = chosen.named(proposals, history)
            trials = self._number(study, proposals, labels)
            study.propose(trials, request=None if request is None else (request, asked))
        return [self._suggestion(trial) for trial in trials]

    # --- tell ----------------------------------------------------------------

    def tell(
        self,
        run: str,
        losses: Mapping[str, float] | None = None,
        scores: Mapping[str, float] | None = None,
        *,
        noise: Mapping[str, float] | None = None,
    ) -> Telling:
        """Record what a suggested run showed.

        Args:
            run: Id of the suggestion.
            losses: {name: value}, lower is better.
            scores: {name: value}, higher is better.
            noise: {column: known standard deviation}, columns as `loss/<name>`.

        Raises:
            ConfigError: If the study suggested no such run, or a value is missing or
                contradicts what was told before.
        """
        return self.tell_reports([Report(run, losses or {}, scores or {}, noise or {})])

    def fail(self, run: str) -> Telling:
        """Record that a suggested run failed: its mixture is not suggested again at this rung."""
        return self.tell_reports([Report(run, failed=True)])

    def tell_reports(self, reports: Sequence[Report]) -> Telling:
        """Record what several runs showed: all of them or, on an error, none.

        Raises:
            ConfigError: If a run cannot be used; a ConflictError if it contradicts what was told before.
            StudyError: If another process holds the study.
        """
        with self.ledger() as study:
            trials = {trial.id: trial for trial in study.trials}
        return self.tell_runs(as_table(reports, trials))

    def tell_runs(self, table: RunsTable) -> Telling:
        """Record finished runs, suggested ones or the user's own: all rows or, on an error, none.

        Raises:
            ConfigError: If rows cannot be used or contradict what was told before.
            StudyError: If another process holds the study.
        """
        with self.ledger() as study:
            telling = compare_with_ledger(table, self._header, study)
            self._begin(study)
            study.tell(telling.columns, telling.trials, telling.results)
        for result in telling.results:
            logger.info("trial %s id=%s", result.status, result.trial)
        return telling

    def recommend(self) -> Recommendation:
        """Return the mixture to use given all that was told, and record it in the ledger."""
        with self.ledger() as study:
            self._begin(study)
            recommendation = self._optimizer(study).recommend(study.history())
            if recommendation != study.recommendation:
                study.recommend(recommendation, ())
            return recommendation

    # --- the ledger ----------------------------------------------------------

    def begin(self) -> None:
        """Record the study as its file says it, where the ledger does not have it so yet.

        Raises:
            StudyChangedError: If domains or rungs changed and that is not accepted.
        """
        with self.ledger() as study:
            self._begin(study)

    @contextmanager
    def ledger(self) -> Iterator[Study]:
        """Hold the ledger as it is now; nothing is written until `_begin`."""
        if self.directory is None:
            assert self._read is not None
            yield self._read[1]
            return
        with RunDirectory(self.directory).locked():
            study = self._current(self.directory)
            study.check(self._header, accept_changes=self._accept_changes)
            yield study
            self._read = (_size(study), study)

    def _current(self, directory: Path) -> Study:
        """Return the study as its ledger is now; read again only where another process has written."""
        if self._read is not None and self._read[0] == _size(self._read[1]):
            return self._read[1]
        return Study(directory)

    def _begin(self, study: Study) -> None:
        """Record the study as its file says it now."""
        before = len(study.headers)
        study.begin(self._header, accept_changes=self._accept_changes)
        if self.directory is not None and (len(study.headers) > before or not study.files.config.exists()):
            build.save_config(build.Location(self.config, self.directory))

    def _left(self, study: Study) -> float:
        return self._header.budget - (study.spent() if study.headers else 0.0)

    def _optimizer(self, study: Study, pool: Pool | None = None) -> Optimizer:
        """Return the optimizer; kept between calls, for it remembers its fits."""
        if pool is None and self._known is not None and self._known[0] == study.columns:
            return self._known[1]
        optimizer = build.build_optimizer(self.config, study.objective, self._header, None, pool=pool)
        if pool is None:
            self._known = (study.columns, optimizer)
        return optimizer

    def _repeated(self, study: Study, request: str, asked: str) -> list[Suggestion]:
        """Return what was suggested under a key before."""
        before, ids = study.requests[request]
        if before != asked:
            raise ConflictError(
                f"request {request!r} was made before for another number of runs or other candidates; choose a new key"
            )
        return [self._suggestion(study.trial(run)) for run in ids]

    def _number(self, study: Study, proposals: Sequence[Proposal], labels: Sequence[str]) -> list[Trial]:
        taken = {trial.id for trial in study.trials}
        free = (f"search-{i:03d}" for i in range(len(taken) + len(proposals)))
        ids = [name for name in free if name not in taken]
        return [
            Trial(
                run, Role.SEARCH, p.mixture, p.fidelity, derive(self._header.seed, run), p.proposed_by,
                reason=p.reason, value=p.value, label=label,
            )
            for run, p, label in zip(ids, proposals, labels, strict=False)
        ]  # fmt: skip

    def _suggestion(self, trial: Trial) -> Suggestion:
        price = next(rung.price for rung in self.config.ladder if rung.name == trial.fidelity)
        assert price is not None
        return Suggestion(trial.id, trial.fidelity, trial.mixture, price, trial.reason, trial.label)


def _asked(num: int | None, candidates: RunsTable | None) -> str:
    """Return the fingerprint of what a call of `ask` wants."""
    rows = [] if candidates is None else [candidates.runs, candidates.fidelities, candidates.weights.tolist()]
    return fingerprint([num, rows, () if candidates is None else candidates.domains])


def _size(study: Study) -> int:
    ledger = study.files.ledger
    return ledger.stat().st_size if ledger.exists() else 0


def build_header(config: ExternalConfig) -> Header:
    """Describe an external study as its ledger records it; prices in runs of the last rung.

    Raises:
        ConfigError: If the objective cannot be understood.
    """
    prices = {rung.name: rung.price or math.nan for rung in config.ladder}
    target = prices[config.ladder[-1].name]
    # Each rung is a model of its own: no run passes another rung, and none is continued.
    rungs = [Fidelity(name, name, 0, 0, 0.0, price / target) for name, price in prices.items()]
    columns = tuple(config.columns)
    Objective.parse(config.objective, columns or columns_named(config.objective))
    return Header(
        name=config.name,
        seed=config.seed,
        domains=tuple(Domain(name, domain.tokens or 0, 0, 0) for name, domain in config.domains.items()),
        eval_sets=(),
        ladder=Ladder(tuple(rungs)),
        tokenizer="",
        # The unit in which values are as they were told.
        objective={"expression": config.objective, "unit": "nats_per_token"},
        budget=math.inf if config.search.budget is None else config.search.budget,
        experts_fidelity=config.ladder[-1].name,
        settings={
            "constraints": config.constraints.model_dump(mode="json"),
            "search": config.search.model_dump(mode="json"),
        },
        external=True,
        columns=columns,
    )


def as_columns(suggestions: Sequence[Suggestion], domains: Sequence[str]) -> dict[str, Sequence[str] | Array]:
    """Return suggestions as the columns of a table: run, fidelity, weight/<domain>, cost, reason.

    Candidates add a column `candidate`.
    """
    weights = np.array([s.mixture.over(domains).weights for s in suggestions]).reshape(-1, len(domains))
    named = {"candidate": [s.candidate for s in suggestions]} if any(s.candidate for s in suggestions) else {}
    return {
        "run": [s.run for s in suggestions],
        "fidelity": [s.fidelity for s in suggestions],
        **{f"weight/{name}": weights[:, k] for k, name in enumerate(domains)},
        "cost": np.array([s.cost for s in suggestions], dtype=np.float64),
        "reason": [s.reason for s in suggestions],
        **named,
    }
