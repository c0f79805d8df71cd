"""What a search must beat: random and space-filling mixtures, and what all rivals share.

`Baseline` is a shop and a memory of what was measured: candidates, what is left of them
in a random order, purchases within the budget, the best mixture measured. Random and
Sobol search are here and buy only target runs, and a user's list is trained as it is; methods of papers are in `rivals.py` and
`botorch_rivals.py`. `fit_trees` is the only door to LightGBM.

Without a model the recommendation of a noisy search is optimistic and has no regret bound.
M candidates or mixtures, N runs, K domains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mixopt import seeding
from mixopt.constraints import Constraints
from mixopt.errors import ConfigError
from mixopt.fidelity import Ladder
from mixopt.mixture import Array, Mixture
from mixopt.objective import Objective
from mixopt.observation import History, Role, Status
from mixopt.proposal import Prediction, Proposal, Recommendation

from . import simplex
from .choice import same_mixture
from .pool import Pool

Rows = NDArray[np.intp]  # indices of candidates

NUM_CANDIDATES = 1024  # mixtures a rival chooses from when there is no pool
_EXTRA = 8  # points looked at beyond those asked for, should some be taken
SLACK = 1e-9  # of a budget, so that rounding in sums of prices forbids no purchase


@dataclass(frozen=True, eq=False)
class Baseline:
    """What all baselines share; subclasses say what to buy.

    Attributes:
        constraints: Feasible mixtures.
        ladder: All rungs; the last is the target.
        objective: What is minimized.
        seed: Root of all randomness.
        pool: The only runs that can be bought, or None.

    Raises:
        ConfigError: If the pool's domains are not those of the constraints, in their order.
    """

    constraints: Constraints
    ladder: Ladder
    objective: Objective
    seed: int
    pool: Pool | None = None

    def __post_init__(self) -> None:
        if self.pool is not None:
            object.__setattr__(self, "pool", self.pool.within(self.constraints))

    @property
    def name(self) -> str:
        """Short name."""
        raise NotImplementedError

    @cached_property
    def candidates(self) -> Pool:
        """The feasible rows of the pool; without one, a seeded sample of feasible mixtures at every rung."""
        if self.pool is None:
            rng = seeding.generator(self.seed, "candidates")
            points = np.unique(simplex.sample(self.constraints, NUM_CANDIDATES, rng), axis=0)
            names = [rung.name for rung in self.ladder for _ in points]
            prices = np.repeat([rung.cost for rung in self.ladder], len(points))
            return Pool(self.constraints.domains, np.tile(points, (len(self.ladder), 1)), tuple(names), prices)
        return self.pool

    def left(self, history: History) -> Rows:
        """Return the candidates not bought yet, in a random order that the seed fixes."""
        rows = np.asarray(self.candidates.left(history), dtype=np.intp)
        ranks = seeding.generator(self.seed, "order").permutation(len(self.candidates))
        return rows[np.argsort(ranks[rows])]

    def at(self, rows: Rows, fidelity: str) -> Rows:
        """Keep the candidates of one rung."""
        return rows[[self.candidates.fidelities[row] == fidelity for row in rows]]

    def buy(self, rows: Rows, num: int, *, budget: float, reason: str) -> list[Proposal]:
        """Return proposals of the first `num` rows that the budget pays, dearer ones skipped.

        Args:
            rows: Distinct candidates not bought yet, best first.
            num: Most to buy.
            budget: Runs of the target.
            reason: Why, in words.
        """
        proposals: list[Proposal] = []
        for row in rows:
            price = float(self.candidates.prices[row])
            if len(proposals) < num and price <= budget + SLACK:
                budget -= price
                mixture, fidelity = self.candidates.mixture(row), self.candidates.fidelities[row]
                proposals.append(Proposal(mixture, fidelity, None, reason, proposed_by=self.name))
        return proposals

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return up to `num` proposals that the budget pays."""
        raise NotImplementedError

    def recommend(self, history: History) -> Recommendation:
        """Return the best mixture measured at the target; before there is one, a guess.

        The standard deviations are those over measurements of the same mixture; 0 when
        there is one measurement only, which does not mean that it is exact.
        """
        measured = self._measured(history)
        if not measured:
            return self.guess(history)
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

    def guess(self, history: History) -> Recommendation:
        """Return the center of the feasible mixtures, or the target candidate next to it."""
        domains, where = self.constraints.domains, "the center of the feasible mixtures"
        mixture = Mixture.normalized(domains, self.constraints.interior_point())
        if self.pool is not None:
            targets, where = self.candidates.targets(self.ladder), f"the candidate next to {where}"
            mixture = Mixture(domains, targets[np.abs(targets - mixture.weights).sum(-1).argmin()])
        reason = f"nothing measured: {where}"
        return Recommendation(mixture, self.ladder.target.name, {}, {}, None, (), self.name, reason)

    def predict(self, history: History, mixtures: Sequence[Mixture], *, fidelity: str) -> Prediction:
        """Return predictions of the surrogate without a predictor."""
        from .bayes import MultiFidelityOptimizer

        model = MultiFidelityOptimizer(self.constraints, self.ladder, self.objective, None, self.seed, initial=0)
        return model.predict(history, mixtures, fidelity=fidelity)

    def _measured(self, history: History) -> dict[Mixture, dict[str, dict[str, float]]]:
        """Return {mixture: {trial: columns and objective}} of feasible search runs at the target."""
        runs = complete_runs(history, self.ladder.target.name, self.objective)
        found: dict[Mixture, dict[str, dict[str, float]]] = {}
        for trial, observation in zip(runs.trials, runs.observations, strict=True):
            mixture = trial.mixture.over(self.constraints.domains)
            if self.constraints.allows(mixture):
                columns = observation.columns()
                columns["objective"] = float(self.objective.value(columns))
                found.setdefault(mixture, {})[observation.trial] = columns
        return found


@dataclass(frozen=True, eq=False)
class _Sequence(Baseline):
    """A sequence of mixtures, one per search trial; subclasses say which."""

    def points(self, start: int, num: int) -> Array:
        """Return points start..start+num of the sequence, (num, K)."""
        raise NotImplementedError

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return the next points of the sequence, as many as the budget pays."""
        search, target = history.of(Role.SEARCH), self.ladder.target
        affordable = min(num, int(np.floor(budget / target.cost + SLACK)))
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


@dataclass(frozen=True, eq=False)
class ListedOptimizer(Baseline):
    """A user's list of runs, trained in its order; equal rows are replicates.

    Raises:
        ConfigError: If there is no list.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool is None:
            raise ConfigError("listed trains a list of runs and there is none; give search.mixtures")

    @property
    def name(self) -> str:
        """`listed`."""
        return "listed"

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return the next rows of the list, those that the budget does not pay skipped."""
        rows = np.asarray(self.candidates.left(history), dtype=np.intp)
        return self.buy(rows, num, budget=budget, reason="next of the list")


@dataclass(frozen=True, eq=False)
class RandomOptimizer(_Sequence):
    """Mixtures drawn uniformly on the simplex and pulled inside; of a pool, target rows in a random order."""

    @property
    def name(self) -> str:
        """`random`."""
        return "random"

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return the next draws, or the next rows of the pool."""
        if self.pool is None:
            return super().propose(history, num, budget=budget)
        rows = self.at(self.left(history), self.ladder.target.name)
        return self.buy(rows, num, budget=budget, reason="next in a random order of the target runs")

    def points(self, start: int, num: int) -> Array:
        """Return one draw per index, each from its own stream."""
        draws = [
            simplex.sample(self.constraints, 1, seeding.generator(self.seed, "random", i))
            for i in range(start, start + num)
        ]
        return np.concatenate(draws)


@dataclass(frozen=True, eq=False)
class SobolOptimizer(_Sequence):
    """A scrambled Sobol sequence on the polytope.

    Raises:
        ConfigError: If there is a pool: a finite set has no such sequence.
    """

    def __post_init__(self) -> None:
        if self.pool is not None:
            raise ConfigError(
                "sobol fills a continuous set, got a pool of runs; on a pool use random, which is the same"
            )

    @property
    def name(self) -> str:
        """`sobol`."""
        return "sobol"

    def points(self, start: int, num: int) -> Array:
        """Return a stretch of the sequence."""
        return simplex.sobol(self.constraints, num, seeding.derive(self.seed, "sobol") % 2**32, skip=start)


def complete_runs(history: History, fidelity: str, objective: Objective) -> History:
    """Keep search runs measured at a rung in every column of the objective.

    Returns:
        One observation per trial, at that rung, in the same order.
    """
    search, wanted = history.of(Role.SEARCH), set(objective.columns)
    trials = {trial.id: trial for trial in search.trials}
    seen = [obs for obs in search.observations if obs.fidelity == fidelity and wanted <= obs.columns().keys()]
    return History(tuple(trials[obs.trial] for obs in seen), tuple(seen))


def fit_trees(
    weights: Array, values: Array, *, seed: int, depth: int = -1, leaf: int = 20, penalty: float = 0.0
) -> Callable[[Array], Array]:
    """Fit 1000 boosted trees at learning rate 0.01, without early stopping, on one thread.

    Args:
        weights: (N, K) mixtures.
        values: (N,) values.
        seed: LightGBM's; nothing is sampled at these settings.
        depth: Largest depth of a tree, -1 for any.
        leaf: Fewest runs in a leaf; with fewer than twice as many runs the fit is constant.
        penalty: L1 and L2 penalty on leaves, for values of unit spread.

    Returns:
        Function from (M, K) mixtures to (M,) values.

    Raises:
        ConfigError: If LightGBM is not installed.

    Source: RegMix (arXiv:2407.01492), hyperparameters of its code (METHODS 10.1).
    """
    try:
        import lightgbm
    except ImportError as error:
        raise ConfigError(
            "this optimizer needs lightgbm, which is not installed; pip install mixopt[baselines]"
        ) from error
    center, scale = float(np.mean(values)), float(np.std(values)) or 1.0
    settings = {"objective": "regression", "learning_rate": 0.01, "max_depth": depth, "min_data_in_leaf": leaf}
    settings |= {"lambda_l1": penalty, "lambda_l2": penalty, "seed": seed % 2**31, "verbosity": -1}
    settings |= {"num_threads": 1, "deterministic": True, "force_row_wise": True}
    data = lightgbm.Dataset(weights, (values - center) / scale, params={"verbosity": -1})
    booster = lightgbm.train(settings, data, num_boost_round=1000)
    return lambda points: center + scale * np.asarray(booster.predict(points, num_threads=1), dtype=np.float64)
