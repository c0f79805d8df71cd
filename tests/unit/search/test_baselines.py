"""Random and Sobol search, with and without a pool, and what all baselines share."""

import sys
from collections import Counter

import numpy as np
import pytest

from mixopt import Constraints, Fidelity, History, Ladder, Mixture, Objective, Role, Status, Trial
from mixopt.errors import ConfigError
from mixopt.search.baselines import RandomOptimizer, SobolOptimizer, complete_runs, fit_trees
from mixopt.search.pool import Pool
from mixopt.search.problems import SyntheticEvaluator, SyntheticProblem, simulate

LADDER = Ladder(tuple(Fidelity(name, name, 0, 0, 0.0, cost) for name, cost in (("low", 0.05), ("top", 1.0))))
PROBLEM = SyntheticProblem.random(3, 2, seed=0, noise=0.0)
SIMPLEX = Constraints.simplex(PROBLEM.domains)
OBJECTIVE = Objective.parse("mean(loss/*)", ["loss/e0", "loss/e1"])
EVALUATOR = SyntheticEvaluator(PROBLEM, LADDER)


def a_pool(num_low=6, num_top=8, domains=PROBLEM.domains):
    weights = np.random.default_rng(0).dirichlet(np.ones(3), num_low + num_top)
    return Pool(domains, weights, ("low",) * num_low + ("top",) * num_top, np.array([0.05] * num_low + [1.0] * num_top))


def random(**changes):
    settings = {"constraints": SIMPLEX, "ladder": LADDER, "objective": OBJECTIVE, "seed": 0, "pool": a_pool()}
    return RandomOptimizer(**(settings | changes))


def bought(history):
    return Counter((t.mixture, t.fidelity) for t in history.trials)


def test_random_buys_every_target_run_of_a_pool_once_and_then_stops():
    pool, history = a_pool(), simulate(random(), EVALUATOR, budget=100.0, batch=3, seed=0)
    assert bought(history) == Counter((pool.mixture(row), "top") for row in range(6, 14))


def test_the_random_order_depends_on_the_seed_alone():
    first, again, other = (
        [t.mixture for t in simulate(random(seed=seed), EVALUATOR, budget=8.0, batch=batch, seed=0).trials]
        for seed, batch in ((1, 1), (1, 5), (2, 1))
    )
    assert first == again != other


def test_a_pool_changes_nothing_for_those_without_one():
    assert random(pool=None).propose(History(), 2, budget=1.0)[0].mixture not in [
        a_pool().mixture(r) for r in range(14)
    ]
    assert len(random(pool=None).propose(History(), 3, budget=2.0)) == 2


def test_the_best_measured_mixture_of_a_pool_is_recommended():
    history = simulate(random(), EVALUATOR, budget=5.0, batch=1, seed=0)
    values = PROBLEM.objective_value(OBJECTIVE, np.array([t.mixture.weights for t in history.trials]))
    recommendation = random().recommend(history)
    assert recommendation.mixture == history.trials[int(values.argmin())].mixture
    assert recommendation.mean["objective"] == pytest.approx(values.min())


def test_before_the_first_run_a_target_mixture_of_the_pool_is_recommended():
    recommendation = random().recommend(History())
    assert recommendation.mixture in [a_pool().mixture(row) for row in range(6, 14)]
    assert recommendation.support == ()


def test_runs_too_dear_for_the_budget_are_skipped():
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 4)
    pool = Pool(PROBLEM.domains, weights, ("top",) * 4, np.array([3.0, 0.5, 3.0, 0.4]))
    proposals = random(pool=pool).propose(History(), 4, budget=1.0)
    assert {p.mixture for p in proposals} == {pool.mixture(1), pool.mixture(3)}


def test_runs_outside_the_constraints_are_never_bought():
    constraints = Constraints(PROBLEM.domains, np.zeros(3), np.array([0.5, 1.0, 1.0]))
    history = simulate(random(constraints=constraints), EVALUATOR, budget=100.0, batch=2, seed=0)
    assert 0 < len(history.trials) < 8
    assert all(constraints.allows(t.mixture) for t in history.trials)


def test_a_pool_without_a_feasible_run_is_refused():
    weights = np.array([[1.0, 0.0, 0.0]])
    pool = Pool(PROBLEM.domains, weights, ("top",), np.ones(1))
    constraints = Constraints(PROBLEM.domains, np.zeros(3), np.array([0.5, 1.0, 1.0]))
    with pytest.raises(ConfigError, match="satisfies the constraints"):
        random(constraints=constraints, pool=pool).propose(History(), 1, budget=1.0)


def test_a_pool_over_other_domains_is_refused():
    with pytest.raises(ConfigError, match="in this order"):
        random(pool=a_pool(domains=("d2", "d1", "d0")))


def test_sobol_refuses_a_pool():
    with pytest.raises(ConfigError, match="use random"):
        SobolOptimizer(SIMPLEX, LADDER, OBJECTIVE, 0, a_pool())


def test_complete_runs_leave_out_failures_other_rungs_and_validation():
    history = simulate(random(), EVALUATOR, budget=3.0, batch=1, seed=0)
    failed = Trial("f", Role.SEARCH, Mixture.uniform(PROBLEM.domains), "top", 0, "t", status=Status.FAILED)
    check = Trial("v", Role.VALIDATION, Mixture.uniform(PROBLEM.domains), "top", 0, "t", status=Status.DONE)
    whole = History((*history.trials, failed, check), (*history.observations, *EVALUATOR.observe(check)))
    assert complete_runs(whole, "top", OBJECTIVE) == history
    assert complete_runs(whole, "low", OBJECTIVE) == History()
    more = Objective.parse("loss/e9", ["loss/e9"])
    assert complete_runs(whole, "top", more) == History()


def test_trees_learn_a_step_and_repeat_themselves():
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 100)
    values = 2.0 + (weights[:, 0] > 0.3)
    first, second = (fit_trees(weights, values, seed=0)(weights) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.abs(first - values).mean() < 0.1  # a leaf of 20 runs blurs the step itself


def test_too_few_runs_for_two_leaves_give_constant_trees():
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 39)
    predicted = fit_trees(weights, weights[:, 0], seed=0)(weights)
    assert np.allclose(predicted, weights[:, 0].mean())


def test_without_lightgbm_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"pip install mixopt\[baselines\]"):
        fit_trees(np.ones((2, 1)), np.ones(2), seed=0)
