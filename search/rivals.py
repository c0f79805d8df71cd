"""Methods that screen mixtures with cheap runs and then buy target runs in predicted order.

    rounds of cheap runs -> a model of them -> target runs, best predicted first

RegMix, Olmix, CLIMB and a two-step search with our own surrogate differ only in the
model and in the rounds; `catalog.py` composes them. None learns from its target runs,
and none chooses rungs: that is what a multi-fidelity search has to add.

The published methods end with a mixture to train once. Here the search goes on in their
order: before a target run the best predicted mixture is recommended, afterwards the best
measured one. A batch never crosses from one round into the next, which needs its results.
M mixtures, N runs, K domains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from mixopt import seeding
from mixopt.errors import ConfigError
from mixopt.identity import fingerprint
from mixopt.mixture import Array, Mixture
from mixopt.objective import Objective
from mixopt.observation import History, Role
from mixopt.proposal import Prediction, Proposal, Recommendation
from mixopt.protocols import Optimizer, Predictor

from . import loglinear
from .baselines import Baseline, Rows, complete_runs, fit_trees

Believed = dict[str, tuple[Array, Array]]  # {column: (means, standard deviations)}, (M,) each, and `objective`
Model = Callable[[Array, str], Believed]  # of (M, K) weights at a rung

SHARE_OF_BUDGET = 0.5  # the most that cheap runs may cost
TOP_SHARE = 0.25  # of the candidates left: where later rounds draw from
_REMEMBERED = 4
_GROWTH = 1.25  # between the numbers of cheap runs at which a guess is made anew
_FEW = 8


class Learner(Protocol):
    """Turns measured runs of one rung into a model."""

    def learn(self, runs: History) -> Model:
        """Fit to at least one run; one complete observation per trial."""


@dataclass(frozen=True, eq=False)
class TreesLearner:
    """Boosted trees on the objective itself, one regressor; knows no rung and no column.

    Attributes:
        objective: What is predicted.
        domains: K names.
        seed: Root seed.
        depth: Largest depth of a tree, -1 for any.
        leaf: Fewest runs in a leaf.
        penalty: L1 and L2 penalty, for values of unit spread.
    """

    objective: Objective
    domains: tuple[str, ...]
    seed: int
    depth: int = -1
    leaf: int = 20
    penalty: float = 0.0

    def learn(self, runs: History) -> Model:
        """Fit; the standard deviation is the root mean square error of the fit, the same for all."""
        weights, columns = _arrays(runs, self.objective, self.domains)
        values = self.objective.value(columns)
        seed = seeding.derive(self.seed, "trees")
        trees = fit_trees(weights, values, seed=seed, depth=self.depth, leaf=self.leaf, penalty=self.penalty)
        error = _root_mean_square(trees(weights) - values)
        return lambda points, fidelity: {"objective": (trees(points), np.full(len(points), error))}


@dataclass(frozen=True, eq=False)
class LawLearner:
    """One log-linear law per column of the objective, aggregated afterwards; knows no rung.

    Attributes:
        objective: What is minimized.
        domains: K names.
    """

    objective: Objective
    domains: tuple[str, ...]

    def learn(self, runs: History) -> Model:
        """Fit; standard deviations are root mean square errors of the fit, the same for all."""
        weights, columns = _arrays(runs, self.objective, self.domains)
        names = self.objective.columns
        signs = np.array([-1.0 if name.startswith("score/") else 1.0 for name in names])
        law = loglinear.fit(weights, np.stack([columns[name] for name in names], axis=-1) * signs)

        def means(points: Array) -> dict[str, Array]:
            predicted = dict(zip(names, (law.predict(points) * signs).T, strict=True))
            return predicted | {"objective": self.objective.value(predicted)}

        truth = columns | {"objective": self.objective.value(columns)}
        errors = {name: _root_mean_square(mean - truth[name]) for name, mean in means(weights).items()}
        return lambda points, fidelity: {
            name: (mean, np.full(len(points), errors[name])) for name, mean in means(points).items()
        }


@dataclass(frozen=True, eq=False)
class SurrogateLearner:
    """The predictions of another optimizer's model.

    Attributes:
        optimizer: Asked for predictions only; it remembers its own fits.
        domains: K names.
    """

    optimizer: Optimizer
    domains: tuple[str, ...]

    def learn(self, runs: History) -> Model:
        """Return the optimizer's predictions given these runs alone."""

        def predict(points: Array, fidelity: str) -> Believed:
            mixtures = [Mixture(self.domains, weights) for weights in points]
            prediction = self.optimizer.predict(runs, mixtures, fidelity=fidelity)
            return {name: (prediction.mean[name], prediction.std[name]) for name in prediction.mean}

        return predict


@dataclass(frozen=True, eq=False)
class ScreeningOptimizer(Baseline):
    """Cheap rounds, then target runs in the order a model of the cheap runs predicts.

    The first round is random, later ones are drawn from the best predicted quarter. All
    rounds together cost at most half of the budget (what is left and what was spent),
    and shrink in proportion. Runs that failed are paid and not replaced; pending ones are
    not waited for. The cheapest rung that has candidates is screened; if that is the
    target itself, the order is predicted anew after every run.

    Attributes:
        label: Name.
        learner: The model.
        rounds: Numbers of cheap runs.
    """

    label: str = field(kw_only=True)
    learner: Learner = field(kw_only=True)
    rounds: tuple[int, ...] = field(kw_only=True)
    _memory: OrderedDict[str, Model] = field(default_factory=OrderedDict, init=False, repr=False)

    @property
    def name(self) -> str:
        """The label."""
        return self.label

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return runs of the present round, or target runs once the rounds are over."""
        left = self.left(history)
        return self._screen(history, left, num, budget) or self._harvest(history, left, num, budget)

    def guess(self, history: History) -> Recommendation:
        """Return the target candidate with the best prediction from the cheap runs, if there are any.

        Fitted anew only when their number has grown by a quarter, so that asking after
        every run stays affordable.
        """
        runs = complete_runs(history, self._cheapest, self.objective)
        runs = _first(runs, _checkpoint(len(runs.trials), sum(self.rounds)))
        model = self._model(runs)
        if model is None:
            return super().guess(history)
        targets, fidelity = self.candidates.targets(self.ladder), self.ladder.target.name
        believed = model(targets, fidelity)
        best = int(believed["objective"][0].argmin())
        return Recommendation(
            Mixture(self.constraints.domains, targets[best]),
            fidelity,
            {name: float(mean[best]) for name, (mean, _) in believed.items()},
            {name: float(std[best]) for name, (_, std) in believed.items()},
            None,
            tuple(trial.id for trial in runs.trials),
            self.name,
            f"best prediction among {len(targets)} mixtures, from {len(runs.trials)} runs at {self._cheapest}",
        )

    def predict(self, history: History, mixtures: Sequence[Mixture], *, fidelity: str) -> Prediction:
        """Return what the model of the cheap runs says; without one, mean 0 and standard deviation 1.

        Trees predict the objective only. Trees and laws know no rung: theirs is the level
        of the cheap one.
        """
        points = np.array([m.over(self.constraints.domains).weights for m in mixtures])
        model = self._model(complete_runs(history, self._cheapest, self.objective))
        unknown = {"objective": (np.zeros(len(points)), np.ones(len(points)))}
        believed = model(points, fidelity) if model else unknown
        means, stds = ({name: pair[i] for name, pair in believed.items()} for i in (0, 1))
        return Prediction(fidelity, means, stds)

    def _screen(self, history: History, left: Rows, num: int, budget: float) -> list[Proposal]:
        """Return cheap runs of the present round; none when the rounds are over."""
        rows, ends = self.at(left, self._cheapest), self._ends(left, budget)
        bought = self.candidates.fidelities.count(self._cheapest) - len(rows)
        number = int(np.searchsorted(ends, bought, side="right"))
        if number == len(ends):
            return []
        if number > 0 and (plan := self._plan(history, number, ends)) is not None:
            rows = plan[np.isin(plan, rows)]
        drawn = f"the best predicted {TOP_SHARE:.0%}" if number else "all candidates"
        reason = f"cheap run {bought + 1} of {ends[-1]}, round {number + 1}, drawn from {drawn}"
        return self.buy(rows, min(num, int(ends[number]) - bought), budget=budget, reason=reason)

    def _harvest(self, history: History, left: Rows, num: int, budget: float) -> list[Proposal]:
        """Return target runs, best predicted first; in a random order as long as there is no model."""
        rows = self.at(left, self.ladder.target.name)
        runs = complete_runs(history, self._cheapest, self.objective)
        reason = "next target run in a random order: no cheap run was measured"
        if len(rows) and (model := self._model(runs)):
            rows = self._ranked(rows, model)
            reason = f"best predicted target run left, from {len(runs.trials)} runs at {self._cheapest}"
        return self.buy(rows, num, budget=budget, reason=reason)

    def _plan(self, history: History, number: int, ends: Rows) -> Rows | None:
        """Return all cheap candidates at the start of a round in the order it buys them, or None without a model."""
        before = _until(history, self._cheapest, int(ends[number - 1]))
        rows = self.at(self.left(before), self._cheapest)
        model = self._model(complete_runs(before, self._cheapest, self.objective))
        if model is None:
            return None
        rows = self._ranked(rows, model)
        num = max(int(ends[number] - ends[number - 1]), round(TOP_SHARE * len(rows)))
        rng = seeding.generator(self.seed, "round", number)
        return np.concatenate([rng.permutation(rows[:num]), rows[num:]])

    def _ranked(self, rows: Rows, model: Model) -> Rows:
        """Return rows by predicted objective at the target; ties keep their order."""
        values = model(self.candidates.weights[rows], self.ladder.target.name)["objective"][0]
        return rows[np.argsort(values, kind="stable")]

    def _ends(self, left: Rows, budget: float) -> Rows:
        """Return how many cheap runs are bought when each round ends."""
        prices = self.candidates.prices
        cheap = prices[self.at(np.arange(len(prices)), self._cheapest)]
        total = budget + prices.sum() - prices[left].sum()
        paid = SHARE_OF_BUDGET * total / cheap.mean() + 1e-6  # rounding in sums of prices moves no round
        num = int(min(sum(self.rounds), len(cheap), paid))
        return np.round(num * np.cumsum(self.rounds) / sum(self.rounds)).astype(np.intp)

    @cached_property
    def _cheapest(self) -> str:
        return next(rung.name for rung in self.ladder if rung.name in self.candidates.fidelities)

    def _model(self, runs: History) -> Model | None:
        """Return the model of these runs, remembered by their content; None without a run."""
        if not runs.trials:
            return None
        weights = [trial.mixture.over(self.constraints.domains).weights.tolist() for trial in runs.trials]
        key = fingerprint([weights, [[obs.columns(), dict(obs.noise or {})] for obs in runs.observations]])
        if key not in self._memory:
            self._memory[key] = self.learner.learn(runs)
            while len(self._memory) > _REMEMBERED:
                self._memory.popitem(last=False)
        return self._memory[key]


@dataclass(frozen=True, eq=False)
class PredictedOptimizer(Baseline):
    """Target runs in the order a predictor ranks them, which learns nothing from them.

    Attributes:
        predictor: Knows every column of the objective.

    Raises:
        ConfigError: If it does not.
    """

    predictor: Predictor = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.objective.columns if name not in self.predictor.columns]
        if unknown:
            raise ConfigError(f"mde cannot predict {', '.join(unknown)}: the experts have no scores for it; score them")

    @property
    def name(self) -> str:
        """`mde`."""
        return "mde"

    def propose(self, history: History, num: int, *, budget: float) -> Sequence[Proposal]:
        """Return the target runs with the best prediction."""
        rows = self.at(self.left(history), self.ladder.target.name)
        ranked = rows[np.argsort(self._values(self.candidates.weights[rows]), kind="stable")]
        return self.buy(ranked, num, budget=budget, reason="best predicted target run left")

    def guess(self, history: History) -> Recommendation:
        """Return the target candidate with the best prediction."""
        targets = self.candidates.targets(self.ladder)
        values = self._values(targets)
        mixture = Mixture(self.constraints.domains, targets[int(values.argmin())])
        reason = f"best prediction among {len(targets)} mixtures"
        return Recommendation(
            mixture, self.ladder.target.name, {"objective": float(values.min())}, {}, None, (), self.name, reason
        )

    def _values(self, weights: Array) -> Array:
        columns = self.predictor.predict(weights)
        return self.objective.value(dict(zip(self.predictor.columns, columns.T, strict=True)))


def _arrays(runs: History, objective: Objective, domains: tuple[str, ...]) -> tuple[Array, dict[str, Array]]:
    """Return (N, K) weights and {column: (N,)} of complete runs, the objective's columns."""
    weights = np.array([trial.mixture.over(domains).weights for trial in runs.trials])
    rows = [obs.columns() for obs in runs.observations]
    return weights, {name: np.array([row[name] for row in rows]) for name in objective.columns}


def _root_mean_square(errors: Array) -> float:
    return max(float(np.sqrt(np.mean(errors**2))), np.finfo(np.float64).tiny)


def _first(runs: History, num: int) -> History:
    """Keep the first runs of a history with one observation per trial."""
    return History(runs.trials[:num], runs.observations[:num])


def _until(history: History, fidelity: str, num: int) -> History:
    """Cut a history behind its first `num` search trials at a rung."""
    search = history.of(Role.SEARCH)
    places = [i for i, trial in enumerate(search.trials) if trial.fidelity == fidelity]
    trials = search.trials[: places[num - 1] + 1] if len(places) >= num else search.trials
    ids = {trial.id for trial in trials}
    return History(trials, tuple(obs for obs in search.observations if obs.trial in ids))


def _checkpoint(num: int, full: int) -> int:
    """Return the largest of 1, 2, ..., 8, 10, 12, 15, ... and `full` that is at most `num`."""
    if num >= full or num <= _FEW:
        return num
    return int(_FEW * _GROWTH ** int(np.log(num / _FEW) / np.log(_GROWTH)))
