"""The acquisition value: laws of the knowledge gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mixopt import Constraints, History, Ladder, Mixture, Role, Trial
from mixopt.convex import KLPenalty, Reduction
from mixopt.search import simplex
from mixopt.search.acquisition import ENOUGH_NATS, NUM_NORMALS, Beliefs, KnowledgeGradient, antithetic_normals
from mixopt.search.encoding import Encoder, Evidence
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem, finished
from mixopt.search.surrogate import Surrogate
from mixopt.search.witness import Witness

torch.set_num_threads(1)

LADDER = Ladder.from_flops([("low", "m", 10, 100, 1.0), ("top", "m", 10, 1600, 16.0)], 0.02)
PROBLEM = SyntheticProblem.random(4, 2, seed=2, noise=0.01)
SIMPLEX = Constraints.simplex(PROBLEM.domains)
NORMALS = antithetic_normals(NUM_NORMALS, 2, 0)
FRESH = 1000.0


def points(num, seed):
    return torch.tensor(simplex.sample(SIMPLEX, num, np.random.default_rng(seed)))


def beliefs(kind="sum", kl_weight=0.0, num=6):
    runs = [
        Trial(f"s{i}", Role.SEARCH, Mixture(PROBLEM.domains, w), "top", i, "t")
        for i, w in enumerate(points(num, 0).numpy())
    ]
    history = finished(History(), runs, SyntheticEvaluator(PROBLEM, LADDER))
    encoder = Encoder.of(SyntheticPredictor(PROBLEM), SIMPLEX, 0)
    surrogate = Surrogate(encoder, Evidence.of(history, LADDER, PROBLEM.domains))
    pool = points(80, 1)
    with torch.no_grad():
        encoded = encoder.encode(pool)
    columns = tuple(surrogate.column(f"loss/e{j}") for j in range(2))
    return Beliefs(
        encoder,
        columns,
        Reduction(np.array([0.5, 0.5]), kind),
        KLPenalty(np.full(4, 0.25), kl_weight),
        pool,
        encoded,
        torch.eye(2, dtype=torch.float64),
    )


def gains(state, weights, rung=1, group=FRESH):
    with torch.no_grad():
        return KnowledgeGradient(state, NORMALS, rung, group).gain(
            weights, torch.full((len(weights),), group, dtype=torch.float64)
        )


@pytest.mark.parametrize("kind", ["sum", "max"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_the_value_is_never_negative(kind, kl_weight):
    state = beliefs(kind, kl_weight)
    assert bool((gains(state, points(50, 2)) >= -1e-12).all())


@pytest.mark.parametrize("kind", ["sum", "max"])
def test_the_gradient_matches_finite_differences(kind):
    state = beliefs(kind)
    acquisition = KnowledgeGradient(state, NORMALS, 1, FRESH)
    weights = torch.tensor([[[0.2, 0.3, 0.4, 0.1]]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(acquisition(weights).sum(), weights)
    direction = torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64)
    step = 1e-5 * direction
    with torch.no_grad():
        numeric = (acquisition(weights + step) - acquisition(weights - step)).item() / 2e-5
    assert float((slope[0, 0] * direction).sum()) == pytest.approx(numeric, rel=1e-2, abs=1e-7)


def test_normals_and_their_mirror_images_have_mean_zero():
    assert torch.allclose(NORMALS.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-12)


def test_a_run_that_is_believed_is_worth_less_afterwards():
    state = beliefs()
    candidates = points(40, 2)
    before = gains(state, candidates)
    best = candidates[before.argmax()]
    after = gains(state.believe(best, [1], 500.0), best[None])
    assert float(after[0]) < 0.7 * float(before.max())


def test_believing_a_run_moves_no_mean():
    state = beliefs()
    assert torch.allclose(state.means, state.believe(points(1, 5)[0], [0, 1], 500.0).means, atol=1e-6)


def test_the_target_rung_is_worth_more_than_a_cheap_one():
    state, candidates = beliefs(), points(40, 2)
    assert float(gains(state, candidates, 1).max()) > float(gains(state, candidates, 0).max())


def test_less_is_left_to_gain_with_more_observations():
    candidates = points(40, 2)
    assert float(gains(beliefs(num=80), candidates).max()) < 0.5 * float(gains(beliefs(num=3), candidates).max())


def test_the_value_of_a_sum_is_the_expected_drop_of_the_minimum():
    """Against plain Monte Carlo with 20,000 draws, for the best action of the pool."""
    state = beliefs()
    action = state.pool[gains(state, state.pool).argmax()][None]
    encoded = state.encoder.encode(action)
    moved = torch.zeros(20_000, len(state.pool), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for index, column in enumerate(state.columns):
        kernel = column.posterior.kernel
        own, others = (column.units.rows(e, 1, group) for e, group in ((encoded, FRESH), (state.encoded, -1.0)))
        rows = kernel.prepare(torch.cat([own, others]))
        covariance = column.posterior.covariance(rows)
        step = column.deviation * covariance[0, 1:] / (covariance[0, 0] + kernel.noise(rows)[0]).sqrt()
        moved += 0.5 * (state.means[:, index] + torch.randn(20_000, 1, dtype=torch.float64, generator=generator) * step)
    expected = float(state.objective().min() - moved.min(-1).values.mean())
    assert float(gains(state, action)[0]) == pytest.approx(expected, rel=0.15)  # 128 quasi-random normals


# --- in a closed pool, and at the target -------------------------------------


def closed(**settings):
    return replace(beliefs(**settings), closed=True)


@pytest.mark.parametrize("kind", ["sum", "max"])
@pytest.mark.parametrize("rung", [0, 1])
def test_in_a_closed_pool_the_value_is_never_negative_either(kind, rung):
    state = closed(kind=kind)
    assert bool((gains(state, points(50, 2), rung) >= -1e-12).all())


def test_a_mixture_that_may_be_recommended_itself_is_worth_at_least_as_much():
    candidates = points(40, 2)
    assert bool((gains(beliefs(), candidates) >= gains(closed(), candidates) - 1e-9).all())


def test_a_pool_of_one_mixture_has_nothing_to_gain():
    state = closed()
    alone = replace(state, pool=state.pool[:1], encoded=state.encoder.encode(state.pool[:1]))
    assert float(gains(alone, points(20, 2)).abs().max()) < 1e-12


@pytest.mark.parametrize("kind", ["sum", "max"])
def test_expected_improvement_is_never_negative(kind):
    state = beliefs(kind=kind)
    for verified in ((), (3, 7)):
        assert bool((replace(state, verified=verified).improvement(points(40, 2), NORMALS) >= 0).all())


def test_before_a_target_run_the_yardstick_is_the_average_and_then_the_best_verified():
    state = beliefs()
    assert torch.allclose(state.yardstick, torch.full((80,), 1 / 80, dtype=torch.float64))
    known = replace(state, verified=(3, 7, 11))
    best = min((3, 7, 11), key=lambda i: float(state.objective()[i]))
    assert known.yardstick.nonzero()[:, 0].tolist() == [best]


def test_nothing_improves_on_itself():
    state = replace(beliefs(), verified=(5,))
    # A standard deviation of 1e-6 scales is the floor of the contrast.
    assert float(state.improvement(state.pool[5:6], NORMALS)[0]) < 1e-5


@pytest.mark.parametrize("kind", ["sum", "max"])
def test_expected_improvement_is_that_of_joint_samples(kind):
    """Against 20,000 joint posterior samples, on the best verified mixture."""
    state = replace(beliefs(kind=kind), verified=(5, 9))
    with torch.no_grad():
        samples = state.samples(20_000, 1)
        against = samples[:, int(state.yardstick.argmax())]
        expected = (against[:, None] - samples).clamp_min(0).mean(0)
        found = state.improvement(state.pool, NORMALS)
    worth = expected > 0.2 * expected.max()
    # For a maximum the spread inside it is left out of the yardstick: only the order is kept.
    if kind == "sum":
        assert torch.allclose(found[worth], expected[worth], rtol=0.05)
    assert float(np.corrcoef(found[worth], expected[worth])[0, 1]) > 0.9


def test_errors_that_agree_make_improvements_of_a_sum_larger():
    state, candidates = replace(beliefs(), verified=(5,)), points(40, 2)
    together = replace(state, correlation=torch.full((2, 2), 0.9, dtype=torch.float64).fill_diagonal_(1.0))
    one, two = (s.improvement(candidates, NORMALS) for s in (state, together))
    assert bool((two >= one - 1e-9).all())
    assert float(two.sum()) > float(one.sum())


def test_a_target_run_that_is_believed_verifies_its_mixture():
    state = beliefs()
    assert state.believe(state.pool[4], [0, 1], 500.0).verified == (4,)
    assert state.believe(state.pool[4], [0], 500.0).verified == ()


def test_the_best_mixture_may_be_best_and_one_far_above_the_bar_may_not():
    state = beliefs(num=30)
    order = state.objective().argsort()
    able = state.may_be_best(state.pool)
    assert bool(able[order[0]])
    assert not bool(able[order[-1]])
    assert float(state.objective().min()) <= state.bar <= float(state.objective().max())


def test_samples_have_the_means_and_deviations_of_the_posterior():
    state = beliefs()
    with torch.no_grad():
        samples = state.samples(20_000, 0)
        stds = torch.stack([c.std(r) for c, r in zip(state.columns, state.rows, strict=True)], dim=-1)
    spread = 0.5 * stds.square().sum(-1).sqrt()  # of the mean of two independent columns
    assert float(((samples.mean(0) - state.objective()) / spread).abs().max()) < 0.05
    assert torch.allclose(samples.std(0), spread, rtol=0.05)


def test_the_noise_of_a_run_is_that_of_its_columns_together():
    state = replace(beliefs(), correlation=torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
    with torch.no_grad():
        stds = [
            c.deviation * float(c.posterior.kernel.noise(r.select(torch.tensor([0]))).sqrt())
            for c, r in zip(state.columns, state.rows, strict=True)
        ]
        expected = 0.5 * np.sqrt(stds[0] ** 2 + stds[1] ** 2 + stds[0] * stds[1])
        assert state.run_noise() == pytest.approx(expected, rel=0.02)


def alternatives(state):
    """The same state with what is believed under links from against the target to almost equal."""
    linked = (tuple(c.linked(torch.tensor([link])) for c in state.columns) for link in (-0.7, 0.3, 0.99))
    return tuple(replace(state, columns=columns) for columns in linked)


@pytest.mark.parametrize("num_verified", [0, 2])
def test_a_target_run_is_worth_the_average_over_links(num_verified):
    with torch.no_grad():
        verified = tuple(range(num_verified))
        state = replace(beliefs(), verified=verified)
        others, weights = alternatives(state), points(20, 3)
        averaged = replace(state, alternatives=others).improvement(weights, NORMALS)
        expected = torch.stack([other.improvement(weights, NORMALS) for other in others]).mean(0)
    assert torch.allclose(averaged, expected)


def with_witness(num_columns, num_verified=1):
    """Beliefs after 30 cheap runs and one at the target, with what target runs would tell of the cheap rung."""
    problem = SyntheticProblem.random(4, num_columns, seed=3, noise=0.01)
    runs = [
        Trial(f"s{i}", Role.SEARCH, Mixture(problem.domains, w), "low" if i < 30 else "top", i, "t")
        for i, w in enumerate(points(31, 6).numpy())
    ]
    history = finished(History(), runs, SyntheticEvaluator(problem, LADDER))
    names = tuple(f"loss/e{j}" for j in range(num_columns))
    encoder, pool = Encoder.of(None, SIMPLEX, 0), points(40, 7)
    surrogate = Surrogate(encoder, Evidence.of(history, LADDER, problem.domains), names)
    columns = tuple(map(surrogate.column, names))
    state = Beliefs(
        encoder,
        columns,
        Reduction(np.full(num_columns, 1 / num_columns), "sum"),
        KLPenalty(np.full(4, 0.25), 0.0),
        pool,
        encoder.encode(pool),
        torch.eye(num_columns, dtype=torch.float64),
        verified=tuple(range(num_verified)),
    )
    return replace(state, alternatives=alternatives(state), witness=Witness(encoder, columns))


def average(state, weights):
    return torch.stack([other.improvement(weights, NORMALS) for other in state.alternatives]).mean(0)


def test_the_second_target_run_is_one_that_tells_whether_the_cheap_rung_knows_anything():
    with torch.no_grad():
        state = with_witness(12)
        told = state.witness.nats(state.pool) >= ENOUGH_NATS
        assert bool(told.any())
        found = state.improvement(state.pool, NORMALS)
        assert torch.equal(found, torch.where(told, average(state, state.pool), 0.0))


def test_where_no_target_run_would_tell_the_second_one_doubts_the_cheap_rung():
    with torch.no_grad():
        state = with_witness(1)
        assert float(state.witness.nats(state.pool).max()) < ENOUGH_NATS
        found = state.improvement(state.pool, NORMALS)
        assert torch.equal(found, state.alternatives[0].improvement(state.pool, NORMALS))


@pytest.mark.parametrize("num_verified", [0, 2])
@pytest.mark.parametrize("num_columns", [1, 12])
def test_other_target_runs_need_not_tell(num_columns, num_verified):
    with torch.no_grad():
        state = with_witness(num_columns, num_verified)
        assert torch.equal(state.improvement(state.pool, NORMALS), average(state, state.pool))


def test_what_may_be_best_under_some_link_may_be_bought():
    with torch.no_grad():
        state, weights = beliefs(), points(200, 4)
        others = alternatives(state)
        able = replace(state, alternatives=others).may_be_best(weights)
        assert bool((able >= state.may_be_best(weights)).all())
        for other in others:
            assert bool((able >= other.may_be_best(weights)).all())


def test_a_pending_run_is_believed_under_every_link():
    with torch.no_grad():
        state = beliefs()
        state = replace(state, alternatives=alternatives(state)).believe(points(1, 5)[0], [1], FRESH)
        sizes = {len(column.posterior.values) for other in state.alternatives for column in other.columns}
        assert sizes == {len(state.columns[0].posterior.values)}
