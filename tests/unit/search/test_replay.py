"""Laws of a replay: what may be bought, what it costs, and how regret is counted."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from mixopt import ConfigError, History, Mixture, Role, Status
from mixopt.proposal import Proposal, Recommendation
from mixopt.runs_table import RunsTable
from mixopt.search.catalog import NEED_PREDICTOR, names
from mixopt.search.pool import Pool
from mixopt.search.replay import Case, Replay, play, replay, score

NAN = float("nan")


def a_table(rows, *, domains=("a", "b", "c"), seed=0):
    """A table of (rung, cost, loss) rows with distinct mixtures, or (rung, cost, loss, mixture number)."""
    draws = np.random.default_rng(seed).dirichlet(np.ones(len(domains)), size=64)
    numbers = [row[3] if len(row) > 3 else i for i, row in enumerate(rows)]
    return RunsTable(
        domains=domains,
        runs=tuple(f"r{i}" for i in range(len(rows))),
        fidelities=tuple(row[0] for row in rows),
        weights=draws[numbers],
        columns={"loss/x": np.array([row[2] for row in rows], dtype=float)},
        costs=np.array([row[1] for row in rows], dtype=float),
    )


def targets(*losses):
    return a_table([("top", 1.0, loss) for loss in losses])


def a_case(table, expression="loss/x"):
    return Case.of(table, "top", expression)


@dataclass
class Buyer:
    """Buys rows in a given order and recommends the best mixture it has measured at the target."""

    case: Case
    order: list

    name = "buyer"

    def propose(self, history, num, *, budget):
        for row in self.order:
            if row in self.case.pool.left(history) and self.case.pool.prices[row] <= budget:
                return [Proposal(self.case.pool.mixture(row), self.case.pool.fidelities[row], None, "in order")]
        return []

    def recommend(self, history):
        seen = [o for o in history.observations if o.fidelity == "top" and "x" in o.losses]
        best = min(seen, key=lambda o: o.losses["x"], default=None)
        mixture = (
            history.trial(best.trial).mixture
            if best
            else Mixture(self.case.table.domains, self.case.pool.targets(self.case.ladder)[0])
        )
        return Recommendation(mixture, "top", {}, {}, None, (), self.name)


def bought(case, order, budget=100.0, **settings):
    return play(Buyer(case, list(order)), case, budget=budget, **settings)


def test_the_regret_curve_of_a_hand_computed_example():
    found = score([0.1, 1.1, 2.1, 3.1], [None, 0.6, 0.6, 0.0], initial=0.4, budget=10.0)
    assert found.cost_to_best == 3.1
    assert found.success
    # 0.4 until 1.1 is paid, 0.6 until 3.1 is paid, then 0 to the budget.
    assert found.area == pytest.approx((0.4 * 1.1 + 0.6 * 2.0) / (10.0 * 0.4))
    assert found.regret == 0.0


def test_a_best_row_that_is_never_measured_costs_the_budget():
    found = score([1.0, 2.0], [0.5, 0.2], initial=1.0, budget=4.0)
    assert (found.cost_to_best, found.success, found.regret) == (4.0, False, 0.2)
    assert found.area == pytest.approx((1.0 + 0.5 + 0.2 * 2) / 4.0)


def test_without_any_purchase_the_regret_stays_the_initial_one():
    assert score([], [], initial=0.7, budget=3.0).area == pytest.approx(1.0)
    assert score([], [], initial=0.7, budget=3.0).regret == 0.7


def test_no_initial_regret_means_no_area():
    found = score([1.0], [0.0], initial=0.0, budget=5.0)
    assert (found.area, found.cost_to_best, found.success) == (0.0, 1.0, True)


def test_scaling_all_regrets_changes_the_final_regret_alone():
    costs, regrets = [1.0, 2.5], [0.8, 0.1]
    one = score(costs, regrets, initial=0.5, budget=6.0)
    many = score(costs, [7 * r for r in regrets], initial=3.5, budget=6.0)
    assert many.area == pytest.approx(one.area)
    assert many.regret == pytest.approx(7 * one.regret)


@pytest.mark.parametrize("change", [lambda x: x + 5.0, lambda x: 3.0 * x], ids=["shift", "scale"])
def test_shifting_or_scaling_all_losses_changes_no_cost_and_no_area(change):
    table = targets(4.0, 2.0, 3.0, 1.0, 5.0)
    other = replace(table, columns={"loss/x": change(table.columns["loss/x"])})
    order = [2, 0, 3, 1, 4]
    one, two = (bought(a_case(t), order, budget=8.0).score for t in (table, other))
    assert (two.cost_to_best, two.area) == (one.cost_to_best, pytest.approx(one.area))


def test_the_order_of_rows_changes_nothing_for_a_buyer_that_ignores_it():
    table, shuffle = targets(4.0, 2.0, 3.0, 1.0, 5.0), np.array([3, 1, 4, 0, 2])
    other = RunsTable(
        table.domains,
        tuple(table.runs[i] for i in shuffle),
        tuple(table.fidelities[i] for i in shuffle),
        table.weights[shuffle],
        {"loss/x": table.columns["loss/x"][shuffle]},
        table.costs[shuffle],
    )
    one, two = (bought(a_case(t), np.argsort(t.weights[:, 0])) for t in (table, other))
    assert [d.run for d in one.decisions] == [d.run for d in two.decisions]
    assert one.score == two.score


def test_a_clairvoyant_pays_one_run_and_has_area_one_over_the_budget():
    case = a_case(targets(4.0, 2.0, 3.0, 1.0, 5.0))
    found = bought(case, [3], budget=8.0)
    assert (found.score.cost_to_best, found.score.regret, found.recommendation_regret) == (1.0, 0.0, 0.0)
    assert found.score.area == pytest.approx(1 / 8)
    assert found.stopped == "optimizer"


def test_buying_in_every_rotation_costs_half_of_the_pool_on_average():
    case = a_case(targets(4.0, 2.0, 3.0, 1.0, 5.0, 6.0))
    costs = [bought(case, np.roll(range(6), shift)).score.cost_to_best for shift in range(6)]
    assert np.mean(costs) == (6 + 1) / 2


def test_the_first_target_run_leaves_a_random_buyer_where_it_began_on_average():
    case = a_case(targets(4.0, 2.0, 3.0, 1.0))
    firsts = [bought(case, [row]).decisions[0].regret for row in range(4)]
    assert np.mean(firsts) == pytest.approx(case.initial_regret) == 1.5


def test_regret_is_that_of_the_pool_mean_until_the_first_target_run():
    table = a_table([("low", 0.5, 0.1), ("top", 2.0, 3.0), ("top", 2.0, 1.0)])
    found = bought(a_case(table), [0, 1, 2])
    assert [d.regret for d in found.decisions] == [1.0, 2.0, 0.0]
    assert [d.total_cost for d in found.decisions] == [0.25, 1.25, 2.25]
    assert found.runs_bought == {"low": 1, "top": 2}


def test_every_row_is_charged_its_own_cost_over_the_mean_cost_of_a_target_run():
    table = a_table([("low", 3.0, 1.0), ("top", 20.0, 2.0), ("top", 40.0, 1.0)])
    found = bought(a_case(table), [0, 1, 2])
    assert [d.cost for d in found.decisions] == pytest.approx([0.1, 2 / 3, 4 / 3])
    assert found.score.cost_to_best == pytest.approx(2.1)


def test_a_purchase_fits_the_budget_and_the_replay_ends_when_nothing_does():
    table = a_table([("low", 0.5, 1.0), ("low", 0.5, 1.0), *[("top", 1.0, float(i)) for i in range(5)]])
    found = bought(a_case(table), [6, 5, 4, 0, 1, 3, 2], budget=3.7)
    assert [d.run for d in found.decisions] == ["r6", "r5", "r4", "r0"]
    assert found.stopped == "budget"


def test_sums_of_prices_that_are_no_binary_fractions_reach_the_budget():
    table = a_table([("low", 0.1, 1.0)] * 10 + [("top", 1.0, 2.0)])
    found = bought(a_case(table), range(11), budget=2.0)
    assert len(found.decisions) == 11
    assert found.stopped == "pool"


def test_the_number_of_decisions_can_be_capped():
    found = bought(a_case(targets(4.0, 2.0, 1.0)), [0, 1, 2], budget=3.0, max_decisions=2)
    assert (len(found.decisions), found.stopped) == (2, "cap")
    assert (found.score.cost_to_best, found.score.success) == (3.0, False)


def test_replicates_are_bought_one_by_one_in_the_order_of_the_table():
    table = a_table([("top", 1.0, 2.0, 0), ("top", 1.0, 1.0, 0), ("top", 1.0, 3.0, 1)])
    found = bought(a_case(table), [0, 1, 2])
    assert [d.run for d in found.decisions] == ["r0", "r1", "r2"]
    assert [d.regret for d in found.decisions] == [1.0, 0.0, 0.0]


def test_a_recommended_mixture_is_judged_by_the_mean_of_its_replicates():
    table = a_table([("top", 1.0, 2.0, 0), ("top", 1.0, 1.0, 0), ("top", 1.0, 3.0, 1)])
    case = a_case(table)
    assert [case.recommendation_regret(case.pool.mixture(row)) for row in (0, 1, 2)] == [0.5, 0.5, 2.0]


def test_failed_runs_cost_money_and_show_their_finite_columns_only():
    table = replace(
        targets(NAN, 2.0, 1.0), columns={"loss/x": np.array([NAN, 2.0, 1.0]), "loss/y": np.array([0.3, 0.2, NAN])}
    )
    case, seen = a_case(table), []

    class Witness(Buyer):
        def propose(self, history, num, *, budget):
            seen.append(history)
            return super().propose(history, num, budget=budget)

    found = play(Witness(case, [0, 1, 2]), case, budget=9.0)
    assert [(d.value, d.regret, d.total_cost) for d in found.decisions] == [(None, 0.5, 1), (2, 1, 2), (1, 0, 3)]
    assert [dict(o.losses) for o in seen[2].observations] == [{"y": 0.3}, {"x": 2.0, "y": 0.2}]


def test_a_run_with_nothing_finite_is_abandoned():
    case = a_case(targets(NAN, 2.0, 1.0))
    history = case.table.history(np.array([0]))
    assert history.trials[0].status is Status.ABANDONED
    assert history.observations == ()


def test_recommending_a_mixture_that_failed_counts_as_the_worst_target_row():
    case = a_case(targets(NAN, 2.0, 1.0))
    assert case.recommendation_regret(case.pool.mixture(0)) == 1.0


def test_an_optimizer_sees_only_what_it_has_bought():
    case, sizes = a_case(targets(4.0, 2.0, 1.0)), []

    class Witness(Buyer):
        def propose(self, history, num, *, budget):
            sizes.append((len(history.trials), len(history.observations), round(budget, 6)))
            return super().propose(history, num, budget=budget)

    play(Witness(case, [2, 0]), case, budget=5.0)
    assert sizes == [(0, 0, 5.0), (1, 1, 4.0), (2, 2, 3.0)]
    assert all(trial.role is Role.SEARCH for trial in case.table.history().trials)


def test_proposing_what_is_not_in_the_pool_is_our_mistake():
    case = a_case(targets(4.0, 2.0))

    class Stray(Buyer):
        def propose(self, history, num, *, budget):
            return [Proposal(Mixture.uniform(self.case.table.domains), "top", None, "elsewhere")]

    with pytest.raises(AssertionError, match="not in the pool"):
        play(Stray(case, []), case, budget=2.0)


def test_recommending_a_mixture_without_a_target_row_is_our_mistake():
    case = a_case(a_table([("low", 0.1, 1.0), ("top", 1.0, 2.0), ("top", 1.0, 1.0)]))
    with pytest.raises(AssertionError, match="no row at top"):
        case.recommendation_regret(case.pool.mixture(0))


def test_buying_a_row_twice_is_our_mistake():
    case = a_case(targets(4.0, 2.0, 1.0))

    class Forgetful(Buyer):
        def propose(self, history, num, *, budget):
            return super().propose(History(), num, budget=budget)

    with pytest.raises(AssertionError, match="bought already"):
        play(Forgetful(case, [0]), case, budget=3.0)


def test_equal_objectives_everywhere_have_no_regret():
    found = bought(a_case(targets(0.1, 0.1, 0.1)), [0])
    assert (found.score.area, found.score.regret, found.score.cost_to_best) == (0.0, 0.0, 1.0)


def test_one_target_row_has_no_regret():
    found = bought(a_case(a_table([("low", 0.1, 1.0), ("low", 0.1, 2.0), ("top", 1.0, 2.0)])), [0, 2])
    assert (found.score.area, found.score.regret, found.score.success) == (0.0, 0.0, True)


def test_scores_are_maximized():
    table = targets(4.0, 2.0, 1.0)
    table = replace(table, columns={"score/quiz": np.array([0.1, 0.9, 0.4])})
    assert bought(a_case(table, "score/quiz"), [1]).score.regret == 0.0


def test_an_optimizer_that_proposes_nothing_ends_the_replay():
    found = bought(a_case(targets(4.0, 2.0, 1.0)), [])
    assert (found.decisions, found.stopped, found.score.area) == ((), "optimizer", 1.0)
    assert found.recommendation_regret == 3.0


def test_a_replay_survives_json():
    found = bought(a_case(a_table([("low", 0.1, NAN), ("top", 1.0, 2.0), ("top", 1.0, 1.0)])), [0, 1, 2])
    assert Replay.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("table", "target", "expression", "message"),
    [
        (targets(1.0), "top", "loss/x", "nothing to search"),
        (targets(1.0, 2.0), "60m", "loss/x", r"unknown fidelity '60m'; the table has top"),
        (targets(1.0, 2.0), "top", "loss/y", r"unknown column 'loss/y'; available are loss/x"),
        (a_table([("low", 1.0, 1.0), ("top", 1.0, NAN)]), "top", "loss/x", "no run at top has a finite objective"),
    ],
)
def test_a_case_that_cannot_be_searched_is_refused(table, target, expression, message):
    with pytest.raises(ConfigError, match=message):
        Case.of(table, target, expression)


@pytest.mark.parametrize("budget", [0.04, 0.0, -1.0, NAN, float("inf")])
def test_a_budget_that_pays_no_run_is_refused(budget):
    case = a_case(a_table([("low", 0.05, 1.0), ("top", 1.0, 2.0), ("top", 1.0, 1.0)]))
    with pytest.raises(ConfigError, match=r"pay the cheapest run \(0\.05 runs of top\)"):
        bought(case, [0], budget=budget)


def test_an_unknown_optimizer_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"unknown optimizer 'best'; known are mfbo"):
        replay(a_case(targets(4.0, 2.0)), "best", seed=0, budget=2.0)


@pytest.mark.parametrize("name", ["random"])
def test_random_finds_the_best_row_in_the_middle_of_the_pool_on_average(name):
    case = a_case(targets(4.0, 2.0, 3.0, 1.0, 5.0))
    costs = [replay(case, name, seed=seed, budget=5.0).score.cost_to_best for seed in range(200)]
    # Uniform on 1..5: mean 3, standard deviation sqrt(2); three standard errors of 200 seeds.
    assert abs(np.mean(costs) - 3.0) < 3 * np.sqrt(2 / 200)


@pytest.mark.parametrize("name", ["random"])
def test_one_domain_is_a_pool_of_replicates(name):
    table = a_table([("top", 1.0, loss) for loss in (2.0, 1.0, 3.0)], domains=("a",))
    found = replay(a_case(table), name, seed=0, budget=3.0)
    assert [d.run for d in found.decisions] == ["r0", "r1", "r2"]
    assert found.score.cost_to_best == 2.0


@pytest.mark.parametrize("name", sorted({*names()} - {"sobol"} - NEED_PREDICTOR))
def test_every_optimizer_plays_by_the_rules_and_plays_the_same_again(name):
    pytest.importorskip("lightgbm")  # an extra; the rivals with trees need it
    table = a_table([*[("low", 0.2, 1.0 + i) for i in range(6)], *[("top", 1.0, 2.0 * i, i) for i in range(6)]])
    case = a_case(table)
    one, two = (replay(case, name, seed=3, budget=2.0, max_decisions=4) for _ in range(2))
    assert 1 <= len(one.decisions) == len({d.run for d in one.decisions})
    assert one.decisions[-1].total_cost <= 2.0 + 1e-9
    assert [replace(d, seconds=0.0) for d in one.decisions] == [replace(d, seconds=0.0) for d in two.decisions]
    assert one.score == two.score


def test_a_replay_that_ends_at_the_best_row_has_the_score_of_the_whole_one():
    case = a_case(targets(4.0, 1.0, *range(2, 12)))
    whole, short = (replay(case, "random", seed=0, budget=12.0, until_best=until) for until in (False, True))
    assert short.score == whole.score
    assert short.stopped == "best"
    assert short.decisions[-1].regret == 0
    assert len(short.decisions) < len(whole.decisions)


def test_the_pool_of_a_case_holds_no_result():
    case = a_case(targets(4.0, 2.0))
    assert isinstance(case.task(0).pool, Pool)
    assert set(vars(case.task(0).pool)) == {"domains", "weights", "fidelities", "prices"}
    assert "mfbo" in names()
