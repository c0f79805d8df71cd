"""A list of runs is trained as it is: in order, replicates included, within the budget."""

import numpy as np
import pytest

from mixopt import ConfigError, Constraints, Fidelity, History, Ladder, Mixture, Objective
from mixopt.search.baselines import ListedOptimizer
from mixopt.search.pool import Pool
from mixopt.search.problems import SyntheticEvaluator, SyntheticProblem, simulate

LADDER = Ladder(tuple(Fidelity(name, name, 0, 0, 0.0, cost) for name, cost in (("low", 0.25), ("top", 1.0))))
PROBLEM = SyntheticProblem(
    domains=("a", "b"), eval_sets=("x",), floors=(2.0,), slopes=((-1.0, 0.3),), bias=0.3, bias_slopes=((0.0, 0.0),),
    noise=0.01,
)  # fmt: skip
OBJECTIVE = Objective.parse("loss/x", ["loss/x"])
ROWS = [((0.5, 0.5), "top"), ((0.9, 0.1), "top"), ((0.5, 0.5), "top"), ((0.2, 0.8), "low")]


def listed(pool=True):
    weights, rungs = np.array([w for w, _ in ROWS]), tuple(rung for _, rung in ROWS)
    prices = np.array([LADDER.price(rung) for rung in rungs])
    rows = Pool(PROBLEM.domains, weights, rungs, prices) if pool else None
    return ListedOptimizer(Constraints.simplex(PROBLEM.domains), LADDER, OBJECTIVE, 0, rows)


def trained(budget, batch):
    history = simulate(
        listed(), SyntheticEvaluator(PROBLEM, LADDER), budget=budget, batch=batch, seed=0
    )  # fmt: skip
    return history, [(tuple(t.mixture.weights.tolist()), t.fidelity) for t in history.trials]


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_every_row_is_trained_once_in_order(batch):
    assert trained(100, batch)[1] == ROWS


def test_equal_rows_are_replicates_with_seeds_of_their_own():
    history, _ = trained(100, 4)
    first, _, again, _ = history.trials
    assert first.mixture == again.mixture
    assert first.seed != again.seed


def test_rows_beyond_the_budget_are_skipped():
    assert trained(2.5, 4)[1] == [ROWS[0], ROWS[1], ROWS[3]]


def test_the_best_measured_mixture_is_recommended():
    history, _ = trained(100, 4)
    assert listed().recommend(history).mixture == Mixture(("a", "b"), (0.9, 0.1))


def test_nothing_is_proposed_when_all_are_trained():
    history, _ = trained(100, 4)
    assert listed().propose(history, 4, budget=100) == []


def test_without_a_list_there_is_nothing_to_train():
    with pytest.raises(ConfigError, match=r"give search\.mixtures"):
        listed(pool=False)
    assert len(listed().propose(History((), ()), 2, budget=9)) == 2
