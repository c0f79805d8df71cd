"""The optimizer mfbo: its design, its rules and its recommendation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixopt import Constraints, History, Ladder, Mixture, Objective, Role, Status, Trial
from mixopt.errors import ConfigError
from mixopt.runs_table import RunsTable
from mixopt.search import simplex
from mixopt.search.baselines import RandomOptimizer
from mixopt.search.bayes import MultiFidelityOptimizer
from mixopt.search.catalog import make
from mixopt.search.choice import Market
from mixopt.search.hard import TARGET, hard_case
from mixopt.search.pool import Pool
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem, finished, simulate
from mixopt.search.replay import Case, replay

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


# --- in a pool ---------------------------------------------------------------


def a_case(expression="mean(loss/*)", *, seed=0, num=20, kind="loss", prices=None, like=1.0):
    """Mixtures over three domains, all at both rungs; the cheap one is like the target, or its opposite."""
    rng = np.random.default_rng(seed)
    draws = rng.dirichlet(np.ones(3), num)
    truth = np.sin(2 * draws @ rng.normal(size=(3, 2)))
    values = np.concatenate([like * truth + 0.5, truth]) + 0.01 * rng.normal(size=(2 * num, 2))
    table = RunsTable(
        ("a", "b", "c"),
        tuple(f"r{i}" for i in range(2 * num)),
        ("low",) * num + ("top",) * num,
        np.tile(draws, (2, 1)),
        {f"{kind}/x": values[:, 0], f"{kind}/y": values[:, 1]},
        np.repeat([0.1, 1.0], num) if prices is None else prices,
    )
    return Case.of(table, "top", expression)


def seen(case, low, top):
    """Runs bought: the first of each rung."""
    num = len(case.table) // 2
    return case.table.history(np.array([*range(low), *range(num, num + top)], dtype=int))


def in_pool(case, seed=0, **changes):
    return make("mfbo", replace(case.task(seed), **changes))


def rows_of(case, proposals, history):
    """Return the rows that proposals buy; an assertion where one is not left."""
    left, rows = case.pool.left(history).tolist(), []
    for p in proposals:
        same = [i for i in left if case.pool.fidelities[i] == p.fidelity and case.pool.mixture(i) == p.mixture]
        assert same, f"{p.mixture.as_dict()} at {p.fidelity} is not left"
        left.remove(same[0])
        rows.append(same[0])
    return rows


def believed(case, history, mixtures, fidelity="top"):
    return in_pool(case).predict(history, mixtures, fidelity=fidelity)


@pytest.mark.parametrize(("low", "top"), [(0, 0), (6, 0), (6, 4), (20, 18), (20, 19)])
def test_in_a_pool_a_batch_buys_rows_that_are_left_and_none_twice(low, top):
    case = a_case()
    history = seen(case, low, top)
    rows = rows_of(case, in_pool(case).propose(history, 5, budget=20.0), history)
    assert 1 <= len(rows) == len(set(rows)) <= 5


def test_an_empty_pool_ends_the_search():
    case = a_case()
    assert in_pool(case).propose(seen(case, 20, 20), 3, budget=20.0) == []


@pytest.mark.parametrize(("low", "top"), [(0, 0), (6, 0), (0, 3), (6, 4), (20, 20)])
def test_the_recommendation_is_a_target_mixture_of_the_pool(low, top):
    case = a_case()
    targets = [Mixture(case.table.domains, w) for w in case.pool.targets(case.ladder)]
    assert in_pool(case).recommend(seen(case, low, top)).mixture in targets


def test_a_cheap_rung_that_says_nothing_is_not_bought_after_three_target_runs_and_the_reason_says_so():
    table = hard_case("uncorrelated", 1)
    case = Case.of(table, TARGET, "mean(loss/*)")
    low, top = (np.flatnonzero(np.array(table.fidelities) == rung) for rung in ("low0", TARGET))
    for num in (3, 8):
        history = table.history(np.concatenate([low[:12], top[-num:]]))
        proposals = in_pool(case).propose(history, 3, budget=5.0)
        assert {p.fidelity for p in proposals} == {TARGET}
        assert all("low0 is not bought" in p.reason and "perhaps none" in p.reason for p in proposals)


def test_a_cheap_rung_that_is_proven_is_not_dropped():
    case = a_case()
    proposals = in_pool(case).propose(seen(case, 10, 5), 4, budget=5.0)
    assert not any("not bought" in p.reason for p in proposals)


def test_before_target_runs_a_cheap_rung_is_bought_within_an_allowance_only():
    """Half a target run for the block and 0.15 beyond it: seven runs at 0.1."""
    case = a_case()
    within, beyond = (in_pool(case).propose(seen(case, num, 0), 1, budget=5.0)[0] for num in (6, 7))
    assert "not bought" not in within.reason
    assert beyond.fidelity == "top"
    assert "low is not bought before more is known" in beyond.reason


def test_what_is_left_after_the_rungs_that_are_dropped_is_still_bought_if_nothing_else_is():
    case = a_case()
    (proposal,) = in_pool(case).propose(seen(case, 9, 0), 1, budget=0.2)
    assert proposal.fidelity == "low"


def test_the_best_mixture_of_the_pool_is_found():
    case = a_case(seed=3)
    found = replay(case, "mfbo", seed=0, budget=6.0)
    assert found.recommendation_regret < 0.1 * case.initial_regret


def test_scores_are_maximized():
    loss, score = a_case(seed=3), a_case("mean(score/*)", seed=3, kind="score")
    history = seen(score, 20, 8)
    best = in_pool(score).recommend(history)
    values = np.mean([score.table.columns[name][20:] for name in ("score/x", "score/y")], axis=0)
    chosen = next(i for i in range(20) if score.pool.mixture(20 + i) == best.mixture)
    assert values[chosen] > np.quantile(values, 0.8)
    assert best.mean["objective"] == pytest.approx(-0.5 * (best.mean["score/x"] + best.mean["score/y"]))
    assert best.mixture != in_pool(loss).recommend(seen(loss, 20, 8)).mixture


def test_a_score_and_the_loss_that_is_its_negative_are_the_same_search():
    score = a_case("mean(score/*)", kind="score")
    negated = {name.replace("score", "loss"): -values for name, values in score.table.columns.items()}
    loss = Case.of(replace(score.table, columns=negated), "top", "mean(loss/*)")
    one, two = (in_pool(c).propose(seen(c, 8, 4), 2, budget=5.0) for c in (score, loss))
    assert [(p.mixture, p.fidelity) for p in one] == [(p.mixture, p.fidelity) for p in two]


def test_a_maximum_is_predicted_at_or_above_the_largest_mean():
    case = a_case("max(loss/*)")
    mixtures = [case.pool.mixture(i) for i in range(20)]
    prediction = believed(case, seen(case, 8, 4), mixtures)
    largest = np.maximum(prediction.mean["loss/x"], prediction.mean["loss/y"])
    spread = np.maximum(prediction.std["loss/x"], prediction.std["loss/y"])
    # The mean of a maximum exceeds the maximum of two means by at most 0.8 of the larger spread (sqrt(2/pi), Clark 1961).
    assert np.all(prediction.mean["objective"] >= largest - 1e-9)
    assert np.all(prediction.mean["objective"] <= largest + 0.8 * spread)
    assert np.all((prediction.std["objective"] > 0) & (prediction.std["objective"] < 1.2 * spread))


def test_a_mean_is_predicted_with_a_deviation_between_that_of_independent_and_equal_errors():
    case = a_case()
    prediction = believed(case, seen(case, 8, 4), [case.pool.mixture(i) for i in range(20)])
    x, y = prediction.std["loss/x"], prediction.std["loss/y"]
    assert np.allclose(prediction.mean["objective"], (prediction.mean["loss/x"] + prediction.mean["loss/y"]) / 2)
    assert np.all(prediction.std["objective"] <= (x + y) / 2 + 1e-12)


def test_known_noise_of_the_runs_widens_the_prediction():
    case = a_case()
    noisy = replace(case.table, noise={name: np.full(40, 0.5) for name in case.table.columns})
    mixtures = [case.pool.mixture(20), Mixture.uniform(case.table.domains)]
    quiet = believed(case, seen(case, 8, 4), mixtures)
    doubted = believed(case, seen(Case.of(noisy, "top", "mean(loss/*)"), 8, 4), mixtures)
    assert np.all(doubted.std["objective"] > quiet.std["objective"])
    assert np.all(doubted.std["loss/x"] > quiet.std["loss/x"])


@pytest.mark.parametrize(("change", "expected"), [(lambda x: x + 7.0, 7.0), (lambda x: 4.0 * x, 0.0)])
def test_shifted_or_scaled_tables_get_shifted_or_scaled_predictions(change, expected):
    case = a_case()
    other = Case.of(
        replace(case.table, columns={n: change(v) for n, v in case.table.columns.items()}), "top", "mean(loss/*)"
    )
    mixtures = [case.pool.mixture(i) for i in range(5)]
    one, two = believed(case, seen(case, 8, 4), mixtures), believed(other, seen(other, 8, 4), mixtures)
    assert np.allclose(two.mean["objective"], change(one.mean["objective"]), rtol=1e-5)
    assert np.allclose(two.std["objective"], change(one.std["objective"]) - expected, rtol=1e-5)


def test_permuted_domains_permute_predictions_and_proposals_of_a_pool():
    case, order = a_case(), [2, 0, 1]
    table = case.table
    turned = replace(table, domains=tuple(table.domains[i] for i in order), weights=table.weights[:, order])
    other = Case.of(turned, "top", "mean(loss/*)")
    mixtures = [case.pool.mixture(i) for i in range(5)]
    one, two = (believed(c, seen(c, 8, 4), mixtures) for c in (case, other))
    for name in one.mean:
        assert np.allclose(one.mean[name], two.mean[name], atol=1e-6)
        assert np.allclose(one.std[name], two.std[name], atol=1e-6)
    recommended = [in_pool(c).recommend(seen(c, 8, 4)).mixture.over(table.domains) for c in (case, other)]
    assert recommended[0] == recommended[1]


def test_predictions_do_not_depend_on_what_was_asked_before():
    case = a_case()
    optimizer, mixtures = in_pool(case), [case.pool.mixture(3)]
    optimizer.propose(seen(case, 8, 4), 2, budget=5.0)
    optimizer.predict(seen(case, 3, 1), mixtures, fidelity="low")
    one = optimizer.predict(seen(case, 8, 4), mixtures, fidelity="top")
    two = believed(case, seen(case, 8, 4), mixtures)
    assert one.mean["objective"] == two.mean["objective"]
    assert one.std["objective"] == two.std["objective"]


def test_more_target_runs_leave_less_regret_possible():
    case = a_case()
    few, many = (in_pool(case).recommend(seen(case, 8, num)).regret_bound for num in (2, 20))
    assert 0 <= many < few


def test_what_is_known_of_all_mixtures_is_surely_the_best_but_for_noise():
    probabilities = [
        np.mean(
            [
                in_pool(a_case(seed=seed)).recommend(seen(a_case(seed=seed), 8, num)).best_probability
                for seed in range(4)
            ]
        )
        for num in (1, 20)
    ]
    assert 0 < probabilities[0] < 0.9 < probabilities[1] <= 1


def test_the_only_candidate_is_the_best():
    case = a_case(num=1)
    assert in_pool(case).recommend(seen(case, 0, 1)).best_probability == 1.0


def test_a_run_that_failed_is_paid_and_not_bought_again():
    case = a_case()
    (first,) = in_pool(case).propose(seen(case, 8, 4), 1, budget=5.0)
    lost = Trial("lost", Role.SEARCH, first.mixture, first.fidelity, 0, "t", status=Status.ABANDONED)
    history = seen(case, 8, 4)
    again = in_pool(case).propose(History((*history.trials, lost), history.observations), 1, budget=5.0)
    assert (again[0].mixture, again[0].fidelity) != (first.mixture, first.fidelity)


def test_runs_that_others_bought_are_not_drawn_again_by_the_design():
    case = a_case()
    design = rows_of(case, in_pool(case).propose(History(), 4, budget=5.0), History())
    history = case.table.history(np.array(design[:0:-1]))  # the last ones were bought by someone else
    rows = rows_of(case, in_pool(case).propose(history, 2, budget=5.0), history)
    assert not set(rows) & set(design[1:])


def test_the_design_charges_every_row_its_own_price():
    case = a_case(prices=np.concatenate([np.linspace(0.02, 0.18, 20), np.ones(20)]))
    spent = []
    for seed in range(10):
        rows = rows_of(case, in_pool(case, seed).propose(History(), 4, budget=0.25), History())
        spent.append(case.pool.prices[rows].sum())
    assert max(spent) <= 0.25 + 1e-9


def test_rows_of_the_pool_outside_the_constraints_are_neither_bought_nor_recommended():
    case = a_case()
    constraints = Constraints(case.table.domains, np.zeros(3), np.array([0.3, 1.0, 1.0]))
    optimizer = in_pool(case, constraints=constraints)
    history = seen(case, 8, 4)
    bought = [p.mixture for h in (History(), history) for p in optimizer.propose(h, 6, budget=20.0)]
    recommended = [optimizer.recommend(h).mixture for h in (History(), history)]
    assert all(constraints.allows(mixture) for mixture in [*bought, *recommended])


def test_a_slot_that_is_too_dear_never_moves_to_a_run_that_the_pool_does_not_have():
    pool = Pool(("a", "b"), np.array([[0.3, 0.7], [0.6, 0.4]] * 2), ("mid", "mid", "top", "top"), np.ones(4))
    constraints = Constraints.simplex(pool.domains)
    optimizer = mfbo(constraints=constraints, predictor=None, initial=None, pool=pool)
    assert {p.fidelity for p in optimizer.propose(History(), 2, budget=0.1)} <= set(pool.fidelities)


def test_one_batch_keeps_to_the_allowance_of_a_cheap_rung():
    """0.65 target runs before the first target run, so at most seven of the runs at 0.1 begin a batch."""
    proposals = in_pool(a_case()).propose(History(), 12, budget=9.0)
    before = [p.fidelity for p in proposals].index("top") if "top" in {p.fidelity for p in proposals} else 12
    assert before <= 7


def test_a_batch_is_filled_also_when_all_that_may_be_best_is_being_trained():
    problem = SyntheticProblem.random(40, 2, seed=1, noise=0.001)
    constraints = Constraints.simplex(problem.domains)
    runs = [
        Trial(f"s{i}", Role.SEARCH, Mixture(problem.domains, weights), "top", i, "test")
        for i, weights in enumerate(simplex.sample(constraints, 60, np.random.default_rng(0)))
    ]
    history = finished(History(), runs, SyntheticEvaluator(problem, LADDER))
    optimizer = mfbo(constraints=constraints, predictor=None, initial=0)
    assert len(optimizer.propose(history, 4, budget=100.0)) == 4
