"""The acquisition value: laws of the knowledge gradient."""

import numpy as np
import pytest
import torch

from mixopt import Constraints, History, Ladder, Mixture, Role, Trial
from mixopt.convex import KLPenalty, Reduction
from mixopt.search import simplex
from mixopt.search.acquisition import NUM_NORMALS, Beliefs, KnowledgeGradient, antithetic_normals
from mixopt.search.encoding import Encoder, Evidence
from mixopt.search.problems import SyntheticEvaluator, SyntheticPredictor, SyntheticProblem, finished
from mixopt.search.surrogate import Surrogate

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
