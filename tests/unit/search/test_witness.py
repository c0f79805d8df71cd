"""What a target run tells of the cheap rungs: laws of the expected log Bayes factor."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from mixopt import Constraints, History, Ladder, Mixture, Role, Trial
from mixopt.search import simplex
from mixopt.search.encoding import Encoder, Evidence
from mixopt.search.problems import SyntheticEvaluator, SyntheticProblem, finished
from mixopt.search.surrogate import Surrogate
from mixopt.search.witness import Witness

torch.set_num_threads(1)

LADDER = Ladder.from_flops([("low", "m", 10, 100, 1.0), ("top", "m", 10, 1600, 16.0)], 0.02)
PROBLEM = SyntheticProblem.random(4, 3, seed=2, noise=0.01)
SIMPLEX = Constraints.simplex(PROBLEM.domains)
FRESH = 1000.0


def points(num, seed):
    return torch.tensor(simplex.sample(SIMPLEX, num, np.random.default_rng(seed)))


@pytest.fixture(scope="module")
def columns():
    """Three columns that have seen ten cheap runs and one at the target."""
    rungs = ["low"] * 10 + ["top"]
    runs = [
        Trial(f"s{i}", Role.SEARCH, Mixture(PROBLEM.domains, w), rung, i, "t")
        for i, (w, rung) in enumerate(zip(points(11, 0).numpy(), rungs, strict=True))
    ]
    history = finished(History(), runs, SyntheticEvaluator(PROBLEM, LADDER))
    names = tuple(f"loss/e{j}" for j in range(3))
    surrogate = Surrogate(Encoder.of(None, SIMPLEX, 0), Evidence.of(history, LADDER, PROBLEM.domains), names)
    with torch.no_grad():
        return surrogate.encoder, tuple(map(surrogate.column, names))


def nats(columns, weights):
    with torch.no_grad():
        return Witness(columns[0], columns[1]).nats(weights)


def test_it_is_the_divergence_of_what_the_runs_would_show(columns):
    encoder, (column, *_) = columns
    weights = points(20, 1)
    with torch.no_grad():
        rows = column.rows(encoder.encode(weights), column.target)
        shown = [
            Normal(one.mean(rows), (one.std(rows) ** 2 + one.deviation**2 * one.posterior.kernel.noise(rows)).sqrt())
            for one in (column, column.linked(torch.zeros(1, dtype=torch.float64)))
        ]
        expected = kl_divergence(*shown)
    assert torch.allclose(nats((encoder, (column,)), weights), expected)
    assert float(expected.min()) > 0


def test_columns_add_up(columns):
    encoder, several = columns
    weights = points(20, 1)
    assert torch.allclose(nats(columns, weights), sum(nats((encoder, (column,)), weights) for column in several))


def test_rungs_without_links_have_nothing_to_tell(columns):
    encoder, several = columns
    unlinked = tuple(column.linked(torch.zeros(1, dtype=torch.float64)) for column in several)
    assert float(nats((encoder, unlinked), points(20, 1)).abs().max()) < 1e-12


def test_a_stronger_link_has_more_to_tell(columns):
    encoder, several = columns
    weak, strong = (tuple(c.linked(torch.tensor([link])) for c in several) for link in (0.3, 0.9))
    weights = points(20, 1)
    assert bool((nats((encoder, strong), weights) > nats((encoder, weak), weights)).all())


def test_the_same_run_again_tells_less(columns):
    weights = points(2, 1)
    with torch.no_grad():
        witness = Witness(*columns)
        later = witness.believe(weights[0], torch.tensor([1]), FRESH)
        assert float(later.nats(weights[:1])) < float(witness.nats(weights[:1]))
