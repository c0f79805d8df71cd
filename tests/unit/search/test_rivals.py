"""Published methods under our protocol: what each buys, and the rules all of them keep."""

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from mixopt import Constraints, Fidelity, History, Ladder, Mixture, Objective, Observation, Role, Status, Trial
from mixopt.errors import ConfigError
from mixopt.search import botorch_rivals, catalog
from mixopt.search.catalog import Task
from mixopt.search.pool import Pool
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem, finished, simulate
from mixopt.search.rivals import ScreeningOptimizer, SurrogateLearner

torch.set_num_threads(1)

SCREENING = ("regmix", "regmix-128", "olmix", "climb")
PROCESSES = ("gp-ei", "admire")
RIVALS = ("random", "regmix", "olmix", "climb", *PROCESSES)
LADDER = Ladder(tuple(Fidelity(name, name, 0, 0, 0.0, cost) for name, cost in (("low", 0.01), ("top", 1.0))))
ONE_RUNG = Ladder(LADDER.rungs[1:])
PROBLEM = SyntheticProblem(
    domains=("a", "b", "c"),
    eval_sets=("x", "y"),
    floors=(2.0, 2.5),
    slopes=((-1.5, 0.3, 0.2), (-1.0, 0.4, -0.1)),  # `a` helps both sets, so the most of it is best
    bias=0.3,
    bias_slopes=((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    noise=0.0,
)
OBJECTIVE = Objective.parse("mean(loss/*)", ["loss/x", "loss/y"])
TARGETS = np.array([[a, (1 - a) * 0.6, (1 - a) * 0.4] for a in (0.30, 0.05, 0.85, 0.15, 0.55, 0.20, 0.40, 0.10)])
BEST = Mixture(PROBLEM.domains, TARGETS[2])


def a_pool(num_low=30, targets=TARGETS):
    """Cheap runs, one of them twice, and target runs of other mixtures."""
    low = np.random.default_rng(0).dirichlet(np.ones(3), num_low)
    weights = np.concatenate([low, low[-1:], targets])
    names = ("low",) * (num_low + 1) + ("top",) * len(targets)
    return Pool(PROBLEM.domains, weights, names, np.array([LADDER[name].cost for name in names]))


def a_task(**changes):
    task = Task(Constraints.simplex(PROBLEM.domains), LADDER, OBJECTIVE, 0, a_pool())
    return replace(task, **changes)


def play(name, *, budget=4.0, batch=4, rounds=1000, problem=PROBLEM, **changes):
    task = a_task(**changes)
    return simulate(
        catalog.make(name, task),
        SyntheticEvaluator(problem, task.ladder),
        budget=budget,
        batch=batch,
        seed=0,
        rounds=rounds,
    )


@cache
def played(name):
    """Two rounds of four runs, which for the processes include their random start."""
    return play(name, rounds=2)


@cache
def one_by_one(name):
    """Eight single runs."""
    return play(name, budget=8.0, batch=1, rounds=8)


def as_pending(proposals, start):
    return tuple(
        Trial(f"search-{start + i:03d}", Role.SEARCH, p.mixture, p.fidelity, i, p.proposed_by)
        for i, p in enumerate(proposals)
    )


def keys(history):
    return Counter((t.mixture, t.fidelity) for t in history.trials)


# --- rules of the protocol ---------------------------------------------------


@pytest.mark.parametrize("name", sorted({*catalog.names()} - catalog.NEED_PREDICTOR))
def test_the_catalog_makes_an_optimizer_of_each_name(name):
    pool = None if name == "sobol" else a_pool()
    assert catalog.make(name, a_task(pool=pool)).name == name


@pytest.mark.parametrize("name", sorted(catalog.NEED_PREDICTOR))
def test_what_needs_a_predictor_says_so(name):
    with pytest.raises(ConfigError, match="give --scores"):
        catalog.make(name, a_task())
    assert catalog.make(name, a_task(predictor=SyntheticPredictor(PROBLEM, error=0.0))).name in ("mfbo", "mde")


def test_the_predictors_order_is_bought_whatever_it_shows():
    predictor = SyntheticPredictor(PROBLEM, error=0.0)
    history = play("mde", budget=3.0, batch=1, predictor=predictor)
    values = OBJECTIVE.value(dict(zip(predictor.columns, predictor.predict(TARGETS).T, strict=True)))
    bought = [tuple(trial.mixture.weights) for trial in history.trials]
    assert bought == [tuple(TARGETS[i]) for i in np.argsort(values)[:3]]


def test_before_any_run_the_best_predicted_candidate_is_recommended():
    made = catalog.make("mde", a_task(predictor=SyntheticPredictor(PROBLEM, error=0.0)))
    assert made.recommend(History()).mixture == BEST


def test_a_predictor_that_does_not_know_the_objective_is_refused():
    other = Objective.parse("loss/z", ["loss/z"])
    with pytest.raises(ConfigError, match="cannot predict loss/z"):
        catalog.make("mde", a_task(objective=other, predictor=SyntheticPredictor(PROBLEM)))


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match="climb"):
        catalog.make("best", a_task())


@pytest.mark.parametrize("name", RIVALS)
def test_answers_depend_on_history_and_seed_alone(name):
    history, asked = played(name), catalog.make(name, a_task())
    torch.manual_seed(1)
    first = asked.propose(history, 2, budget=3.0), asked.recommend(history)
    asked.recommend(History())
    torch.manual_seed(2)
    fresh = catalog.make(name, a_task())
    assert (asked.propose(history, 2, budget=3.0), asked.recommend(history)) == first
    assert (fresh.propose(history, 2, budget=3.0), fresh.recommend(history)) == first


@pytest.mark.parametrize("name", RIVALS)
def test_another_seed_begins_with_other_runs(name):
    first, other = (catalog.make(name, a_task(seed=seed)).propose(History(), 3, budget=4.0) for seed in (0, 1))
    assert first != other


@pytest.mark.parametrize("name", RIVALS)
def test_no_run_of_the_pool_is_bought_twice(name):
    pool = a_pool(num_low=8)
    offered = Counter((pool.mixture(row), pool.fidelities[row]) for row in range(len(pool)))
    history = play(name, budget=100.0, batch=7, pool=pool)
    assert keys(history) <= offered
    targets = sum(t.fidelity == "top" for t in history.trials)
    assert targets == len(TARGETS)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("budget", [0.035, 1.5])
def test_the_budget_is_kept(name, budget):
    assert play(name, budget=budget, rounds=4).spent(LADDER) <= budget + 1e-9


@pytest.mark.parametrize("name", RIVALS)
def test_nothing_is_proposed_when_nothing_is_affordable(name):
    optimizer = catalog.make(name, a_task())
    assert list(optimizer.propose(History(), 3, budget=0.005)) == []
    assert list(optimizer.propose(played(name), 3, budget=0.005)) == []


@pytest.mark.parametrize("name", RIVALS)
def test_pending_runs_are_not_proposed_again(name):
    optimizer, history = catalog.make(name, a_task()), played(name)
    first = optimizer.propose(history, 2, budget=3.0)
    asked = History(history.trials + as_pending(first, len(history.trials)), history.observations)
    second = optimizer.propose(asked, 2, budget=3.0)
    offered = Counter((a_pool().mixture(row), a_pool().fidelities[row]) for row in range(len(a_pool())))
    assert second
    assert keys(asked) + Counter((p.mixture, p.fidelity) for p in second) <= offered


@pytest.mark.parametrize("name", RIVALS)
def test_runs_that_failed_are_left_behind(name):
    optimizer, history = catalog.make(name, a_task()), History()
    for step in range(6):
        (proposal,) = optimizer.propose(history, 1, budget=6.0)
        (trial,) = as_pending([proposal], step)
        if step % 2:
            history = finished(history, [trial], SyntheticEvaluator(PROBLEM, LADDER))
        else:
            lost = trial.with_status(Status.FAILED if step % 4 else Status.ABANDONED)
            history = History((*history.trials, lost), history.observations)
    assert max(keys(history).values()) <= 2
    assert any(np.array_equal(optimizer.recommend(history).mixture.weights, target) for target in TARGETS)


@pytest.mark.parametrize("name", RIVALS)
def test_when_every_run_fails_the_search_still_goes_on(name):
    optimizer = catalog.make(name, a_task())
    lost = tuple(t.with_status(Status.FAILED) for t in as_pending(optimizer.propose(History(), 4, budget=4.0), 0))
    assert optimizer.propose(History(lost), 1, budget=3.0)
    assert optimizer.recommend(History(lost)).support == ()


@pytest.mark.parametrize("name", RIVALS)
def test_a_target_mixture_of_the_pool_is_recommended_at_every_stage(name):
    optimizer, history = catalog.make(name, a_task()), played(name)
    for known in (History(), history):
        recommendation = optimizer.recommend(known)
        assert any(np.array_equal(recommendation.mixture.weights, target) for target in TARGETS)
        assert np.isfinite([*recommendation.mean.values(), *recommendation.std.values()]).all()


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("num_domains", [1, 64])
def test_without_a_pool_feasible_mixtures_are_proposed(name, num_domains):
    problem = SyntheticProblem.random(num_domains, 2, seed=0, noise=0.01)
    upper = np.array([1.0] if num_domains == 1 else [0.2] + [1.0] * 63)
    constraints = Constraints(problem.domains, np.zeros(num_domains), upper)
    objective = Objective.parse("mean(loss/*)", ["loss/e0", "loss/e1"])
    changes = {"constraints": constraints, "objective": objective, "pool": None}
    history = play(name, budget=4.0, rounds=2, problem=problem, **changes)
    recommendation = catalog.make(name, a_task(**changes)).recommend(history)
    assert history.trials
    assert all(constraints.allows(t.mixture) for t in history.trials)
    assert constraints.allows(recommendation.mixture)


@pytest.mark.parametrize("name", RIVALS)
def test_one_rung_is_enough(name):
    pool = a_pool()
    only = Pool(pool.domains, pool.weights, ("top",) * len(pool), np.ones(len(pool)))
    history = play(name, budget=5.0, batch=3, ladder=ONE_RUNG, pool=only)
    assert len(history.trials) == 5


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("expression", ["max(loss/*)", {"score/quiz": 1.0, "loss/x": 0.1}])
def test_maxima_weights_and_scores_are_followed(name, expression):
    """Scores rise where losses fall: both prefer the domain `a`."""
    objective = Objective.parse(expression, ["loss/x", "loss/y", "score/quiz"])
    optimizer = catalog.make(name, a_task(objective=objective))
    trials, observations = [], []
    for row, name_of_rung in enumerate(a_pool().fidelities):
        mixture = a_pool().mixture(row)
        x, y = PROBLEM.losses(mixture.weights[None])[0]
        trials.append(Trial(f"t{row}", Role.SEARCH, mixture, name_of_rung, 0, "t", status=Status.DONE))
        observations.append(Observation(f"t{row}", name_of_rung, {"x": x, "y": y}, {"quiz": 1 - x / 4}))
    assert optimizer.recommend(History(tuple(trials), tuple(observations))).mixture == BEST


@pytest.mark.parametrize("name", RIVALS[1:])
def test_predictions_are_finite_and_those_of_the_objective_are_there(name):
    optimizer = catalog.make(name, a_task())
    mixtures = [BEST, Mixture.uniform(PROBLEM.domains)]
    for history in (History(), played(name)):
        prediction = optimizer.predict(history, mixtures, fidelity="top")
        assert prediction.mean["objective"].shape == (2,)
        assert all(np.isfinite(v).all() for v in prediction.mean.values())
        assert all((v > 0).all() for v in prediction.std.values())


# --- screening ---------------------------------------------------------------


@pytest.mark.parametrize("name", SCREENING)
def test_the_planted_best_is_the_first_target_run(name):
    history = play(name, budget=8.0, pool=a_pool(num_low=150))
    first = next(t for t in history.trials if t.fidelity == "top")
    assert first.mixture == BEST


def test_the_law_orders_all_target_runs():
    history = play("olmix", budget=20.0)
    order = [t.mixture.weights[0] for t in history.trials if t.fidelity == "top"]
    assert order == sorted(TARGETS[:, 0], reverse=True)


def test_the_best_prediction_is_recommended_before_a_target_run_and_the_best_measurement_afterwards():
    optimizer, history = catalog.make("olmix", a_task()), play("olmix", rounds=3)
    assert {t.fidelity for t in history.trials} == {"low"}
    assert optimizer.recommend(history).mixture == BEST
    worse = Trial("w", Role.SEARCH, Mixture(PROBLEM.domains, TARGETS[0]), "top", 0, "t")
    measured = finished(history, [worse], SyntheticEvaluator(PROBLEM, LADDER))
    assert optimizer.recommend(measured).mixture == worse.mixture


@pytest.mark.parametrize(("name", "num"), [("regmix", 31), ("olmix", 12), ("climb", 31)])
def test_cheap_runs_are_those_of_the_paper_or_all_there_are(name, num):
    history = play(name, budget=20.0)
    assert sum(t.fidelity == "low" for t in history.trials) == num


@pytest.mark.parametrize("name", SCREENING)
def test_cheap_runs_take_at_most_half_of_the_budget(name):
    history = play(name, budget=0.2, batch=3)
    assert sum(t.fidelity == "low" for t in history.trials) == 10


@pytest.mark.parametrize("name", SCREENING)
def test_what_is_bought_does_not_depend_on_how_it_is_split_into_batches(name):
    one, seven = ([(t.mixture, t.fidelity) for t in play(name, batch=batch).trials] for batch in (1, 7))
    assert one == seven


def test_a_batch_never_crosses_from_one_round_into_the_next():
    optimizer, history, sizes = catalog.make("climb", a_task(pool=a_pool(num_low=13))), History(), []
    while history.spent(LADDER) < 1:
        proposals = optimizer.propose(history, 100, budget=2.0 - history.spent(LADDER))
        sizes.append(len(proposals))
        trials = as_pending(proposals, len(history.trials))
        history = finished(history, trials, SyntheticEvaluator(PROBLEM, LADDER))
    assert sizes == [8, 4, 2, 1]  # fourteen cheap runs as 4:2:1, then the one target run that is paid


def test_later_rounds_draw_from_the_best_predicted_candidates():
    """After 64 random runs, 48 drawn from the best predicted quarter: all have more of the good domain than is usual."""
    history = play("climb", budget=20.0, batch=100, pool=a_pool(num_low=400), rounds=3)
    shares = np.array([t.mixture.weights[0] for t in history.trials])
    assert len(shares) == 112
    assert shares[64:].min() > np.median(shares[:64])


def test_trees_predict_the_objective_and_laws_every_column_of_it():
    mixtures = [BEST]
    trees, law = (
        catalog.make(name, a_task()).predict(play(name, rounds=4), mixtures, fidelity="top")
        for name in ("regmix", "olmix")
    )
    assert set(trees.mean) == {"objective"}
    assert set(law.mean) == {"objective", "loss/x", "loss/y"}


def test_any_optimizer_can_lend_its_model():
    """With the law of Olmix as the lent model the order is that of Olmix."""
    task = a_task()
    learner = SurrogateLearner(catalog.make("olmix", task), task.constraints.domains)
    lent = ScreeningOptimizer(**task.searched, label="lent", learner=learner, rounds=(12,))
    history = simulate(lent, SyntheticEvaluator(PROBLEM, LADDER), budget=4.0, batch=4, seed=0)
    assert [t.mixture for t in history.trials] == [t.mixture for t in play("olmix").trials]


def test_two_steps_with_our_own_surrogate_find_the_planted_best_first():
    history = play("two-step", budget=1.5, batch=100)
    assert [t.mixture for t in history.trials if t.fidelity == "top"] == [BEST]


# --- Gaussian processes ------------------------------------------------------


def test_expected_improvement_begins_with_three_random_target_runs():
    optimizer = catalog.make("gp-ei", a_task())
    first = optimizer.propose(History(), 10, budget=10.0)
    assert [p.fidelity for p in first] == ["top"] * 3
    assert all("random" in p.reason for p in first)


def test_entropy_search_begins_with_one_random_cheap_run():
    (first,) = catalog.make("admire", a_task()).propose(History(), 10, budget=10.0)
    assert first.fidelity == "low"


@pytest.mark.parametrize("name", PROCESSES)
def test_the_planted_best_is_recommended_with_few_target_runs(name):
    assert catalog.make(name, a_task()).recommend(one_by_one(name)).mixture == BEST


def test_cheap_runs_are_preferred_as_long_as_they_teach_more_per_price():
    assert sum(t.fidelity == "low" for t in one_by_one("admire").trials) >= 6


@pytest.mark.parametrize("name", PROCESSES)
def test_a_fit_that_fails_is_named_in_the_proposal(name, monkeypatch, caplog):
    def fail(*_):
        raise botorch_rivals.ModelFittingError("no optimum")

    monkeypatch.setattr(botorch_rivals, "fit_gpytorch_mll", fail)
    (proposal,) = catalog.make(name, a_task()).propose(played(name), 1, budget=3.0)
    assert proposal.proposed_by == f"{name}:unfitted"
    assert "fit failed" in caplog.text
