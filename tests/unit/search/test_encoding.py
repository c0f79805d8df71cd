"""What the surrogate sees: predictions that are remembered are the same ones, slopes included."""

import numpy as np
import torch

from mixopt import Constraints
from mixopt.search import encoding, simplex
from mixopt.search.encoding import Encoder
from mixopt.search.problems import SyntheticPredictor, SyntheticProblem

PROBLEM = SyntheticProblem.random(4, 3, seed=2)
SIMPLEX = Constraints.simplex(PROBLEM.domains)


class Counting(SyntheticPredictor):
    """Counts what it is asked for."""

    def predict(self, weights):
        asked.append(len(weights))
        return super().predict(weights)


asked = []


def points(num, seed):
    return torch.tensor(simplex.sample(SIMPLEX, num, np.random.default_rng(seed)))


def slopes(encoder, weights):
    weights = weights.clone().requires_grad_(True)
    encoder.encode(weights).predicted.square().sum().backward()
    return weights.grad


def test_the_same_mixtures_are_predicted_once():
    encoder = Encoder.of(Counting(PROBLEM), SIMPLEX, 0)
    weights = points(30, 0)
    asked.clear()
    with torch.no_grad():
        first, second = encoder.encode(weights).predicted, encoder.encode(weights.clone()).predicted
        encoder.encode(points(5, 1))
    assert asked == [30, 5]
    assert torch.equal(first, second)


def test_what_is_remembered_does_not_change_with_what_is_done_to_an_answer():
    encoder, weights = Encoder.of(SyntheticPredictor(PROBLEM), SIMPLEX, 0), points(3, 0)
    with torch.no_grad():
        first = encoder.encode(weights).predicted
        expected = first.clone()
        first += 1
        assert torch.equal(encoder.encode(weights).predicted, expected)


def test_slopes_are_those_of_an_encoder_that_remembers_nothing():
    encoder, weights = Encoder.of(SyntheticPredictor(PROBLEM), SIMPLEX, 0), points(6, 0)
    fresh = slopes(Encoder.of(SyntheticPredictor(PROBLEM), SIMPLEX, 0), weights)
    with torch.no_grad():
        encoder.encode(weights)
    assert torch.equal(slopes(encoder, weights), fresh)


def test_memory_is_bounded_and_what_was_used_last_stays(monkeypatch):
    monkeypatch.setattr(encoding, "_REMEMBERED", 2)
    encoder = Encoder.of(Counting(PROBLEM), SIMPLEX, 0)
    asked.clear()
    with torch.no_grad():
        for seed in (1, 2, 1, 3, 1, 2):
            encoder.encode(points(seed, seed))
    assert asked == [1, 2, 3, 2]
