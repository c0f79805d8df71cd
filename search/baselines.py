"""What a search must beat: random and space-filling mixtures at the target rung.

Both buy only target runs, and recommend the best mixture they measured: no model, so
the recommendation of a noisy search is optimistic and has no regret bound. Their
`predict` uses the surrogate without a predictor, fitted to the same measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixopt import seeding
from mixopt.constraints import Constraints
from mixopt.fidelity import Ladder
from mixopt.mixture import Array, Mixture
from mixopt.objective import Objective
from mixopt.observation import History, Role, Status
from mixopt.proposal import Prediction, Proposal, Recommendation

from . import simplex
from .choice import same_mixture

_EXTRA = 8  # points looked at beyond those asked for, should some be taken


@dataclass(frozen=True, eq=False)
class _Baseline:
    """A sequence of mixtures, one per search trial; subclasses say which.

    Attributes:
        constraints: Feasible mixtures.
        ladder: All rungs; only the target is used.
        objective: What is minimized.
        seed: Root of all randomness.
    """

    constraints: Constraints
    ladder: Ladder
    objective: Objective
    seed: int

    @property
    def name(self) -> str:
        """Short name."""
        raise NotImplementedError

    def points(self, start: int, num: int) -> Array:
        """Return points start..start+num of the sequence, (num, K)."""
        raise NotImplementedError

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return the next points of the sequence, as many as the budget pays."""
        search, target = history.of(Role.SEARCH), self.ladder.target
        affordable = min(num, int(np.floor(budget / target.cost + 1e-9)))
        if affordable <= 0:
            return []
        taken = [t.mixture.over(self.constraints.domains).weights for t in search.trials if t.status is not Status.DONE]
        proposals: list[Proposal] = []
        for weights in self.points(len(search.trials), affordable + _EXTRA):
            mixture = simplex.clean(weights, self.constraints)
            if len(proposals) < affordable and not any(same_mixture(mixture.weights, other) for other in taken):
                reason = f"point {len(search.trials) + len(proposals)} of the {self.name} sequence"
                proposals.append(Proposal(mixture, target.name, None, reason, proposed_by=self.name))
                taken.append(mixture.weights)
        return proposals

    def recommend(self, history: History) -> Recommendation:
        """Return the best mixture measured at the target, or the center.

        The standard deviations are those over measurements of the same mixture; 0 when
        there is one measurement only, which does not mean that it is exact.
        """
        measured = self._measured(history)
        if not measured:
            center = Mixture.normalized(self.constraints.domains, self.constraints.interior_point())
            return Recommendation(
                center,
                self.ladder.target.name,
                {},
                {},
                None,
                (),
                self.name,
                "nothing measured: the center of the feasible mixtures",
            )
        best = min(
            measured, key=lambda mixture: float(np.mean([row["objective"] for row in measured[mixture].values()]))
        )
        rows = list(measured[best].values())
        names = [*self.objective.columns, "objective"]
        return Recommendation(
            best,
            self.ladder.target.name,
            {name: float(np.mean([row[name] for row in rows])) for name in names},
            {name: float(np.std([row[name] for row in rows], ddof=1)) if len(rows) > 1 else 0.0 for name in names},
            None,
            tuple(trial for trials in measured.values() for trial in trials),
            self.name,
            f"best of {len(measured)} mixtures measured at the target, in {len(rows)} runs",
        )

    def predict(self, history: History, mixtures: Sequence[Mixture], *, fidelity: str) -> Prediction:
        """Return predictions of the surrogate without a predictor."""
        from .bayes import MultiFidelityOptimizer

        model = MultiFidelityOptimizer(self.constraints, self.ladder, self.objective, None, self.seed, initial=0)
        return model.predict(history, mixtures, fidelity=fidelity)

    def _measured(self, history: History) -> dict[Mixture, dict[str, dict[str, float]]]:
        """Return {mixture: {trial: columns and objective}} of feasible search runs at the target."""
        search = history.of(Role.SEARCH)
        found: dict[Mixture, dict[str, dict[str, float]]] = {}
        for observation in search.observations:
            columns = observation.columns()
            mixture = search.trial(observation.trial).mixture.over(self.constraints.domains)
            complete = all(name in columns for name in self.objective.columns)
            if observation.fidelity == self.ladder.target.name and complete and self.constraints.allows(mixture):
                columns["objective"] = float(self.objective.value(columns))
                found.setdefault(mixture, {})[observation.trial] = columns
        return found


@dataclass(frozen=True, eq=False)
class RandomOptimizer(_Baseline):
    """Mixtures drawn uniformly on the simplex and pulled inside."""

    @property
    def name(self) -> str:
        """`random`."""
        return "random"

    def points(self, start: int, num: int) -> Array:
        """Return one draw per index, each from its own stream."""
        draws = [
            simplex.sample(self.constraints, 1, seeding.generator(self.seed, "random", i))
            for i in range(start, start + num)
        ]
        return np.concatenate(draws)


@dataclass(frozen=True, eq=False)
class SobolOptimizer(_Baseline):
    """A scrambled Sobol sequence on the polytope."""

    @property
    def name(self) -> str:
        """`sobol`."""
        return "sobol"

    def points(self, start: int, num: int) -> Array:
        """Return a stretch of the sequence."""
        return simplex.sobol(self.constraints, num, seeding.derive(self.seed, "sobol") % 2**32, skip=start)
