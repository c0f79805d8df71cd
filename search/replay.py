"""Replays: an optimizer buys finished runs of a table one by one, and every purchase is charged.

It may buy any row not bought yet, at any rung, pays the row's cost and sees the row's
columns; nothing else is revealed. Regret is measured on the target rung's rows alone:
the table is the truth. One optimizer, objective and seed at a time; caching and
statistics over seeds are in `experiments/benchmarks.py`.

N rows, D decisions. Costs, prices and budgets are in runs of the target rung.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mixopt.constraints import Constraints
from mixopt.errors import ConfigError
from mixopt.fidelity import Ladder
from mixopt.mixture import Array, Mixture
from mixopt.objective import Objective
from mixopt.observation import History
from mixopt.protocols import Optimizer, Predictor
from mixopt.runs_table import RunsTable

from .catalog import Task, make
from .pool import Pool

BUDGET_SPENT, OPTIMIZER_STOPPED, POOL_EMPTY, CAP_REACHED, BEST_FOUND = "budget", "optimizer", "pool", "cap", "best"
_SLACK = 1e-9  # of a budget, so that rounding in sums of prices forbids no purchase


@dataclass(frozen=True, eq=False)
class Case:
    """A table of finished runs, its target rung, and what is minimized there.

    Attributes:
        table: N runs.
        target: Name of the rung that is searched.
        objective: Over columns of the table.

    Raises:
        ConfigError: If there is nothing to search: one row, an unknown target, or no
            target row with a finite objective.
    """

    table: RunsTable
    target: str
    objective: Objective

    def __post_init__(self) -> None:
        if len(self.table) < 2:
            raise ConfigError(f"a replay needs at least 2 runs, got {len(self.table)}: there is nothing to search")
        self.table.ladder(self.target)
        if not np.isfinite(self.target_values).any():
            raise ConfigError(
                f"no run at {self.target} has a finite objective {self.objective.expression}; "
                "choose another target or objective"
            )

    @classmethod
    def of(cls, table: RunsTable, target: str, expression: str | Mapping[str, float]) -> Case:
        """Build a case from an objective as a user writes it."""
        return cls(table, target, Objective.parse(expression, list(table.columns)))

    @cached_property
    def ladder(self) -> Ladder:
        """Rungs of the table, the target last."""
        return self.table.ladder(self.target)

    @cached_property
    def pool(self) -> Pool:
        """Every row, priced by its own cost over the mean cost of a target run."""
        prices = self.table.costs / self.table.costs[self._at_target].mean()
        return Pool(self.table.domains, self.table.weights, self.table.fidelities, prices)

    @cached_property
    def values(self) -> Array:
        """(N,) objective of every row, NaN where the run failed."""
        with np.errstate(invalid="ignore", over="ignore"):
            values = self.objective.value(self.table.columns)
        return np.where(np.isfinite(values), values, np.nan)

    @cached_property
    def target_values(self) -> Array:
        """Objectives of the target rows, NaN where the run failed."""
        return np.asarray(self.values[self._at_target])

    @cached_property
    def best(self) -> float:
        """Smallest objective of a target row."""
        return float(np.nanmin(self.target_values))

    @cached_property
    def initial_regret(self) -> float:
        """Regret of a target row drawn at random: their mean objective minus the best."""
        finite = self.target_values[np.isfinite(self.target_values)]
        return float(finite.mean() - self.best) if finite.max() > self.best else 0.0

    def task(self, seed: int, predictor: Predictor | None = None) -> Task:
        """Return what an optimizer is told: the pool without any result, and what predicts it."""
        return Task(Constraints.simplex(self.table.domains), self.ladder, self.objective, seed, self.pool, predictor)

    def recommendation_regret(self, mixture: Mixture) -> float:
        """Return the mean objective of a mixture's target rows minus the best, at least 0.

        A mixture whose target rows all failed counts as the worst target row.
        """
        same = self._at_target & np.all(self.table.weights == mixture.over(self.table.domains).weights, axis=1)
        assert same.any(), f"recommended mixture {mixture.as_dict()} has no row at {self.target}"
        values = self.values[same][np.isfinite(self.values[same])]
        return max(0.0, float((values.mean() if len(values) else np.nanmax(self.target_values)) - self.best))

    @cached_property
    def _at_target(self) -> Any:
        return np.array(self.table.fidelities) == self.target


@dataclass(frozen=True)
class Decision:
    """One purchase, and where the search stands once it is paid.

    Attributes:
        step: From 1.
        run: Id of the row bought.
        fidelity: Its rung.
        cost: Its price.
        total_cost: Price of all rows so far.
        value: Its objective at its rung, or None where the run failed.
        regret: Smallest objective measured at the target minus the best of the table;
            the initial regret before the first target run.
        recommendation_regret: Regret of the mixture that is recommended now.
        seconds: CPU seconds of this process for deciding and recommending.
    """

    step: int
    run: str
    fidelity: str
    cost: float
    total_cost: float
    value: float | None
    regret: float
    recommendation_regret: float
    seconds: float


@dataclass(frozen=True)
class Score:
    """A regret curve in numbers.

    Attributes:
        cost_to_best: Cost when the best target row was measured, or the budget if it was not.
        success: Whether it was measured.
        area: Mean over the budget of regret / initial regret; 0 if there is none to begin with.
        regret: Regret of the measured best when the budget is spent.
    """

    cost_to_best: float
    success: bool
    area: float
    regret: float


@dataclass(frozen=True)
class Replay:
    """One optimizer on one case with one seed.

    Attributes:
        decisions: Purchases in order.
        score: The regret curve in numbers.
        recommendation_regret: Regret of the mixture recommended at the end.
        runs_bought: {rung: number of runs}, every rung of the ladder.
        stopped: Why it ended: `budget` (nothing left is affordable), `optimizer` (it
            proposed nothing), `pool` (nothing is left), `cap` (number of decisions) or
            `best` (the best target row is measured, and no more was asked for).
    """

    decisions: tuple[Decision, ...]
    score: Score
    recommendation_regret: float
    runs_bought: Mapping[str, int]
    stopped: str

    @property
    def seconds_per_decision(self) -> float:
        """CPU seconds per decision, 0 without decisions."""
        return sum(d.seconds for d in self.decisions) / max(len(self.decisions), 1)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "decisions": [asdict(decision) for decision in self.decisions]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Replay:
        """Rebuild a replay from `to_json`."""
        decisions = tuple(Decision(**item) for item in data["decisions"])
        return cls(**{**data, "decisions": decisions, "score": Score(**data["score"])})


def score(costs: Sequence[float], regrets: Sequence[float | None], *, initial: float, budget: float) -> Score:
    """Turn a regret curve into numbers.

    Regret is a step function of the cost: `initial` until the first target run is paid,
    then what is known until the next purchase is paid, and constant to the budget at last.

    Args:
        costs: (D,) cost spent after each purchase, ascending, at most the budget.
        regrets: (D,) regret of the measured best after each purchase, None before the first target run.
        initial: Regret before the first target run, >= 0.
        budget: Length of the curve, > 0.
    """
    levels = [initial, *(initial if regret is None else regret for regret in regrets)]
    lengths = np.diff([0.0, *np.minimum(costs, budget), budget])
    reached = next((float(cost) for cost, regret in zip(costs, regrets, strict=True) if regret == 0), None)
    return Score(
        cost_to_best=budget if reached is None else min(reached, budget),
        success=reached is not None,
        area=float(np.dot(levels, lengths) / (budget * initial)) if initial > 0 else 0.0,
        regret=float(levels[-1]),
    )


def replay(
    case: Case,
    optimizer: str,
    *,
    seed: int,
    budget: float,
    max_decisions: int | None = None,
    until_best: bool = False,
    predictor: Predictor | None = None,
) -> Replay:
    """Let the optimizer of this name search a case.

    Args:
        case: What is searched.
        optimizer: A name of the catalog.
        seed: Root of the optimizer's randomness.
        budget: Runs of the target rung, > 0.
        max_decisions: Purchases after which the replay ends as if the optimizer had stopped, or None.
        until_best: Whether to end once the best target row is measured: its regret stays 0.
        predictor: For optimizers that use one, or None; what it cost is not charged.

    Raises:
        ConfigError: If the optimizer is unknown or the budget pays no row.
    """
    with _one_torch_thread():
        made = make(optimizer, case.task(seed, predictor))
        return play(made, case, budget=budget, max_decisions=max_decisions, until_best=until_best)


def play(
    optimizer: Optimizer, case: Case, *, budget: float, max_decisions: int | None = None, until_best: bool = False
) -> Replay:
    """Let any optimizer search a case; arguments as in `replay`.

    Raises:
        ConfigError: If the budget pays no row.
    """
    cheapest = float(case.pool.prices.min())
    if not (math.isfinite(budget) and budget >= cheapest):
        raise ConfigError(
            f"the budget must be finite and pay the cheapest run ({cheapest:.4g} runs of {case.target}), "
            f"got {budget:g}; raise it"
        )
    book, stopped = _Book(case), ""
    while not (stopped := book.end(budget, max_decisions, until_best)):
        start = time.process_time()
        proposals = optimizer.propose(book.history, 1, budget=book.left(budget))
        if not proposals:
            stopped = OPTIMIZER_STOPPED
            break
        deciding = time.process_time() - start
        row = book.buy(proposals[0].mixture, proposals[0].fidelity)
        assert book.left(budget) >= 0, f"bought {case.table.runs[row]} beyond the budget: {book.spent:g} of {budget:g}"
        start = time.process_time()
        mixture = optimizer.recommend(book.history).mixture
        book.enter(row, mixture, deciding + time.process_time() - start)
    return book.close(optimizer, budget, stopped)


class _Book:
    """What was bought so far, in order, and what is left.

    Attributes:
        history: What the optimizer may know.
        spent: Price of all rows bought.
    """

    def __init__(self, case: Case) -> None:
        self.history, self.spent = History(), 0.0
        self._case, self._rows, self._lowest = case, list[int](), math.inf
        self._decisions, self._regrets = list[Decision](), list[float | None]()
        self._left: dict[tuple[Mixture, str], list[int]] = {}
        for row in reversed(range(len(case.pool))):
            self._left.setdefault((case.pool.mixture(row), case.pool.fidelities[row]), []).append(row)

    def left(self, budget: float) -> float:
        """Return the part of the budget that is not spent, with a hair of slack."""
        return budget - self.spent + _SLACK

    def end(self, budget: float, max_decisions: int | None, until_best: bool) -> str:
        """Return why no more is bought, or nothing."""
        if len(self._rows) == len(self._case.pool):
            return POOL_EMPTY
        if until_best and self._regrets and self._regrets[-1] == 0:
            return BEST_FOUND
        if np.delete(self._case.pool.prices, self._rows).min() > self.left(budget):
            return BUDGET_SPENT
        return CAP_REACHED if len(self._rows) == max_decisions else ""

    def buy(self, mixture: Mixture, fidelity: str) -> int:
        """Pay the first row of this mixture and rung that is not bought yet, and reveal it."""
        table, rows = self._case.table, self._left.get((mixture.over(self._case.table.domains), fidelity))
        assert rows, f"proposed {mixture.as_dict()} at {fidelity}, which is not in the pool or bought already"
        row = rows.pop()
        self._rows.append(row)
        self.spent = math.fsum(self._case.pool.prices[self._rows])
        one = table.history(np.array([row]))
        self.history = History(self.history.trials + one.trials, self.history.observations + one.observations)
        return row

    def enter(self, row: int, recommended: Mixture, seconds: float) -> None:
        """Enter a purchase with the recommendation that follows it."""
        case, table, value = self._case, self._case.table, float(self._case.values[row])
        if table.fidelities[row] == case.target and not math.isnan(value):
            self._lowest = min(self._lowest, value)
        regret = self._lowest - case.best if math.isfinite(self._lowest) else None
        self._regrets.append(regret)
        self._decisions.append(
            Decision(
                step=len(self._rows),
                run=table.runs[row],
                fidelity=table.fidelities[row],
                cost=float(case.pool.prices[row]),
                total_cost=self.spent,
                value=None if math.isnan(value) else value,
                regret=case.initial_regret if regret is None else regret,
                recommendation_regret=case.recommendation_regret(recommended),
                seconds=seconds,
            )
        )

    def close(self, optimizer: Optimizer, budget: float, stopped: str) -> Replay:
        """Return the finished replay."""
        case, decisions = self._case, tuple(self._decisions)
        costs, bought = [d.total_cost for d in decisions], [d.fidelity for d in decisions]
        final = (
            decisions[-1].recommendation_regret
            if decisions
            else case.recommendation_regret(optimizer.recommend(self.history).mixture)
        )
        return Replay(
            decisions,
            score(costs, self._regrets, initial=case.initial_regret, budget=budget),
            final,
            {rung.name: bought.count(rung.name) for rung in case.ladder},
            stopped,
        )


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Keep torch on one thread inside the block: replays run side by side."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
