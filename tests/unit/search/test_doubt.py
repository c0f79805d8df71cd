"""Doubt in the predictor: who must prove what, and what a surrogate does that has dropped it."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from mixopt import Constraints, History, Ladder, Mixture, Objective, Role, Trial
from mixopt.search import doubt, gp, simplex
from mixopt.search.bayes import MultiFidelityOptimizer
from mixopt.search.encoding import Encoder, Evidence
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem, finished
from mixopt.search.surrogate import Surrogate

torch.set_num_threads(1)

LADDER = Ladder.from_flops([("top", "m", 10, 1600, 16.0)], 0.02)
PROBLEM = SyntheticProblem.random(3, 2, seed=2, noise=0.02)
SIMPLEX = Constraints.simplex(PROBLEM.domains)
COLUMNS = ("loss/e0", "loss/e1")
MEAN = Objective.parse("mean(loss/*)", COLUMNS)
RIGHT, MISLEADING = SyntheticPredictor(PROBLEM), SyntheticPredictor(PROBLEM, stretch=-0.8)


def runs(num, *, seed=0, experts=False, problem=PROBLEM):
    weights = simplex.sample(SIMPLEX, num, np.random.default_rng(seed))
    trials = [
        Trial(f"search-{i}", Role.SEARCH, Mixture(PROBLEM.domains, w), "top", 100 * seed + i, "t")
        for i, w in enumerate(weights)
    ]
    if experts:
        vertices = [Mixture.vertex(PROBLEM.domains, name) for name in PROBLEM.domains]
        trials = [Trial(f"expert-{i}", Role.EXPERT, m, "top", 9 + i, "e") for i, m in enumerate(vertices)] + trials
    return finished(History(), trials, SyntheticEvaluator(problem, LADDER))


def learned(history, predictor=None, memory=None):
    evidence = Evidence.of(history, LADDER, PROBLEM.domains)
    options = {} if memory is None else {"memory": memory}
    return Surrogate(Encoder.of(predictor, SIMPLEX, 0), evidence, COLUMNS, **options)


def predicted(surrogate, weights):
    with torch.no_grad():
        encoded = surrogate.encoder.encode(torch.tensor(weights))
        columns = [surrogate.column(name) for name in COLUMNS]
        rows = [column.rows(encoded, column.target) for column in columns]
        return np.array([[c.mean(r).numpy(), c.std(r).numpy()] for c, r in zip(columns, rows, strict=True)])


def mfbo(predictor):
    return MultiFidelityOptimizer(SIMPLEX, LADDER, MEAN, predictor, 0, initial=4)


# --- the evidence ------------------------------------------------------------


def a_posterior():
    """Nine values, and their covariance."""
    rng = np.random.default_rng(0)
    layout = gp.Layout(2, torch.tensor([0.0, 1.0], dtype=torch.float64))
    kernel = gp.Kernel(layout, layout.prior()[0])
    rungs, groups = rng.integers(0, 2, (9, 1)), np.full((9, 1), -1.0)
    rows = torch.tensor(np.hstack([rng.random((9, 6)), np.zeros((9, 1)), rungs, groups]))
    posterior = gp.Posterior(kernel, rows, torch.tensor(rng.normal(size=9)), torch.full((9,), 0.1, dtype=torch.float64))
    return posterior, (posterior.factor @ posterior.factor.T).numpy()


def test_the_density_of_a_mixture_is_that_of_its_values_given_all_others():
    posterior, covariance = a_posterior()
    values, mixtures = posterior.values.numpy(), np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    found = doubt.log_densities(posterior, mixtures, 1.0)
    for mixture, density in found.items():
        own, others = np.flatnonzero(mixtures == mixture), np.flatnonzero(mixtures != mixture)
        gain = covariance[np.ix_(own, others)] @ np.linalg.inv(covariance[np.ix_(others, others)])
        left = covariance[np.ix_(own, own)] - gain @ covariance[np.ix_(others, own)]
        assert density == pytest.approx(multivariate_normal(gain @ values[others], left).logpdf(values[own]), abs=1e-6)


def test_a_density_per_column_unit_falls_with_the_unit_of_the_process():
    posterior, _ = a_posterior()
    mixtures = np.array([0, 0, *range(1, 8)])
    one, two = (doubt.log_densities(posterior, mixtures, scale) for scale in (1.0, 2.0))
    counts = {mixture: int((mixtures == mixture).sum()) for mixture in one}
    assert two == pytest.approx({mixture: one[mixture] - counts[mixture] * np.log(2) for mixture in one})


@pytest.mark.parametrize(
    ("gain", "num", "worse"), [(1.0, 12, True), (0.1, 12, False), (-1.0, 12, False), (5.0, 7, False)]
)
def test_a_predictor_gives_way_to_clear_evidence_from_eight_mixtures(gain, num, worse):
    assert doubt.is_worse(dict.fromkeys(range(num), 0.0), dict.fromkeys(range(num), gain)) is worse


def test_a_gain_from_one_mixture_alone_is_not_clear():
    trusted, rival = dict.fromkeys(range(12), 0.0), {**dict.fromkeys(range(12), 0.0), 5: 6.0}
    assert not doubt.is_worse(trusted, rival)


def test_levels_of_rungs_do_not_correlate():
    rungs, rng = np.repeat([0, 1], 50), np.random.default_rng(0)
    values, other = rng.normal(size=(2, 100))
    assert abs(doubt.correlation(values + 9 * rungs, other + 9 * rungs, rungs)) < 0.3
    assert doubt.correlation(values + 9 * rungs, 2 * values, rungs) == pytest.approx(1)
    assert doubt.correlation(np.ones(100), values, rungs) == 0


@pytest.mark.parametrize(("truth", "num", "least", "most"), [
    (0.9, 4, 0.0, 0.01), (0.9, 12, 0.0, 0.001), (0.5, 12, 0.02, 0.08), (-0.9, 4, 0.7, 1.0), (0.0, 20, 0.6, 1.0),
])  # fmt: skip
def test_a_useful_correlation_hardly_ever_looks_misleading_and_a_wrong_sign_soon_does(truth, num, least, most):
    """3,000 draws; at the border of what is useful, 0.5, one in twenty."""
    x, other = np.random.default_rng(0).normal(size=(2, 3000, num))
    y, rungs = truth * x + np.sqrt(1 - truth**2) * other, np.zeros(num)
    found = [doubt.is_misleading(doubt.correlation(a, b, rungs), num) for a, b in zip(x, y, strict=True)]
    assert least <= np.mean(found) <= most


# --- the surrogate -----------------------------------------------------------


@pytest.mark.parametrize("num", [8, 14])
def test_a_right_predictor_is_kept(num):
    assert [learned(runs(num, seed=seed), RIGHT).doubted(COLUMNS) for seed in range(2)] == [()] * 2


def test_three_mixtures_drop_nothing_and_six_drop_a_predictor_of_the_wrong_sign():
    assert learned(runs(3), MISLEADING).doubted(COLUMNS) == ()
    assert learned(runs(6), MISLEADING).doubted(COLUMNS) == COLUMNS


def test_with_a_dropped_predictor_all_is_as_without_one():
    history, test = runs(9), simplex.sample(SIMPLEX, 20, np.random.default_rng(9))
    assert np.array_equal(predicted(learned(history, MISLEADING), test), predicted(learned(history), test))


def test_without_the_predictor_the_runs_of_experts_count():
    history = runs(9, experts=True)
    with_them, vertices = learned(history, MISLEADING), np.eye(3)
    without = learned(History(history.trials[3:], history.observations[3:]), MISLEADING)
    assert with_them.doubted(COLUMNS) == without.doubted(COLUMNS) == COLUMNS
    assert predicted(with_them, vertices)[:, 1].mean() < 0.7 * predicted(without, vertices)[:, 1].mean()


def test_the_choice_is_a_function_of_the_history_and_not_of_what_was_remembered():
    test, used = simplex.sample(SIMPLEX, 5, np.random.default_rng(9)), learned(runs(3), MISLEADING)
    for num in (6, 9):
        used = learned(runs(num), MISLEADING, used.memory)
        predicted(used, test)
    assert np.array_equal(predicted(used, test), predicted(learned(runs(9), MISLEADING), test))


# --- the optimizer -----------------------------------------------------------


@pytest.fixture(scope="module")
def misled():
    return mfbo(MISLEADING)


def test_a_dropped_predictor_is_named_in_the_answers_and_logged_once(misled, caplog):
    history = runs(9)
    said = "the predictor is not used for loss/e0, loss/e1: runs are predicted better without it"
    advice = misled.recommend(history)
    assert said in advice.reason
    assert "from 9 measured trials" in advice.reason
    assert said in misled.propose(history, 1, budget=5.0)[0].reason
    assert caplog.text.count("predictor dropped columns=loss/e0,loss/e1") == 1


def test_a_predictor_that_is_dropped_everywhere_leaves_the_search_as_without_one(misled):
    found = [optimizer.recommend(runs(9)).mixture.weights for optimizer in (misled, mfbo(None))]
    assert np.array_equal(*found)


def test_a_kept_predictor_is_not_mentioned(caplog):
    assert "not used" not in mfbo(RIGHT).recommend(runs(8)).reason
    assert "dropped" not in caplog.text
