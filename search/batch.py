"""A batch being filled: what is pending, what is left of the budget, what can be continued.

Lives for one call of `propose`. Each run that is added is believed (its posterior means
taken as seen), so that the next one is chosen for what it adds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mixopt.constraints import Constraints
from mixopt.fidelity import Ladder
from mixopt.mixture import Array
from mixopt.observation import History, Role, Status

from .acquisition import Beliefs
from .choice import Action, Market, Parent, same_mixture
from .encoding import Evidence
from .pool import Pool


@dataclass(eq=False)
class Batch:
    """The state of one greedy batch.

    Attributes:
        constraints: Feasible mixtures.
        ladder: All rungs.
        budget: What is left, in runs of the top rung.
        taken: (weights, rung) that are pending or failed, this batch included.
        added: Those of this batch, not yet believed.
        parents: Trials that can be continued.
        number: Number of the next fresh trial.
        beliefs: Posterior with all pending runs believed; set by `open`.
        listed: The only runs that can be bought and are left, or None.
        dropped: Rungs that are not worth buying.
        spent: {rung: charge of this batch's runs}.
    """

    constraints: Constraints
    ladder: Ladder
    budget: float
    taken: list[tuple[Array, str]] = field(default_factory=list)
    added: list[tuple[Array, str]] = field(default_factory=list)
    parents: list[Parent] = field(default_factory=list)
    number: int = 0
    beliefs: Beliefs | None = None
    listed: Pool | None = None
    dropped: frozenset[str] = frozenset()
    spent: dict[str, float] = field(default_factory=dict)

    def affords(self, price: float) -> bool:
        """Whether what is left pays a charge."""
        return price <= self.budget + 1e-9

    def is_taken(self, weights: Array, fidelity: str) -> bool:
        """Whether a mixture is pending, or failed, at a rung."""
        return any(rung == fidelity and same_mixture(w, weights) for w, rung in self.taken)

    def add(self, weights: Array, fidelity: str, price: float) -> None:
        """Add a fresh run before the surrogate is open: it is believed when it opens."""
        self._pay(weights, fidelity, price)
        self.added.append((weights, fidelity))

    def open(self, beliefs: Beliefs, history: History, evidence: Evidence) -> None:
        """Believe all pending runs and list the trials that can be continued."""
        self.beliefs, self.number = beliefs, len(evidence.roots)
        search = history.of(Role.SEARCH)
        for trial in search.pending:
            weights = trial.mixture.over(self.constraints.domains).weights
            self._believe(weights, trial.fidelity, trial.parent_fidelity, evidence.roots[trial.id])
        for weights, fidelity in self.added:
            self._believe(weights, fidelity, None, self.number)
            self.number += 1
        self.parents = _parents(search, evidence, self.constraints)

    def best(self, normals: Tensor, *, seed: int) -> Action | None:
        """Return the affordable action with the largest gain per charge, or None."""
        assert self.beliefs is not None
        group = float(self.number)
        market = Market(
            self.constraints, self.ladder, self.parents, self.taken, self.budget, group, seed, self.listed, self.dropped
        )
        return market.best(self.beliefs, normals)

    def buy(self, action: Action) -> None:
        """Pay for an action and believe it."""
        self._pay(action.weights, action.fidelity, action.price)
        self.number += 1
        start = action.parent.fidelity if action.parent else None
        self._believe(action.weights, action.fidelity, start, action.group)
        self.parents = [p for p in self.parents if action.parent is None or p.trial != action.parent.trial]

    def _pay(self, weights: Array, fidelity: str, price: float) -> None:
        self.budget -= price
        self.spent[fidelity] = self.spent.get(fidelity, 0.0) + price
        self.taken.append((weights, fidelity))
        if self.listed is not None:
            self.listed = self.listed.without(weights, fidelity)

    def _believe(self, weights: Array, fidelity: str, start: str | None, group: float) -> None:
        assert self.beliefs is not None
        rungs = [self.ladder.index(rung.name) for rung in self.ladder.nested(fidelity, above=start)]
        with torch.no_grad():
            self.beliefs = self.beliefs.believe(torch.tensor(np.array(weights)), rungs, group)


def _parents(search: History, evidence: Evidence, constraints: Constraints) -> list[Parent]:
    """Return finished trials with an observation at their rung that nothing goes on from yet."""
    children = {trial.parent for trial in search.trials}
    reached = {observation.key for observation in search.observations}
    return [
        Parent(t.id, t.mixture.over(constraints.domains).weights, t.fidelity, float(evidence.roots[t.id]))
        for t in search.trials
        if t.status is Status.DONE and t.id not in children and (t.id, t.fidelity) in reached
    ]
