"""What every optimizer must do, run over every optimizer: on the polytope, and in a pool."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from mixopt import Constraints, Domain, Group, History, Ladder, Mixture, Objective, Role, Status, Trial
from mixopt.errors import ConfigError
from mixopt.runs_table import RunsTable
from mixopt.search import catalog
from mixopt.search.bayes import MultiFidelityOptimizer
from mixopt.search.catalog import Task
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem, finished, simulate
from mixopt.search.replay import Case, replay

torch.set_num_threads(1)

LADDER = Ladder.from_flops([("low", "m", 10, 100, 1.0), ("mid", "m", 10, 400, 4.0), ("top", "m", 10, 1600, 16.0)], 0.02)


def objective_of(problem, expression="mean(loss/*)"):
    return Objective.parse(expression, [f"loss/{name}" for name in problem.eval_sets])


def with_predictor(problem, constraints, seed):
    return MultiFidelityOptimizer(
        constraints, LADDER, objective_of(problem), SyntheticPredictor(problem), seed, initial=3
    )


def without_predictor(problem, constraints, seed):
    return MultiFidelityOptimizer(constraints, LADDER, objective_of(problem), None, seed, initial=3)


def of_catalog(name):
    def make(problem, constraints, seed):
        return catalog.make(name, Task(constraints, LADDER, objective_of(problem), seed))

    return make


TREES = ("regmix", "regmix-128", "regmix-512", "climb")  # need the extra with LightGBM
OBJECTIVE_ONLY = (*TREES, "gp-ei", "admire")  # model the objective itself, not its columns
TWINS = ("regmix-128", "regmix-512")  # regmix with another number of runs
SLOW = ("admire",)  # looks at every rung of 1024 mixtures; test_rivals.py has it without a pool
RIVALS = [name for name in catalog.names() if name not in ("mfbo", *TWINS, *SLOW, *catalog.NEED_PREDICTOR)]
OPTIMIZERS = {f.__name__: f for f in (with_predictor, without_predictor)} | {n: of_catalog(n) for n in RIVALS}


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    needs_trees(request.param)
    return OPTIMIZERS[request.param]


def needs_trees(name):
    if name in TREES:
        pytest.importorskip("lightgbm")


def columns_of(optimizer):
    """What an optimizer's model predicts."""
    return {"objective"} if optimizer.name in OBJECTIVE_ONLY else {"objective", "loss/e0", "loss/e1"}


def a_problem(num_domains=3, num_sets=2):
    return SyntheticProblem.random(num_domains, num_sets, seed=1)


def tight(problem):
    """Bounds, a group and epoch caps, over at least three domains."""
    names = problem.domains
    domains = [Domain(name, 1000 if index else 300, 10, 4000) for index, name in enumerate(names)]
    groups = [Group(names[:2], 0.1, 0.7)]
    return Constraints.with_epoch_caps(domains, {names[1]: (0.05, 0.6)}, groups, target_tokens=1000, max_epochs=1.5)


def a_history(problem, num=4, seed=0):
    """Runs at low and top, one validation run, all finished."""
    rng = np.random.default_rng(seed)
    rungs = ["top", "low", "low", "mid", "top", "low"]
    trials = [
        Trial(f"search-{i}", Role.SEARCH, Mixture(problem.domains, w), rungs[i % 6], 100 + i, "test")
        for i, w in enumerate(rng.dirichlet(np.ones(len(problem.domains)), num))
    ]
    check = Trial("check", Role.VALIDATION, Mixture.uniform(problem.domains), "top", 7, "validation")
    return finished(History(), [*trials, check], SyntheticEvaluator(problem, LADDER))


def charge(proposals):
    return sum(LADDER.price(p.fidelity, start=p.parent_fidelity) for p in proposals)


def pending(proposals, start):
    return tuple(
        Trial(
            f"search-{start + i}",
            Role.SEARCH,
            p.mixture,
            p.fidelity,
            i,
            p.proposed_by,
            parent=p.parent,
            parent_fidelity=p.parent_fidelity,
        )
        for i, p in enumerate(proposals)
    )


def test_the_same_history_and_seed_give_the_same_answers(make):
    problem = a_problem()
    history, constraints = a_history(problem), Constraints.simplex(problem.domains)
    first, second = make(problem, constraints, 5), make(problem, constraints, 5)
    assert first.propose(history, 1, budget=10.0) == second.propose(history, 1, budget=10.0)
    assert first.recommend(history) == second.recommend(history)


def test_asking_twice_with_another_history_in_between_changes_nothing(make):
    problem = a_problem()
    history = a_history(problem)
    optimizer = make(problem, Constraints.simplex(problem.domains), 5)
    torch.manual_seed(1)
    first = optimizer.propose(history, 1, budget=10.0)
    optimizer.recommend(a_history(problem, 3, seed=9))
    torch.manual_seed(2)
    assert optimizer.propose(history, 1, budget=10.0) == first


def test_global_random_state_is_left_alone(make):
    problem = a_problem()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    make(problem, Constraints.simplex(problem.domains), 5).propose(a_history(problem), 1, budget=10.0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_another_seed_gives_other_proposals(make):
    problem = a_problem()
    constraints = Constraints.simplex(problem.domains)
    first = make(problem, constraints, 1).propose(History(), 3, budget=10.0)
    assert first != make(problem, constraints, 2).propose(History(), 3, budget=10.0)


def test_proposals_and_recommendation_satisfy_bounds_groups_and_epoch_caps(make):
    problem = a_problem(4)
    constraints = tight(problem)
    optimizer = make(problem, constraints, 0)
    history = simulate(optimizer, SyntheticEvaluator(problem, LADDER), budget=4.0, batch=3, seed=0, rounds=2)
    assert len(history.trials) >= 4
    assert all(constraints.allows(trial.mixture) for trial in history.trials)
    assert constraints.allows(optimizer.recommend(history).mixture)


def test_a_pending_mixture_is_not_proposed_again_at_its_rung(make):
    problem = a_problem()
    optimizer, history = make(problem, Constraints.simplex(problem.domains), 0), a_history(problem)
    first = optimizer.propose(history, 1, budget=20.0)
    asked = History(history.trials + pending(first, len(history.trials)), history.observations)
    second = optimizer.propose(asked, 2, budget=20.0)
    for proposal in second:
        assert all(p.fidelity != proposal.fidelity or p.mixture.distance(proposal.mixture) >= 1e-3 for p in first)
        assert proposal.parent is None or proposal.parent not in {p.parent for p in first}


def test_an_abandoned_mixture_is_not_proposed_again_at_its_rung(make):
    problem = a_problem()
    optimizer, history = make(problem, Constraints.simplex(problem.domains), 0), a_history(problem)
    first = optimizer.propose(history, 1, budget=20.0)
    lost = tuple(trial.with_status(Status.ABANDONED) for trial in pending(first, len(history.trials)))
    again = optimizer.propose(History(history.trials + lost, history.observations), 2, budget=20.0)
    assert all((p.mixture, p.fidelity) != (first[0].mixture, first[0].fidelity) for p in again)


@pytest.mark.parametrize("budget", [0.05, 0.3, 1.2])
def test_charges_stay_within_the_budget(make, budget):
    problem = a_problem()
    optimizer = make(problem, Constraints.simplex(problem.domains), 0)
    for history in (History(), a_history(problem)):
        assert charge(optimizer.propose(history, 2, budget=budget)) <= budget + 1e-9


def test_at_most_the_asked_number_is_proposed_and_each_says_why(make):
    problem = a_problem()
    optimizer = make(problem, Constraints.simplex(problem.domains), 0)
    proposals = optimizer.propose(History(), 3, budget=20.0)
    assert 1 <= len(proposals) <= 3
    assert all(p.reason and p.proposed_by.startswith(optimizer.name) for p in proposals)


@pytest.mark.parametrize("num_domains", [1, 64])
def test_one_domain_and_sixty_four_domains_work(make, num_domains):
    problem = a_problem(num_domains)
    constraints = Constraints.simplex(problem.domains)
    optimizer = make(problem, constraints, 0)
    history = a_history(problem, 3)
    proposals = optimizer.propose(history, 1, budget=5.0)
    recommendation = optimizer.recommend(history)
    assert all(constraints.allows(p.mixture) for p in proposals)
    assert constraints.allows(recommendation.mixture)


def test_a_recommendation_is_possible_before_anything_is_measured(make):
    problem = a_problem()
    constraints = tight(problem)
    recommendation = make(problem, constraints, 0).recommend(History())
    assert constraints.allows(recommendation.mixture)
    assert recommendation.support == ()
    assert recommendation.reason


def test_recommendations_hold_finite_numbers_only_and_name_their_support(make):
    problem = a_problem()
    history = a_history(problem)
    optimizer = make(problem, Constraints.simplex(problem.domains), 0)
    recommendation = optimizer.recommend(history)
    numbers = [*recommendation.mean.values(), *recommendation.std.values(), recommendation.regret_bound or 0.0]
    assert np.all(np.isfinite(numbers))
    assert 0 <= (recommendation.best_probability or 0.0) <= 1
    assert all(value >= 0 for value in recommendation.std.values())
    assert columns_of(optimizer) <= set(recommendation.mean)
    assert set(recommendation.support) <= {t.id for t in history.trials if t.role is Role.SEARCH}


def test_predictions_cover_columns_and_objective_at_every_rung(make):
    problem = a_problem()
    optimizer = make(problem, Constraints.simplex(problem.domains), 0)
    mixtures = [Mixture.uniform(problem.domains), Mixture.vertex(problem.domains, "d1")]
    for rung in LADDER:
        prediction = optimizer.predict(a_history(problem), mixtures, fidelity=rung.name)
        assert columns_of(optimizer) == set(prediction.mean) == set(prediction.std)
        assert all(np.all(np.isfinite(v)) and v.shape == (2,) for v in prediction.mean.values())
        assert all(np.all(v > 0) for v in prediction.std.values())


def test_validation_runs_do_not_influence_the_search(make):
    problem = a_problem()
    history = a_history(problem)
    bare = history.of(Role.SEARCH)
    optimizer = make(problem, Constraints.simplex(problem.domains), 0)
    assert optimizer.recommend(history) == optimizer.recommend(bare)
    assert optimizer.propose(history, 1, budget=9.0) == optimizer.propose(bare, 1, budget=9.0)


@pytest.mark.parametrize("expression", ["mean(loss/*)", "max(loss/*)"])
def test_permuted_domains_permute_the_recommendation_of_the_predictor_alone(expression):
    problem = a_problem(5, 3)
    order = [3, 0, 4, 2, 1]
    tilted = tuple(tuple(np.array(row)[order].tolist()) for row in problem.slopes)
    permuted = replace(problem, domains=tuple(problem.domains[i] for i in order), slopes=tilted)
    answers = []
    for case in (problem, permuted):
        predictor = SyntheticPredictor(case, error=0.0)
        objective, constraints = objective_of(case, expression), Constraints.simplex(case.domains)
        optimizer = MultiFidelityOptimizer(constraints, LADDER, objective, predictor, 0, initial=3)
        answers.append(optimizer.recommend(History()).mixture.over(problem.domains))
    assert answers[0].distance(answers[1]) < 1e-3  # clipping of weights below 1e-4 and the local solver's tolerance


# --- in a pool ---------------------------------------------------------------

IN_POOL = [name for name in catalog.names() if name not in ("sobol", *TWINS, *catalog.NEED_PREDICTOR)]


@pytest.fixture(params=IN_POOL)
def name(request):
    needs_trees(request.param)
    return request.param


@cache
def a_case(num_domains=3):
    """Two dozen mixtures at two rungs, the cheap one alike but worse; every row has a price of its own."""
    rng = np.random.default_rng(7)
    draws = rng.dirichlet(np.ones(num_domains), 24)
    truth = np.sin(2 * draws @ rng.normal(size=(num_domains, 2)))
    values = np.concatenate([0.5 + truth, truth]) + 0.02 * rng.normal(size=(48, 2))
    return Case.of(
        RunsTable(
            tuple(f"d{i}" for i in range(num_domains)),
            tuple(f"r{i}" for i in range(48)),
            ("low",) * 24 + ("top",) * 24,
            np.tile(draws, (2, 1)),
            {"loss/x": values[:, 0], "loss/y": values[:, 1]},
            np.repeat([0.1, 1.0], 24),
        ),
        "top",
        "mean(loss/*)",
    )


def asked(name, case, seed=0, **changes):
    return catalog.make(name, replace(case.task(seed), **changes))


def bought(case, low=8, top=3):
    """Runs as every optimizer could have bought them, rows in order."""
    return case.table.history(np.array([*range(low), *range(24, 24 + top)], dtype=int))


def rows_of(case, proposals, history):
    """Return the rows that proposals buy: distinct ones that are left, else an assertion."""
    left, rows = case.pool.left(history).tolist(), []
    for p in proposals:
        same = [i for i in left if case.pool.fidelities[i] == p.fidelity and case.pool.mixture(i) == p.mixture]
        assert same, f"{p.mixture.as_dict()} at {p.fidelity} is not left"
        rows.append(same[0])
        left.remove(same[0])
    return rows


def target_mixtures(case):
    return [Mixture(case.table.domains, weights) for weights in case.pool.targets(case.ladder)]


def test_in_a_pool_the_same_history_and_seed_give_the_same_answers(name):
    case = a_case()
    answers = [
        (asked(name, case, 5).propose(bought(case), 2, budget=9.0), asked(name, case, 5).recommend(bought(case)))
        for _ in range(2)
    ]
    assert answers[0] == answers[1]


def test_in_a_pool_another_history_in_between_changes_nothing_and_random_states_are_left_alone(name):
    case, optimizer = a_case(), asked(name, a_case())
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = optimizer.propose(bought(case), 1, budget=9.0)
    optimizer.recommend(bought(case, 4, 6))
    assert optimizer.propose(bought(case), 1, budget=9.0) == first
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_in_a_pool_another_seed_begins_with_other_runs(name):
    case = a_case()
    firsts = [tuple(rows_of(case, asked(name, case, s).propose(History(), 1, budget=9.0), History())) for s in range(5)]
    assert len(set(firsts)) > 1


def test_in_a_pool_pending_runs_are_bought_and_only_rows_that_are_left_are_proposed(name):
    case, optimizer, history = a_case(), asked(name, a_case()), bought(a_case())
    first = optimizer.propose(history, 2, budget=9.0)
    assert rows_of(case, first, history)
    waiting = History(history.trials + pending(first, 20), history.observations)
    second = optimizer.propose(waiting, 3, budget=9.0)
    assert rows_of(case, second, waiting)


def test_in_a_pool_no_row_is_bought_twice_and_the_budget_is_kept(name):
    """The replay asserts both after every purchase."""
    found = replay(a_case(), name, seed=1, budget=3.0, max_decisions=5 if name in SLOW else None)
    runs = [decision.run for decision in found.decisions]
    assert 3 <= len(runs) == len(set(runs))
    assert found.decisions[-1].total_cost <= 3.0 + 1e-9


@pytest.mark.parametrize("budget", [0.05, 0.15, 1.25, 2.5])
def test_in_a_pool_prices_of_a_batch_stay_within_the_budget(name, budget):
    case = a_case()
    for history in (History(), bought(case)):
        rows = rows_of(case, asked(name, case).propose(history, 3, budget=budget), history)
        assert case.pool.prices[rows].sum() <= budget + 1e-9
        assert len(rows) <= 3


def test_in_a_pool_every_row_costs_its_own_price(name):
    costs = np.concatenate([np.linspace(0.02, 0.18, 24), np.linspace(0.5, 1.5, 24)])
    case = Case.of(replace(a_case().table, costs=costs), "top", "mean(loss/*)")
    for seed in range(6):
        rows = rows_of(case, asked(name, case, seed).propose(History(), 3, budget=0.25), History())
        assert case.pool.prices[rows].sum() <= 0.25 + 1e-9


def test_in_a_pool_rows_outside_the_constraints_are_neither_bought_nor_recommended(name):
    case = a_case()
    for upper in ([0.3, 1.0, 1.0], [1.0, 0.3, 1.0], [1.0, 1.0, 0.3]):  # one of them is not where the best mixtures are
        constraints = Constraints(case.table.domains, np.zeros(3), np.array(upper))
        optimizer = asked(name, case, constraints=constraints)
        for seen in (History(), bought(case)):
            assert all(constraints.allows(p.mixture) for p in optimizer.propose(seen, 4, budget=9.0))
            assert constraints.allows(optimizer.recommend(seen).mixture)


@pytest.mark.parametrize(("low", "top"), [(0, 0), (8, 0), (8, 3)])
def test_in_a_pool_a_target_mixture_is_recommended(name, low, top):
    case = a_case()
    recommendation = asked(name, case).recommend(bought(case, low, top))
    assert recommendation.mixture in target_mixtures(case)
    assert recommendation.fidelity == "top"
    assert np.all(np.isfinite([*recommendation.mean.values(), *recommendation.std.values()]))


@pytest.mark.parametrize("num_domains", [1, 64])
def test_in_a_pool_one_domain_and_sixty_four_domains_work(name, num_domains):
    case = a_case(num_domains)
    optimizer, history = asked(name, case), bought(case)
    assert rows_of(case, optimizer.propose(history, 1, budget=9.0), history)
    assert optimizer.recommend(history).mixture in target_mixtures(case)


def test_in_a_pool_nothing_is_proposed_when_nothing_is_left_or_affordable(name):
    case = a_case()
    assert list(asked(name, case).propose(bought(case), 2, budget=0.01)) == []
    assert list(asked(name, case).propose(bought(case, 24, 24), 2, budget=9.0)) == []


def test_in_a_pool_failed_runs_are_paid_and_the_search_goes_on(name):
    case = a_case()
    history = bought(case)
    lost = [case.table.trial(row).with_status(Status.FAILED) for row in (10, 11, 30, 31)]
    more = History((*history.trials, *lost), history.observations)
    assert rows_of(case, asked(name, case).propose(more, 2, budget=9.0), more)
    assert asked(name, case).recommend(more).mixture in target_mixtures(case)


def test_sobol_refuses_a_pool():
    with pytest.raises(ConfigError, match="continuous set"):
        asked("sobol", a_case())
