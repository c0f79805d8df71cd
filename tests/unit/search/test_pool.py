"""Candidates: what is left of a list follows from the history, run by run."""

import numpy as np
import pytest

from mixopt import ConfigError, Fidelity, History, Ladder, Mixture, Role, Status, Trial
from mixopt.search.pool import Pool

DOMAINS = ("a", "b")
LADDER = Ladder(tuple(Fidelity(name, name, 0, 0, 0.0, cost) for name, cost in (("low", 0.1), ("top", 1.0))))
HALF, MOST, LEAST = [0.5, 0.5], [0.8, 0.2], [0.1, 0.9]


def a_pool():
    """HALF three times at `low`, once at `top`; two others."""
    weights = np.array([HALF, MOST, HALF, HALF, LEAST, HALF])
    return Pool(DOMAINS, weights, ("low", "top", "low", "top", "top", "low"), np.array([0.1, 1, 0.12, 1, 1, 0.09]))


def bought(*runs, status=Status.DONE, role=Role.SEARCH, domains=DOMAINS):
    trials = [
        Trial(f"t{i}", role, Mixture(domains, np.array(weights)), fidelity, i, "test", status=status)
        for i, (weights, fidelity) in enumerate(runs)
    ]
    return History(tuple(trials))


def left(history):
    return a_pool().left(history).tolist()


def test_everything_is_left_of_an_empty_history():
    assert left(History()) == [0, 1, 2, 3, 4, 5]


def test_replicates_are_bought_one_by_one_and_the_first_goes_first():
    run = (HALF, "low")
    assert [left(bought(*[run] * num)) for num in range(4)] == [
        [0, 1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5],
        [1, 3, 4, 5],
        [1, 3, 4],
    ]


def test_more_purchases_than_replicates_take_nothing_else():
    assert left(bought(*[(HALF, "low")] * 5)) == [1, 3, 4]


def test_the_same_mixture_at_another_rung_is_another_run():
    assert left(bought((HALF, "top"))) == [0, 1, 2, 4, 5]


def test_the_order_of_purchases_changes_nothing():
    runs = [(HALF, "low"), (MOST, "top"), (HALF, "low")]
    assert left(bought(*runs)) == left(bought(*runs[::-1])) == [3, 4, 5]


@pytest.mark.parametrize("status", Status)
def test_a_run_is_bought_whatever_becomes_of_it(status):
    assert left(bought((MOST, "top"), status=status)) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("role", [Role.EXPERT, Role.VALIDATION])
def test_only_search_trials_buy(role):
    assert left(bought((MOST, "top"), role=role)) == [0, 1, 2, 3, 4, 5]


def test_mixtures_that_are_not_in_the_pool_buy_nothing():
    assert left(bought(([0.3, 0.7], "low"))) == [0, 1, 2, 3, 4, 5]


def test_the_order_of_domains_in_the_history_does_not_matter():
    assert left(bought((MOST[::-1], "top"), domains=("b", "a"))) == [0, 2, 3, 4, 5]


def test_without_removes_the_first_run_and_keeps_the_order_of_the_others():
    pool = a_pool().without(np.array(HALF), "low")
    assert pool.prices.tolist() == [1, 0.12, 1, 1, 0.09]
    assert pool.fidelities == ("top", "low", "top", "top", "low")


def test_without_agrees_with_what_is_left():
    runs = [(HALF, "low"), (MOST, "top"), (HALF, "low"), ([0.3, 0.7], "top")]
    pool = a_pool()
    for weights, fidelity in runs:
        pool = pool.without(np.array(weights), fidelity)
    kept = a_pool().take(a_pool().left(bought(*runs)))
    assert np.array_equal(pool.weights, kept.weights)
    assert (pool.fidelities, pool.prices.tolist()) == (kept.fidelities, kept.prices.tolist())


def test_taking_rows_keeps_their_order_and_leaves_the_pool_alone():
    pool = a_pool()
    some = pool.take(np.array([4, 0]))
    assert (some.fidelities, some.prices.tolist(), len(pool)) == (("top", "low"), [1.0, 0.1], 6)
    assert some.mixture(0) == Mixture(DOMAINS, np.array(LEAST))


def test_no_rows_at_all_are_a_pool():
    empty = a_pool().take(np.array([], dtype=int))
    assert len(empty) == 0
    assert empty.left(History()).tolist() == []
    assert len(empty.without(np.array(HALF), "low")) == 0


def test_targets_are_the_distinct_mixtures_of_the_target_rung_in_order():
    assert a_pool().targets(LADDER).tolist() == [MOST, HALF, LEAST]


def test_without_target_rows_every_mixture_may_be_the_target():
    cheap = a_pool().take(np.array([0, 2, 5]))
    assert cheap.targets(LADDER).tolist() == [HALF]


def test_a_pool_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        a_pool().weights[0] = 0


@pytest.mark.parametrize(
    ("weights", "prices"),
    [(np.array([HALF]), np.ones(2)), (np.array([HALF, HALF]), np.ones(1)), (np.ones((2, 3)) / 3, np.ones(2))],
)
def test_lengths_that_differ_are_refused_with_both_shapes(weights, prices):
    with pytest.raises(ConfigError, match=r"a pool of 2 runs over 2 domains .* got shapes"):
        Pool(DOMAINS, weights, ("low", "low"), prices)
