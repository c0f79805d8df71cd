"""Trust in a predictor: known correlations, intervals that cover, and what is left out."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import spearmanr

from mixopt import History, Ladder, Mixture, Objective, Observation, Role, Trial
from mixopt.objective import EvalSet
from mixopt.trust import NOT_TRUSTED, TRUSTED, UNCLEAR, agreements, at_chance, rank_interval, spearman

NAMES = ("a", "b", "c")
LADDER = Ladder.from_flops([("low", "m", 1, 10, 1.0), ("top", "m", 1, 40, 4.0)], 0.05)
OBJECTIVE = Objective.parse("mean(loss/x, loss/y)", ["loss/x", "loss/y"])


@dataclass(frozen=True)
class Linear:
    """Predicts loss/x as 2 + a * w_0 and loss/y as 3 - w_1."""

    slope: float = 1.0
    domains: tuple[str, ...] = NAMES
    columns: tuple[str, ...] = ("loss/x", "loss/y")

    def predict(self, weights):
        return np.stack([2 + self.slope * weights[:, 0], 3 - weights[:, 1]], axis=1)

    def gradient(self, weights):
        return np.broadcast_to([[self.slope, 0, 0], [0, -1.0, 0]], (len(weights), 2, 3))


def measured(num, *, rung="top", role=Role.SEARCH, noise=0.0, shift=0.5, seed=0, weights=None):
    """Runs whose losses are those of `Linear` and a shift."""
    rng = np.random.default_rng(seed)
    drawn = rng.dirichlet(np.ones(3), num) if weights is None else weights
    trials = tuple(
        Trial(f"{role}-{rung}-{seed}-{i}", role, Mixture(NAMES, w), rung, i, "t") for i, w in enumerate(drawn)
    )
    values = Linear().predict(drawn) + shift + noise * rng.standard_normal((len(drawn), 2))
    losses = [dict(zip("xy", row.tolist(), strict=True)) for row in values]
    return History(trials, tuple(Observation(t.id, rung, found) for t, found in zip(trials, losses, strict=True)))


def joined(*parts):
    return History(sum((p.trials for p in parts), ()), sum((p.observations for p in parts), ()))


def found(history, predictor=None, **options):
    rows = agreements(predictor or Linear(), history, LADDER, **options)
    return {row.column: row for row in rows}


def test_the_rank_correlation_is_scipys_also_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, 12).astype(float), rng.normal(size=12)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(np.ones(5), np.arange(5.0)) is None


@pytest.mark.parametrize("truth", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("num", [6, 8, 12, 20])
def test_ninety_percent_intervals_cover_the_rank_correlation_of_normal_pairs(truth, num):
    """2,000 draws, whose share is known to 0.007: 0.87 to 0.98 where the aim is 0.90."""
    rng, rho = np.random.default_rng(0), 2 * np.sin(np.pi * truth / 6)
    x = rng.normal(size=(2000, num))
    y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)
    ranks = [values.argsort(axis=1).argsort(axis=1) for values in (x, y)]
    found = 1 - 6 * np.square(ranks[0] - ranks[1]).sum(axis=1) / (num * (num**2 - 1))
    ends = {rank: rank_interval(rank, num) for rank in set(found.tolist())}
    assert 0.87 < np.mean([ends[rank][0] <= truth <= ends[rank][1] for rank in found.tolist()]) < 0.985


def test_a_shifted_predictor_is_trusted_and_its_shift_found():
    row = found(measured(12, shift=0.5))["loss/x"]
    assert row.verdict == TRUSTED
    assert (row.rank, row.num_mixtures, row.fidelity) == (pytest.approx(1), 12, "top")
    assert (row.shift, row.error) == (pytest.approx(0.5), pytest.approx(0, abs=1e-9))
    assert row.spread > 0.1


def test_a_predictor_with_the_wrong_sign_is_not_trusted():
    rows = found(measured(12), Linear(-1.0))
    assert (rows["loss/x"].verdict, rows["loss/y"].verdict) == (NOT_TRUSTED, TRUSTED)
    assert rows["loss/x"].rank == pytest.approx(-1)


def test_an_error_after_the_shift_above_the_spread_is_not_trusted_however_good_the_ranks():
    row = found(measured(12), Linear(2.5))["loss/x"]
    assert row.rank == pytest.approx(1)
    assert (row.error > row.spread, row.verdict) == (True, NOT_TRUSTED)


def test_few_mixtures_are_unclear_and_four_have_no_interval():
    assert found(measured(5, noise=0.1))["loss/x"].verdict == UNCLEAR
    row = found(measured(4))["loss/x"]
    assert (row.rank, row.low, row.high, row.verdict) == (None, None, None, UNCLEAR)
    assert found(History()) == {}


def test_the_error_is_that_of_every_value_from_the_mean_of_the_others():
    row = found(measured(9, noise=0.1))["loss/y"]
    history = measured(9, noise=0.1)
    weights = np.array([t.mixture.weights for t in history.trials])
    left = np.array([o.losses["y"] for o in history.observations]) - Linear().predict(weights)[:, 1]
    errors = [value - np.delete(left, i).mean() for i, value in enumerate(left)]
    assert row.error == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_experts_say_nothing_and_replicates_count_once():
    weights = np.random.default_rng(1).dirichlet(np.ones(3), 8)
    once = measured(8, weights=weights)
    experts = measured(3, weights=np.eye(3), role=Role.EXPERT, shift=9.0)
    low, high = (measured(8, weights=weights, seed=seed, shift=shift) for seed, shift in ((1, 0.4), (2, 0.6)))
    assert found(joined(experts, once)) == found(once)
    both = found(joined(low, high))["loss/x"]
    assert both.num_mixtures == 8
    assert both.shift == pytest.approx(0.5)
    assert both.error == pytest.approx(0, abs=1e-9)


def test_the_target_is_looked_at_once_eight_mixtures_reached_it_else_the_rung_with_most():
    many = measured(12, rung="low", seed=3)
    assert found(joined(many, measured(8)))["loss/x"].fidelity == "top"
    assert found(joined(many, measured(7)))["loss/x"].fidelity == "low"
    assert found(joined(measured(3, rung="low", seed=3), measured(3)))["loss/x"].fidelity == "top"


def test_the_objective_is_compared_where_all_its_columns_are_known():
    rows = found(measured(10, noise=0.05), objective=OBJECTIVE)
    assert list(rows) == ["loss/x", "loss/y", "objective"]
    assert rows["objective"].shift == pytest.approx((rows["loss/x"].shift + rows["loss/y"].shift) / 2)
    other = Objective.parse("score/q", ["score/q"])
    assert list(found(measured(10), objective=other)) == ["loss/x", "loss/y"]


def test_units_rescale_levels_and_leave_ranks_and_verdict():
    row = found(measured(10, noise=0.02))["loss/x"]
    other = row.in_units(2.0)
    assert (other.shift, other.error, other.spread) == (2 * row.shift, 2 * row.error, 2 * row.spread)
    assert (other.rank, other.low, other.verdict) == (row.rank, row.low, row.verdict)


# --- tasks at chance ----------------------------------------------------------


def on_a_task(*accuracies, role=Role.EXPERT):
    mixture = Mixture.uniform(("a", "b"))
    trials = [Trial(f"t{i}", role, mixture, "top", i, "test", label=f"d{i}") for i in range(len(accuracies))]
    seen = [Observation(f"t{i}", "top", {"quiz": 2.0}, {"quiz": a}) for i, a in enumerate(accuracies)]
    return History(tuple(trials), tuple(seen))


QUIZ = EvalSet("quiz", 100, 400, "multiple_choice", "f", num_questions=200, chance=0.25)
ON_QUIZ = Objective.parse("score/quiz", QUIZ.columns)


def test_a_task_that_one_expert_clearly_beats_may_be_searched_on():
    assert at_chance(on_a_task(0.25, 0.24, 0.40), [QUIZ], ON_QUIZ) == ()


def test_a_task_at_which_all_guess_is_named_with_its_numbers():
    (said,) = at_chance(on_a_task(0.25, 0.29, 0.22), [QUIZ], ON_QUIZ)
    assert said == "score/quiz (best of 3 experts 0.290 on 200 questions, guessing 0.250)"


def test_the_best_of_many_experts_must_be_better_to_beat_chance():
    # 62 of 200: 0.03 by guessing, so enough for one expert and not for eight.
    assert at_chance(on_a_task(0.31), [QUIZ], ON_QUIZ) == ()
    assert at_chance(on_a_task(0.31, *[0.25] * 7), [QUIZ], ON_QUIZ) != ()


def test_only_accuracies_of_the_objective_measured_on_experts_are_tested():
    assert at_chance(on_a_task(0.25), [QUIZ], Objective.parse("loss/quiz", QUIZ.columns)) == ()
    assert at_chance(on_a_task(0.25, role=Role.SEARCH), [QUIZ], ON_QUIZ) == ()
