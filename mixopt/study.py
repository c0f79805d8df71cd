"""The study: an append-only ledger, and all that follows from it.

Every line of `study.jsonl` is one event with a checksum. The state (trials and
their status, observations, recommendation) is a fold over the events, so resume,
recovery and replay need no code of their own. Only the driver appends.

    study      what is searched: domains, evaluation sets, ladder, objective
    propose    a batch of trials, whole or not there
    status     trials that started, failed or were given up
    result     one trial's observations
    tell       runs trained elsewhere and their observations, a whole table or nothing of it
    rescore    an observation with what was measured on new evaluation sets
    stop       why the search ended
    recommend  the recommended mixture
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .display import html_table
from .errors import ConfigError, StudyChangedError, StudyError, did_you_mean
from .fidelity import Fidelity, Ladder
from .ledger import Ledger
from .mixture import Domain
from .objective import EvalSet, Objective
from .observation import History, Observation, Role, Status, Trial
from .proposal import Contender, Recommendation
from .protocols import TrialResult
from .storage import RunDirectory
from .warm_start import WarmStart

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

USER = "user"  # proposed the runs that a user brought to an external study

_COLUMN = re.compile(r"(?:loss|score)/[^\s,()]+")


@dataclass(frozen=True)
class Header:
    """What a study is about; a new one is appended whenever it changes.

    Attributes:
        name: The study's name.
        seed: Root of all randomness.
        domains: K domains with sizes and fingerprints.
        eval_sets: Evaluation sets with sizes and fingerprints.
        ladder: Rungs with costs.
        tokenizer: Fingerprint of the tokenizer file.
        objective: Expression (text or mapping) and unit.
        budget: Of the search, in runs of the top rung; infinite where there is none.
        experts_fidelity: Rung whose experts feed the MDE.
        settings: Constraints and search settings, as in the study file.
        external: Whether the runs are trained elsewhere.
        columns: Columns that external runs report; none means those of the first runs told.
        warm_start: Seed models that experts and search runs fork from; None: from scratch.
    """

    name: str
    seed: int
    domains: tuple[Domain, ...]
    eval_sets: tuple[EvalSet, ...]
    ladder: Ladder
    tokenizer: str
    objective: Mapping[str, Any]
    budget: float
    experts_fidelity: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    external: bool = False
    columns: tuple[str, ...] = ()
    warm_start: WarmStart | None = None

    @property
    def domain_names(self) -> tuple[str, ...]:
        """K names in the order of the weights."""
        return tuple(domain.name for domain in self.domains)

    def start_of(self, fidelity: str) -> tuple[str, str] | None:
        """Return mixture and rung of the seed model that runs of a rung fork from, or None."""
        return self.warm_start.of(self.ladder[fidelity].model) if self.warm_start else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data; an infinite budget is None."""
        budget = None if math.isinf(self.budget) else self.budget
        return json.loads(json.dumps({**asdict(self), "budget": budget}))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Header:
        """Rebuild a header from `to_json`."""
        rungs = tuple(Fidelity(**rung) for rung in data["ladder"]["rungs"])
        return cls(
            **{
                **data,
                "domains": tuple(Domain(**d) for d in data["domains"]),
                "eval_sets": tuple(EvalSet(**e) for e in data["eval_sets"]),
                "ladder": Ladder(rungs, data["ladder"]["fixed_cost"]),
                "budget": math.inf if data["budget"] is None else data["budget"],
                "columns": tuple(data.get("columns", ())),
                "warm_start": WarmStart(**data["warm_start"]) if data.get("warm_start") else None,
            }
        )

    def data_changes(self, new: Header) -> list[str]:
        """Describe in words how the data of `new` differ from this header's."""
        lines = []
        for kind, old_items, new_items in (
            ("domain", self.domains, new.domains),
            ("evaluation set", self.eval_sets, new.eval_sets),
        ):
            before = {item.name: item for item in old_items}
            after = {item.name: item for item in new_items}
            lines += [f"{kind} {name} was removed" for name in before if name not in after]
            lines += [f"{kind} {name} is new" for name in after if name not in before]
            lines += [
                f"{kind} {name} changed ({before[name].num_tokens:,} -> {after[name].num_tokens:,} tokens)"
                for name in after
                if name in before and before[name].fingerprint != after[name].fingerprint
            ]
        if self.tokenizer != new.tokenizer:
            lines.append("the tokenizer changed")
        old_rungs = {rung.name: rung for rung in self.ladder}
        lines += [
            f"rung {rung.name} changed"
            for rung in new.ladder
            if rung.name in old_rungs
            and (old_rungs[rung.name].model, old_rungs[rung.name].num_tokens) != (rung.model, rung.num_tokens)
        ]
        lines += [
            f"runs at rung {rung.name} have another start (warm_start)"
            for rung in new.ladder
            if rung.name in old_rungs and self.start_of(rung.name) != new.start_of(rung.name)
        ]
        if self.external:  # nobody trains what is missing: runs of such a rung would be lost in silence
            kept = {rung.name for rung in new.ladder}
            lines += [f"rung {name} was removed" for name in old_rungs if name not in kept]
        return lines


class Study:
    """One study's ledger and the state that follows from it.

    Args:
        directory: The run directory; None keeps the events in memory only.

    Raises:
        StudyError: If the ledger is damaged in the middle (a torn last line is dropped).
    """

    def __init__(self, directory: Path | None) -> None:
        self.files = RunDirectory(Path("memory") if directory is None else Path(directory))
        self.headers: list[Header] = []
        self.recommendation: Recommendation | None = None
        self.contenders: tuple[Contender, ...] = ()
        self.stopped: str | None = None
        self.batches: list[tuple[str, ...]] = []
        self.requests: dict[str, tuple[str, tuple[str, ...]]] = {}  # {key: (what was asked for, ids of the batch)}
        self._trials: dict[str, tuple[Trial, int]] = {}
        self._observations: dict[tuple[str, str], tuple[Observation, int]] = {}
        self.told_columns: tuple[str, ...] = ()
        self._histories: dict[bool, History] = {}  # of the events so far
        self._ledger: Ledger | _Memory = _Memory() if directory is None else Ledger(self.files.ledger)
        for event in self._ledger.read():
            self._apply(event)

    # --- reading -------------------------------------------------------------

    @property
    def header(self) -> Header:
        """The newest header."""
        if not self.headers:
            raise StudyError(
                f"{self.files.path} holds no study yet; start it with: mixopt run STUDY.yaml (mixopt suggest if runs are trained elsewhere)"
            )
        return self.headers[-1]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial of the ledger, in order, as recorded."""
        return tuple(trial for trial, _ in self._trials.values())

    @property
    def observations(self) -> tuple[Observation, ...]:
        """Every observation of the ledger, as recorded."""
        return tuple(observation for observation, _ in self._observations.values())

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that runs report; none before an external study knows its own."""
        header = self.header
        own = header.columns or self.told_columns
        return own if header.external else tuple(column for s in header.eval_sets for column in s.columns)

    @property
    def objective(self) -> Objective:
        """The objective over the study's columns.

        Before any is known, a pattern such as `loss/*` stands for one column.
        """
        header = self.header
        return Objective.parse(
            header.objective["expression"],
            self.columns or columns_named(header.objective["expression"]),
            unit=header.objective["unit"],
            eval_sets=header.eval_sets,
        )

    def trial(self, trial_id: str) -> Trial:
        """Return one trial; an unknown id is an error that names it."""
        if trial_id not in self._trials:
            raise StudyError(f"unknown trial {trial_id!r}{did_you_mean(trial_id, self._trials)} in {self.files.ledger}")
        return self._trials[trial_id][0]

    def history(self, *, seeds: bool = False) -> History:
        """Return what is valid under the newest header, over its domains.

        A trial that put weight on a domain since removed or changed is left out, as
        is the loss on an evaluation set since removed or changed. A run with another
        start than `warm_start` says now, or from a seed model left out, is left out.

        Args:
            seeds: Include seed models; optimizers must not see them.
        """
        if seeds not in self._histories:
            self._histories[seeds] = self._history(seeds=seeds)
        return self._histories[seeds]

    def _history(self, *, seeds: bool) -> History:
        names = self.header.domain_names
        trials: list[Trial] = []
        order: dict[str, int] = {}
        for trial, version in self._trials.values():
            if self._is_current(trial, version) and (seeds or trial.role is not Role.SEED):
                order[trial.id] = len(trials)
                trials.append(_over(trial, names))
        kept = [
            self._current_columns(observation, version)
            for observation, version in self._observations.values()
            if observation.trial in order and self._same_rung(observation.fidelity, version)
        ]
        rank = {rung.name: i for i, rung in enumerate(self.header.ladder)}
        usable = [observation for observation in kept if observation.losses or observation.scores]
        usable.sort(key=lambda o: (order[o.trial], rank[o.fidelity]))
        return History(tuple(trials), tuple(usable))

    def value(self, observation: Observation) -> float | None:
        """Return the objective of an observation, or None where a column is missing."""
        columns = observation.columns()
        objective = self.objective
        return float(objective.value(columns)) if all(name in columns for name in objective.columns) else None

    def best(self) -> tuple[Trial, float] | None:
        """Return the search trial with the lowest measured objective at the target rung."""
        history, target = self.history(), self.header.ladder.target.name
        search = {trial.id: trial for trial in history.trials if trial.role is Role.SEARCH}
        values = [
            (value, o.trial)
            for o in history.observations
            if o.trial in search and o.fidelity == target and (value := self.value(o)) is not None
        ]
        return (search[min(values)[1]], min(values)[0]) if values else None

    def spent(self) -> float:
        """Return the charge of the search's trials, in runs of the top rung; those a user brought are free."""
        trials = self.history().of(Role.SEARCH).trials
        return History(tuple(trial for trial in trials if trial.proposed_by != USER)).spent(self.header.ladder)

    def to_frame(self) -> pd.DataFrame:
        """Return the runs table: one row per observation (DESIGN section 5)."""
        import pandas as pd

        # Forks name seed models as their parents, so those belong to the table.
        history = self.history(seeds=True)
        trials = {trial.id: trial for trial in history.trials}
        rows = []
        for o in history.observations:
            trial, rung = trials[o.trial], self.header.ladder[o.fidelity]
            rows.append(
                {
                    "run": o.trial if self.header.external else f"{o.trial}@{o.fidelity}", "seed": trial.seed, "parent": trial.parent, "role": str(trial.role),
                    "fidelity": o.fidelity, "params": rung.num_params, "tokens": rung.num_tokens, "cost": rung.cost,
                    **{f"weight/{k}": v for k, v in trial.mixture.as_dict().items()}, **o.columns(),
                    "objective": self.value(o),
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        """Show what was run, what is best so far and what is recommended."""
        if not self.headers:
            return html_table("Study", (), (), note="This study has not begun.")
        header, trials, best = self.header, self.history(seeds=True).trials, self.best()
        rows = [
            (
                role,
                len(own),
                sum(t.status is Status.DONE for t in own),
                f"{sum(t.price(header.ladder) for t in own):.2f}",
            )
            for role in Role
            if (own := [t for t in trials if t.role is role])
        ]
        found = f"best measured {best[1]:.4f} ({best[0].id}); " if best else ""
        note = f"Minimizes {header.objective['expression']} over {len(header.domains)} domains; {found}{self.stopped or 'not stopped'}."
        table = html_table(f"Study {header.name}", ("phase", "runs", "done", "cost"), rows, note=note)
        return table if self.recommendation is None else table + self.recommendation._repr_html_()

    # --- writing -------------------------------------------------------------

    def check(self, header: Header, *, accept_changes: bool = False) -> None:
        """Raise StudyChangedError if data changed under the ledger and that is not accepted.

        A ledger whose runs are trained elsewhere, or are not, stays so: a ConfigError.
        """
        if self.headers and self.header.external != header.external:
            trained = "elsewhere" if self.header.external else "by mixopt itself"
            raise ConfigError(f"{self.files.path} holds a study whose runs are trained {trained}; choose another --dir")
        changes = self.header.data_changes(header) if self.headers else []
        if changes and not accept_changes:
            raise StudyChangedError(
                f"the data differ from those {self.files.path} was run with:\n  - "
                + "\n  - ".join(changes)
                + "\nrestore them, continue with --accept-changes (only what is missing is trained), or choose another --dir"
            )

    def begin(self, header: Header, *, accept_changes: bool = False) -> None:
        """Record what is searched, if it differs from the newest header.

        Raises:
            StudyChangedError: If data changed and `accept_changes` is not set.
        """
        self.check(header, accept_changes=accept_changes)
        if not self.headers or self.header.to_json() != header.to_json():
            self._append({"type": "study", **header.to_json()})

    def propose(self, trials: Sequence[Trial], *, request: tuple[str, str] | None = None) -> None:
        """Record a batch of trials, whole or not at all.

        Args:
            trials: The batch.
            request: Key and content of the request that it answers, for clients that repeat theirs.
        """
        ids = [trial.id for trial in trials]
        double = next((i for i in ids if i in self._trials or ids.count(i) > 1), None)
        if double:
            raise StudyError(f"trial {double!r} is in {self.files.ledger} already; give every trial an id of its own")
        if trials:
            asked = {} if request is None else {"request": list(request)}
            self._append({"type": "propose", "trials": [trial.to_json() for trial in trials], **asked})

    def set_status(self, trial_ids: Sequence[str], status: Status, note: str = "") -> None:
        """Record that trials started, failed or were given up."""
        for trial_id in trial_ids:
            self.trial(trial_id)
        self._append({"type": "status", "trials": list(trial_ids), "status": str(status), "note": note})

    def finish(self, result: TrialResult) -> None:
        """Record the result of one trial; the same result twice is recorded once."""
        if self.trial(result.trial).status in (Status.DONE, Status.ABANDONED):
            return
        self._append({"type": "result", **_plain(result)})

    def tell(self, columns: Sequence[str], trials: Sequence[Trial], results: Sequence[TrialResult]) -> None:
        """Record results of runs trained elsewhere, as one event: all of them or none.

        Args:
            columns: Names of what was measured, in the table's order; the first ones told become the study's.
            trials: Runs that are not in the ledger yet.
            results: What new and known runs showed; an observation replaces the one of its key.
        """
        if results:
            event = {"columns": list(columns), "trials": [trial.to_json() for trial in trials]}
            self._append({"type": "tell", **event, "results": [_plain(result) for result in results]})

    def rescore(self, observations: Sequence[Observation]) -> None:
        """Record losses and scores measured later, on evaluation sets that are new; kept ones stay."""
        for observation in observations:
            # Losses on text that has changed since stay behind: the merged ones count as new.
            known = self._current_columns(*self._observations[observation.key])
            losses, scores = {**known.losses, **observation.losses}, {**known.scores, **observation.scores}
            merged = replace(known, losses=losses, scores=scores)
            self._append({"type": "rescore", "observation": merged.to_json()})

    def stop(self, reason: str) -> None:
        """Record why the search ended."""
        self._append({"type": "stop", "reason": reason})

    def recommend(self, recommendation: Recommendation, contenders: Sequence[Contender]) -> None:
        """Record the recommended mixture and what was predicted for it and its rivals."""
        rivals = [contender.to_json() for contender in contenders]
        self._append({"type": "recommend", "recommendation": recommendation.to_json(), "contenders": rivals})

    # --- the fold ------------------------------------------------------------

    def _apply(self, event: dict[str, Any]) -> None:
        data = {key: value for key, value in event.items() if key not in ("type", "time", "crc")}
        version = len(self.headers) - 1
        self._histories.clear()
        match event["type"]:
            case "study":
                self.headers.append(Header.from_json(data))
                self.stopped, self.recommendation = None, None
            case "propose":
                self.batches.append(tuple(item["id"] for item in data["trials"]))
                if "request" in data:
                    self.requests[data["request"][0]] = (data["request"][1], self.batches[-1])
                self._add(data["trials"], version)
                self.stopped = None if any(t["role"] == Role.SEARCH for t in data["trials"]) else self.stopped
            case "status":
                for trial_id in data["trials"]:
                    self._set(trial_id, Status(data["status"]), data["note"])
            case "result":
                self._record(data, version)
            case "tell":
                self.told_columns = self.told_columns or tuple(data["columns"])
                self._add(data["trials"], version)
                for item in data["results"]:
                    self._record(item, version)
                self.recommendation, self.contenders = None, ()
            case "rescore":
                observation = Observation.from_json(data["observation"])
                self._observations[observation.key] = (observation, version)
            case "stop":
                self.stopped = data["reason"]
            case "recommend":
                self.recommendation = Recommendation.from_json(data["recommendation"])
                self.contenders = tuple(Contender.from_json(item) for item in data["contenders"])
            case unknown:
                raise StudyError(
                    f"unknown event {unknown!r} in {self.files.ledger}; it was written by a newer mixopt: upgrade"
                )

    def _add(self, items: Sequence[Mapping[str, Any]], version: int) -> None:
        for item in items:
            trial = Trial.from_json(item)
            if trial.id in self._trials:
                raise StudyError(f"trial {trial.id} is proposed twice in {self.files.ledger}; the ledger was edited")
            self._trials[trial.id] = (trial, version)

    def _record(self, item: Mapping[str, Any], version: int) -> None:
        self._set(item["trial"], Status(item["status"]), item["note"])
        for plain in item["observations"]:
            observation = Observation.from_json(plain)
            self._observations[observation.key] = (observation, version)

    def _set(self, trial_id: str, status: Status, note: str) -> None:
        trial, version = self._trials[trial_id]
        self._trials[trial_id] = (trial.with_status(status, note), version)

    def _newest(self, version: int) -> bool:
        """Whether nothing changed since: spares most comparisons, as most of a ledger is of its newest header."""
        return version == len(self.headers) - 1

    def _is_current(self, trial: Trial, version: int) -> bool:
        if self._newest(version):
            return self._same_start(trial, version)
        then = {d.name: d.fingerprint for d in self.headers[version].domains}
        now = {d.name: d.fingerprint for d in self.header.domains}
        used = [name for name, weight in trial.mixture.as_dict().items() if weight > 0]
        same_tokenizer = self.headers[version].tokenizer == self.header.tokenizer
        same_rung = self._same_rung(trial.fidelity, version) and self._same_start(trial, version)
        return same_tokenizer and same_rung and all(now.get(name) == then.get(name) for name in used)

    def _same_start(self, trial: Trial, version: int) -> bool:
        if trial.role is Role.VALIDATION:
            return True
        same = self.headers[version].start_of(trial.fidelity) == self.header.start_of(trial.fidelity)
        parent = self._trials.get(trial.parent or "")
        while parent and parent[0].role is not Role.SEED:
            parent = self._trials.get(parent[0].parent or "")
        return same and (parent is None or self._is_current(*parent))

    def _same_rung(self, name: str, version: int) -> bool:
        if self._newest(version):
            return True
        rungs = {rung.name: (rung.model, rung.num_tokens) for rung in self.header.ladder}
        then = self.headers[version].ladder[name]
        return rungs.get(name) == (then.model, then.num_tokens)

    def _current_columns(self, observation: Observation, version: int) -> Observation:
        if self.header.external:
            return _only(observation, self.columns)
        if self._newest(version):
            return observation
        then = {s.name: s.fingerprint for s in self.headers[version].eval_sets}
        now = {s.name: s.fingerprint for s in self.header.eval_sets}
        same = {name for name in now if now[name] == then.get(name)}
        losses = {name: value for name, value in observation.losses.items() if name in same}
        scores = {name: value for name, value in observation.scores.items() if name in same}
        return replace(observation, losses=losses, scores=scores)

    def _append(self, event: dict[str, Any]) -> None:
        self._apply(self._ledger.append(event))


def columns_named(expression: str | Mapping[str, float]) -> tuple[str, ...]:
    """Return the columns and patterns that an objective names, in order."""
    found = list(expression) if isinstance(expression, Mapping) else _COLUMN.findall(expression)
    return tuple(dict.fromkeys(found))


class _Memory:
    """Events that are never written: a ledger for studies that live in one process."""

    def read(self) -> list[dict[str, Any]]:
        return []

    def append(self, event: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(event, allow_nan=False))  # type: ignore[no-any-return]


def _plain(result: TrialResult) -> dict[str, Any]:
    observations = [observation.to_json() for observation in result.observations]
    return {
        "trial": result.trial, "status": str(result.status), "note": result.note, "observations": observations,
    }  # fmt: skip


def _only(observation: Observation, columns: Sequence[str]) -> Observation:
    losses = {name: value for name, value in observation.losses.items() if f"loss/{name}" in columns}
    scores = {name: value for name, value in observation.scores.items() if f"score/{name}" in columns}
    return replace(observation, losses=losses, scores=scores)


def _over(trial: Trial, names: Sequence[str]) -> Trial:
    if trial.mixture.domains == tuple(names):
        return trial
    return replace(trial, mixture=trial.mixture.over(list(names)))
