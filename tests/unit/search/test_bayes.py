"""The optimizer mfbo: its design, its rules and its recommendation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixopt import Constraints, History, Ladder, Mixture, Objective, Role, Status, Trial
from mixopt.errors import ConfigError
from mixopt.search.baselines import RandomOptimizer
from mixopt.search.bayes import MultiFidelityOptimizer
from mixopt.search.choice import Market
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem, finished, simulate

torch.set_num_threads(1)

LADDER = Ladder.from_flops([("low", "m", 10, 100, 1.0), ("mid", "m", 10, 400, 4.0), ("top", "m", 10, 1600, 16.0)], 0.02)
PROBLEM = SyntheticProblem.random(4, 2, seed=3, noise=0.01)
SIMPLEX = Constraints.simplex(PROBLEM.domains)
COLUMNS = [f"loss/{name}" for name in PROBLEM.eval_sets]
MEAN = Objective.parse("mean(loss/*)", COLUMNS)
EVALUATOR = SyntheticEvaluator(PROBLEM, LADDER)


def mfbo(**changes):
    settings = {
        "constraints": SIMPLEX,
        "ladder": LADDER,
        "objective": MEAN,
        "predictor": SyntheticPredictor(PROBLEM),
        "seed": 0,
        "initial": 4,
    }
    return MultiFidelityOptimizer(**(settings | changes))


def measured(num=4, optimizer=None):
    return simulate(optimizer or mfbo(initial=num), EVALUATOR, budget=20.0, batch=num, seed=0, rounds=1)


def regret(recommendation, objective=MEAN, problem=PROBLEM):
    best = problem.optimum(objective, Constraints.simplex(problem.domains))[1]
    return float(problem.objective_value(objective, recommendation.mixture.weights[None])[0]) - best


def test_the_design_starts_with_the_predictors_optimum_at_the_target_and_has_cheap_runs():
    optimizer = mfbo(initial=6)
    design = optimizer.propose(History(), 6, budget=20.0)
    assert design[0].mixture.distance(optimizer.recommend(History()).mixture) < 1e-3
    assert [p.fidelity for p in design] == ["top", "top", "low", "low", "low", "low"]


def test_the_design_does_not_depend_on_how_it_is_split_into_batches():
    whole = mfbo(initial=6).propose(History(), 6, budget=20.0)
    halves = simulate(mfbo(initial=6), EVALUATOR, budget=20.0, batch=3, seed=0, rounds=2)
    assert [t.mixture for t in halves.trials] == [p.mixture for p in whole]


def test_another_model_shape_gets_a_run_at_its_top():
    ladder = Ladder.from_flops(
        [
            ("s1", "small", 5, 50, 1.0),
            ("s2", "small", 5, 100, 2.0),
            ("low", "m", 10, 400, 4.0),
            ("top", "m", 10, 1600, 16.0),
        ],
        0.02,
    )
    design = mfbo(ladder=ladder).propose(History(), 4, budget=20.0)
    assert "s2" in [p.fidelity for p in design]


def test_without_a_predictor_the_design_is_a_block_at_the_cheapest_rung():
    design = mfbo(predictor=None, initial=None).propose(History(), 4, budget=2.0)
    assert {p.fidelity for p in design} == {"low"}
    assert len({p.mixture for p in design}) == 4


def test_a_small_budget_moves_the_design_to_cheaper_rungs():
    design = mfbo().propose(History(), 2, budget=0.3)
    assert [p.fidelity for p in design] == ["mid"]
    assert "budget" in design[0].reason


def test_a_high_price_ends_the_search_and_price_zero_does_not():
    history = measured()
    assert mfbo(price=1e6).propose(history, 1, budget=20.0) == []
    assert len(mfbo(price=0.0).propose(history, 1, budget=20.0)) == 1


def test_a_high_price_does_not_cut_the_initial_design():
    assert len(mfbo(price=1e6).propose(History(), 4, budget=20.0)) == 4


def test_proposals_after_the_design_carry_their_value_per_charge():
    (proposal,) = mfbo().propose(measured(), 1, budget=20.0)
    assert proposal.value > 0
    assert f"{proposal.value:.3g} per run" in proposal.reason


def test_a_cheap_run_of_the_best_mixture_is_continued_when_only_that_is_affordable():
    """Fresh top runs cost 1, continuations from `mid` less than 0.8."""
    ladder = Ladder.from_flops([("mid", "m", 10, 400, 4.0), ("top", "m", 10, 1600, 16.0)], 0.02)
    rng = np.random.default_rng(0)
    trials = [
        Trial(f"s{i}", Role.SEARCH, Mixture(PROBLEM.domains, w), "mid", i, "t")
        for i, w in enumerate(rng.dirichlet(np.ones(4), 30))
    ]
    history = finished(History(), trials, SyntheticEvaluator(PROBLEM, ladder))
    optimizer = mfbo(ladder=ladder, predictor=None)
    (proposal,) = optimizer.propose(history, 1, budget=0.8)
    assert proposal.fidelity in ("mid", "top")
    if proposal.fidelity == "top":
        parent = history.trial(proposal.parent)
        assert (parent.mixture, parent.fidelity) == (proposal.mixture, proposal.parent_fidelity)


def test_continuations_start_only_from_finished_trials_without_a_child():
    history = measured()
    cheap = next(t for t in history.trials if t.fidelity == "low")
    child = replace(
        cheap,
        id="child",
        fidelity="top",
        parent=cheap.id,
        parent_kind="continued",
        parent_fidelity="low",
        status=Status.RUNNING,
    )
    asked = History((*history.trials, child), history.observations)
    for proposal in mfbo().propose(asked, 3, budget=20.0):
        assert proposal.parent not in (cheap.id, "child")


def test_a_failing_local_optimizer_is_named_in_the_proposal(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no step found")

    monkeypatch.setattr(Market, "_optimize", fail)
    proposals = mfbo().propose(measured(), 1, budget=20.0)
    assert proposals[0].proposed_by == "mfbo:pool" or proposals[0].parent is not None
    assert "not refined" in caplog.text


def test_the_recommendation_is_near_the_optimum_and_says_how_sure_it_is():
    recommendation = mfbo().recommend(measured(8))
    assert regret(recommendation) < 0.05
    assert 0 <= recommendation.regret_bound < 0.5
    assert len(recommendation.support) == 8


@pytest.mark.parametrize("expression", ["max(loss/*)", {"loss/e0": 1.0, "loss/e1": 0.2}])
def test_other_objectives_are_followed(expression):
    objective = Objective.parse(expression, COLUMNS)
    optimizer = mfbo(objective=objective)
    history = simulate(optimizer, EVALUATOR, budget=2.5, batch=4, seed=0, rounds=2)
    assert regret(optimizer.recommend(history), objective) < 0.05


def test_a_strong_penalty_pulls_the_recommendation_to_the_reference():
    reference = Mixture(PROBLEM.domains, np.array([0.1, 0.2, 0.3, 0.4]))
    free, bound = mfbo(reference=reference), mfbo(reference=reference, kl_weight=100.0)
    history = measured()
    assert (
        bound.recommend(history).mixture.distance(reference)
        < 0.02
        < free.recommend(history).mixture.distance(reference)
    )


def test_a_penalty_without_a_reference_is_refused():
    with pytest.raises(ConfigError, match="reference"):
        mfbo(kl_weight=1.0)


def test_the_uncertainty_of_the_objective_shrinks_with_target_runs():
    mixtures = [Mixture.uniform(PROBLEM.domains)]
    few, many = (
        mfbo().predict(measured(num, RandomOptimizer(SIMPLEX, LADDER, MEAN, 0)), mixtures, fidelity="top")
        for num in (2, 16)
    )
    assert many.std["objective"][0] < few.std["objective"][0]


@pytest.mark.slow
def test_mfbo_beats_random_at_equal_cost():
    """Simple regret at 2.5 top-rung runs, 5 problems; five wins of five have p < 0.04 (sign test)."""
    wins = []
    for seed in range(5):
        problem = SyntheticProblem.random(4, 2, seed=seed, noise=0.02)
        predictor = SyntheticPredictor(problem, error=0.3, seed=seed)
        evaluator = SyntheticEvaluator(problem, LADDER)
        regrets = []
        for optimizer in (mfbo(predictor=predictor, seed=seed), RandomOptimizer(SIMPLEX, LADDER, MEAN, seed)):
            history = simulate(optimizer, evaluator, budget=2.5, batch=3, seed=seed)
            regrets.append(regret(optimizer.recommend(history), MEAN, problem))
        wins.append(regrets[0] < regrets[1])
    assert all(wins)
