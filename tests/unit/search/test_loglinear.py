"""The log-linear law: what a fit must recover, and what must not matter to it."""

import numpy as np
import pytest

from mixopt.errors import ConfigError
from mixopt.search import loglinear


def planted(num_runs=60, num_domains=5, num_columns=3, seed=0):
    rng = np.random.default_rng(seed)
    levels = rng.uniform(1.0, 3.0, num_columns)
    slopes = rng.uniform(-1.5, 0.5, (num_columns, num_domains))
    weights = rng.dirichlet(np.ones(num_domains), num_runs)
    return levels, slopes, weights, levels + np.exp(weights @ slopes.T)


@pytest.mark.parametrize("num_domains", [2, 5, 17])
def test_a_planted_law_is_recovered(num_domains):
    levels, slopes, weights, values = planted(3 * (num_domains + 1), num_domains)
    law = loglinear.fit(weights, values)
    assert np.allclose(law.levels, levels, atol=1e-3)
    assert np.allclose(law.slopes, slopes, atol=1e-3)


def test_a_law_predicts_mixtures_it_has_not_seen():
    levels, slopes, weights, values = planted()
    corners = np.eye(5)
    assert np.allclose(loglinear.fit(weights, values).predict(corners), levels + np.exp(slopes.T), atol=1e-3)


def test_predictions_do_not_depend_on_the_order_of_the_domains():
    _, _, weights, values = planted()
    values = values + np.random.default_rng(1).normal(0, 0.01, values.shape)
    order, new = [3, 0, 4, 2, 1], np.random.default_rng(2).dirichlet(np.ones(5), 20)
    straight = loglinear.fit(weights, values).predict(new)
    permuted = loglinear.fit(weights[:, order], values).predict(new[:, order])
    assert np.allclose(straight, permuted, atol=1e-4)


def test_a_column_does_not_depend_on_the_others():
    _, _, weights, values = planted()
    values = values + np.random.default_rng(1).normal(0, 0.01, values.shape)
    together = loglinear.fit(weights, values).predict(weights)
    alone = loglinear.fit(weights, values[:, 1:2]).predict(weights)
    assert np.allclose(together[:, 1:2], alone, atol=1e-4)


def test_negated_scores_below_zero_are_fitted_as_well():
    _, _, weights, values = planted()
    law = loglinear.fit(weights, values - 4.0)
    assert np.allclose(law.predict(weights), values - 4.0, atol=1e-6)


def test_one_wild_run_hardly_moves_the_law():
    """The Huber loss grows linearly beyond 0.02, so 59 exact runs outweigh one that is off by 1."""
    _, _, weights, values = planted()
    wild = values.copy()
    wild[7] += 1.0
    assert np.abs(loglinear.fit(weights, wild).predict(weights) - values).max() < 0.01


def test_fewer_runs_than_parameters_still_give_a_law_through_the_runs():
    _, _, weights, values = planted(num_runs=4)
    law = loglinear.fit(weights, values)
    assert np.allclose(law.predict(weights), values, atol=0.01)
    assert np.isfinite(law.predict(np.eye(5))).all()


@pytest.mark.parametrize("num_domains", [1, 64])
def test_a_constant_column_is_predicted_as_it_is(num_domains):
    weights = np.random.default_rng(0).dirichlet(np.ones(num_domains), 10)
    assert np.allclose(loglinear.fit(weights, np.full((10, 1), 2.5)).predict(weights), 2.5, atol=1e-3)


def test_failed_runs_are_refused():
    _, _, weights, values = planted()
    values[3, 1] = np.nan
    with pytest.raises(ConfigError, match="failed"):
        loglinear.fit(weights, values)
    with pytest.raises(ConfigError, match="at least one run"):
        loglinear.fit(weights[:0], values[:0])
