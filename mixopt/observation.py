"""Trials and observations: what is to be trained, and what was learned.

    PROPOSED -> RUNNING -> DONE
                        -> FAILED      (may be retried: worker lost, out of memory)
                        -> ABANDONED   (never retried: diverged, invalid)

A data expert is a trial at a vertex of the simplex, with the same life cycle; so is a
seed model that warm starts fork from. A trial that passes several nested rungs has one
observation at each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from .fidelity import Ladder
from .mixture import Mixture


class Status(StrEnum):
    """Where a trial stands in its life cycle."""

    PROPOSED = "proposed"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    ABANDONED = "abandoned"

    @property
    def finished(self) -> bool:
        """Whether the trial needs no more work."""
        return self in (Status.DONE, Status.FAILED, Status.ABANDONED)


class Role(StrEnum):
    """Why a trial is run."""

    SEED = "seed"
    EXPERT = "expert"
    SEARCH = "search"
    VALIDATION = "validation"


@dataclass(frozen=True)
class Trial:
    """One evaluation to do: train a proxy on a mixture up to a rung.

    Attributes:
        id: Unique in the study, readable (`expert-python`, `search-003`).
        role: Why it is run.
        mixture: What it trains on.
        fidelity: Name of the rung it trains to.
        seed: Root of its initialization and data order.
        proposed_by: Optimizer or phase that asked for it.
        reason: Why, in words.
        value: Acquisition value per cost when proposed, or None.
        label: For experts the domain, for validation runs the contender, for seeds the model.
        parent: Id of the trial it goes on from, or None.
        parent_kind: `continued` (same run, further) or `forked` (another run from its
            weights, with its own count of tokens), or None.
        parent_fidelity: Rung of the parent that it continues, or None: a fork is charged
            like a run from scratch.
        status: Place in the life cycle, kept by the study.
        note: Why it failed or was abandoned, in words.
    """

    id: str
    role: Role
    mixture: Mixture
    fidelity: str
    seed: int
    proposed_by: str
    reason: str = ""
    value: float | None = None
    label: str = ""
    parent: str | None = None
    parent_kind: str | None = None
    parent_fidelity: str | None = None
    status: Status = Status.PROPOSED
    note: str = ""

    def price(self, ladder: Ladder) -> float:
        """Return what this trial is charged, in runs of the top rung."""
        return ladder.price(self.fidelity, start=self.parent_fidelity)

    def with_status(self, status: Status, note: str = "") -> Trial:
        """Return this trial at another place of its life cycle."""
        return replace(self, status=status, note=note)

    def to_json(self) -> dict[str, Any]:
        """Return plain data: everything but status and note, which events carry."""
        data = {key: value for key, value in vars(self).items() if key not in ("mixture", "status", "note")}
        return {**data, "weights": self.mixture.as_dict()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """Rebuild a trial from `to_json`."""
        fields = {key: value for key, value in data.items() if key not in ("weights", "role")}
        weights = data["weights"]
        return cls(role=Role(data["role"]), mixture=Mixture.from_mapping(list(weights), weights), **fields)


@dataclass(frozen=True)
class Observation:
    """What one trial showed at one rung.

    Attributes:
        trial: Id of the trial.
        fidelity: Name of the rung.
        losses: {evaluation set: nats per token}, all finite.
        scores: {task: accuracy}.
        noise: Known standard deviation per column, or None.
        cost: Charge for this step from the rung before, in runs of the top rung.
        flops: Training FLOPs of this step, with the active feed-forward experts as measured.
        process_seconds: CPU seconds of this step, its share of the stack's.
        wall_seconds: Wall seconds of this step, its share of the stack's.
        router_loads: One list per MoE layer: share of the tokens' choices per feed-forward
            expert during this step; zero is a dead one.
        active_experts: Mean active feed-forward experts per token and layer during this
            step, or None without MoE layers.
        epochs: {domain: passes over its tokens since the start of the run}.
        train_loss: Training loss here, nats per token, averaged over the last steps.
    """

    trial: str
    fidelity: str
    losses: Mapping[str, float]
    scores: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, float] | None = None
    cost: float = 0.0
    flops: float = 0.0
    process_seconds: float = 0.0
    wall_seconds: float = 0.0
    router_loads: Sequence[Sequence[float]] = ()
    active_experts: float | None = None
    epochs: Mapping[str, float] = field(default_factory=dict)
    train_loss: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Identity of the observation: (trial id, rung)."""
        return self.trial, self.fidelity

    def load_summary(self) -> dict[str, float]:
        """Return the state of the routers: `max_load` (1 is balance), `dead` (a share) and `active` experts.

        The largest load is in multiples of the mean, of the worst layer; dead are
        feed-forward experts that no token went to during this step.
        """
        loads = [np.asarray(layer, dtype=np.float64) for layer in self.router_loads]
        if not loads:
            return {}
        summary = {"max_load": max(float(layer.max() * layer.size) for layer in loads)}
        summary["dead"] = float(np.mean(np.concatenate(loads) == 0))
        return summary if self.active_experts is None else {**summary, "active": self.active_experts}

    def columns(self) -> dict[str, float]:
        """Return values under their runs-table names, `loss/<name>` and `score/<name>`."""
        losses = {f"loss/{name}": value for name, value in self.losses.items()}
        return losses | {f"score/{name}": value for name, value in self.scores.items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Observation:
        """Rebuild an observation from `to_json`."""
        return cls(**data)


def losses_and_scores(columns: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Split runs-table columns into an observation's losses and scores."""
    kinds: dict[str, dict[str, float]] = {"loss": {}, "score": {}}
    for column, value in columns.items():
        kind, _, name = column.partition("/")
        kinds[kind][name] = value
    return kinds["loss"], kinds["score"]


@dataclass(frozen=True)
class History:
    """All an optimizer may know: the search so far, in the order of the ledger.

    Seed models of warm starts are left out: trained from scratch, they say nothing of
    the level of the runs that are forked from them.

    Attributes:
        trials: Trials with their status; unfinished ones are pending.
        observations: Results of these trials, in trial order, cheapest rung first.
    """

    trials: tuple[Trial, ...] = ()
    observations: tuple[Observation, ...] = ()

    @property
    def pending(self) -> tuple[Trial, ...]:
        """Trials proposed but not finished."""
        return tuple(trial for trial in self.trials if not trial.status.finished)

    def of(self, role: Role) -> History:
        """Keep the trials of one role, with their observations."""
        trials = tuple(trial for trial in self.trials if trial.role is role)
        ids = {trial.id for trial in trials}
        return History(trials, tuple(obs for obs in self.observations if obs.trial in ids))

    def trial(self, trial_id: str) -> Trial:
        """Return the trial with this id."""
        return next(trial for trial in self.trials if trial.id == trial_id)

    def spent(self, ladder: Ladder) -> float:
        """Return the charge of all trials, pending and failed ones included."""
        return sum(trial.price(ladder) for trial in self.trials)
