"""What every optimizer must do, run over every optimizer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixopt import Constraints, Domain, Group, History, Ladder, Mixture, Objective, Role, Status, Trial
from mixopt.search.baselines import RandomOptimizer, SobolOptimizer
from mixopt.search.bayes import MultiFidelityOptimizer
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem, finished, simulate

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


def random(problem, constraints, seed):
    return RandomOptimizer(constraints, LADDER, objective_of(problem), seed)


def sobol(problem, constraints, seed):
    return SobolOptimizer(constraints, LADDER, objective_of(problem), seed)


OPTIMIZERS = {f.__name__: f for f in (with_predictor, without_predictor, random, sobol)}


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


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
    recommendation = make(problem, Constraints.simplex(problem.domains), 0).recommend(history)
    numbers = [*recommendation.mean.values(), *recommendation.std.values(), recommendation.regret_bound or 0.0]
    assert np.all(np.isfinite(numbers))
    assert all(value >= 0 for value in recommendation.std.values())
    assert {"objective", "loss/e0", "loss/e1"} <= set(recommendation.mean)
    assert set(recommendation.support) <= {t.id for t in history.trials if t.role is Role.SEARCH}


def test_predictions_cover_columns_and_objective_at_every_rung(make):
    problem = a_problem()
    optimizer = make(problem, Constraints.simplex(problem.domains), 0)
    mixtures = [Mixture.uniform(problem.domains), Mixture.vertex(problem.domains, "d1")]
    for rung in LADDER:
        prediction = optimizer.predict(a_history(problem), mixtures, fidelity=rung.name)
        assert {"objective", "loss/e0", "loss/e1"} == set(prediction.mean) == set(prediction.std)
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
