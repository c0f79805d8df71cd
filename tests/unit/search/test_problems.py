"""The synthetic problem: its optimum, its evaluator and its predictor."""

from pathlib import Path

import numpy as np
import pytest

from mixopt import Constraints, Group, Ladder, Mixture, Objective, Role, Status, Trial
from mixopt.protocols import Job
from mixopt.search import simplex
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem

LADDER = Ladder.from_flops([("low", "m", 10, 100, 1.0), ("mid", "m", 10, 400, 4.0), ("top", "m", 10, 1600, 16.0)], 0.02)
PROBLEM = SyntheticProblem.random(4, 3, seed=0)
EVALUATOR = SyntheticEvaluator(PROBLEM, LADDER)


def a_trial(fidelity="top", seed=1, parent_fidelity=None):
    mixture = Mixture.uniform(PROBLEM.domains)
    parent = "p" if parent_fidelity else None
    return Trial("t", Role.SEARCH, mixture, fidelity, seed, "test", parent=parent, parent_fidelity=parent_fidelity)


def objective(expression):
    return Objective.parse(expression, [f"loss/{name}" for name in PROBLEM.eval_sets])


@pytest.mark.parametrize("expression", ["mean(loss/*)", "max(loss/*)", "loss/e1"])
@pytest.mark.parametrize("grouped", [False, True])
def test_no_sample_is_better_than_the_optimum(expression, grouped):
    constraints = Constraints.simplex(PROBLEM.domains)
    if grouped:
        constraints = Constraints(PROBLEM.domains, np.zeros(4), np.full(4, 0.6), (Group(("d0", "d1"), 0.1, 0.3),))
    mixture, value = PROBLEM.optimum(objective(expression), constraints)
    points = simplex.sample(constraints, 5000, np.random.default_rng(0))
    assert constraints.allows(mixture)
    assert PROBLEM.objective_value(objective(expression), points).min() >= value - 1e-6


def test_a_trial_is_observed_at_every_rung_it_passes_and_charged_its_price():
    (result,) = EVALUATOR.evaluate(Job("x", (a_trial(),)), Path())
    assert result.status is Status.DONE
    assert [o.fidelity for o in result.observations] == ["low", "mid", "top"]
    assert sum(o.cost for o in result.observations) == pytest.approx(LADDER.price("top"))


def test_a_continuation_shows_what_the_whole_run_would_have_shown():
    whole = EVALUATOR.observe(a_trial())
    rest = EVALUATOR.observe(a_trial(parent_fidelity="low"))
    assert [o.losses for o in rest] == [o.losses for o in whole[1:]]
    assert sum(o.cost for o in rest) == pytest.approx(LADDER.price("top", start="low"))


def test_the_fingerprint_follows_seed_mixture_and_problem():
    prints = {
        EVALUATOR.fingerprint([a_trial()], "train"),
        EVALUATOR.fingerprint([a_trial(seed=2)], "train"),
        EVALUATOR.fingerprint([a_trial("mid")], "train"),
        SyntheticEvaluator(SyntheticProblem.random(4, 3, seed=1), LADDER).fingerprint([a_trial()], "train"),
    }
    assert len(prints) == 4
    assert EVALUATOR.fingerprint([a_trial()], "train") in prints


def test_the_predictors_gradient_matches_finite_differences():
    predictor, w, h = SyntheticPredictor(PROBLEM), np.array([[0.1, 0.2, 0.3, 0.4]]), 1e-6
    for k in range(4):
        step = np.eye(4)[k] * h
        numeric = (predictor.predict(w + step) - predictor.predict(w - step)) / (2 * h)
        assert np.allclose(predictor.gradient(w)[..., k], numeric, atol=1e-6)


def test_seed_noise_has_the_stated_size():
    values = np.array([PROBLEM.measured(a_trial(seed=s), "top", 1.0) for s in range(400)])
    assert np.allclose(values.std(0), PROBLEM.noise * np.hypot(1, 0.3), rtol=0.12)  # 400 draws: relative error 3.5%
