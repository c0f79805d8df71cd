"""Samples of the polytope and the constraints in BoTorch's form."""

import numpy as np
import pytest

from mixopt import Constraints, Group
from mixopt.search import simplex

DOMAINS = ("a", "b", "c", "d")
CONSTRAINTS = Constraints(DOMAINS, np.array([0.1, 0, 0, 0]), np.array([1, 0.5, 0.3, 1]), (Group(("c", "d"), 0.2, 0.6),))


def test_a_longer_sobol_sequence_starts_with_the_shorter_one():
    assert np.array_equal(simplex.sobol(CONSTRAINTS, 5, 3), simplex.sobol(CONSTRAINTS, 33, 3)[:5])
    assert np.array_equal(simplex.sobol(CONSTRAINTS, 4, 3, skip=9), simplex.sobol(CONSTRAINTS, 13, 3)[9:])


def test_sobol_points_fill_the_simplex_evenly():
    """The mean weight of a uniform point is 1 / K; 256 Sobol points are within 1%."""
    assert np.allclose(simplex.sobol(Constraints.simplex(DOMAINS), 256, 0).mean(0), 0.25, atol=0.01)


def test_samples_around_a_center_concentrate_with_strength():
    center = np.array([0.3, 0.3, 0.2, 0.2])
    spread = [
        np.abs(
            simplex.sample_around(center, s, constraints=CONSTRAINTS, num=200, rng=np.random.default_rng(0)) - center
        )
        .sum(-1)
        .mean()
        for s in (5.0, 500.0)
    ]
    assert spread[1] < 0.3 * spread[0]


def test_inequalities_say_the_same_as_the_constraints():
    points = np.random.default_rng(0).dirichlet(np.ones(4), 200)
    matrix, limits = CONSTRAINTS.inequalities()
    ours = np.all([points[:, i.numpy()] @ c.numpy() >= rhs for i, c, rhs in simplex.inequalities(CONSTRAINTS)], axis=0)
    assert np.array_equal(ours, np.all(points @ matrix.T <= limits, axis=-1))
    assert 0 < ours.mean() < 1


def test_cleaning_drops_tiny_weights_and_stays_feasible():
    mixture = simplex.clean(np.array([0.50995, 0.2, 0.29, 0.00005]), CONSTRAINTS)
    assert mixture.weights[3] == 0
    assert CONSTRAINTS.allows(mixture)


@pytest.mark.parametrize(
    ("upper", "free"), [([1.0, 1.0, 1.0, 1.0], True), ([1.0, 0, 0, 0], False), ([0.25] * 4, False)]
)
def test_freedom_means_more_than_one_mixture(upper, free):
    assert simplex.has_freedom(Constraints(DOMAINS, np.zeros(4), np.array(upper))) is free
