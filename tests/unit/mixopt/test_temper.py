"""The temper is found where runs follow one, and stays 0 where they do not."""

import numpy as np
import pytest

from mixopt import MixtureError
from mixopt.blocks import Temper
from mixopt.mde import MDE
from mixopt.passages import Passages
from mixopt.scores import ExpertScores
from mixopt.temper import fit_temper

K, T = 3, 1500
NAMES, SETS = tuple("abc"), ("x", "y")
COLUMNS = [f"loss/{name}" for name in SETS]


def ensemble():
    sets = []
    for seed, name in enumerate(SETS):
        rng = np.random.default_rng(seed)
        domain = np.repeat(rng.integers(0, K, T // 50), 50)
        skill = np.where(domain == np.arange(K)[:, None], -1.5, -2.0)
        array = (skill - rng.exponential(1.0, (K, T))).astype(np.float32)
        sets.append(ExpertScores(Passages(name, np.arange(0, T + 1, 50)), NAMES, tuple(array)))
    return MDE(NAMES, sets)


def mixtures(num):
    return np.random.default_rng(3).dirichlet(np.ones(K), num)


def measured(temper, num, noise=0.0):
    """Losses that follow a temper, a shift per column and noise."""
    losses = ensemble().with_temper(temper).predict(mixtures(num), COLUMNS) + np.array([0.3, -0.2])
    return losses + noise * np.random.default_rng(4).standard_normal(losses.shape)


@pytest.mark.parametrize("tau", [0.1, 0.3, 1.0])
def test_the_temper_that_made_the_losses_is_found(tau):
    found = fit_temper(ensemble(), mixtures(8), measured(Temper(tau), 8, noise=1e-4), COLUMNS)
    assert found.temper == Temper(tau)
    assert found.errors[0] > found.errors[found.tempers.index(found.temper)]


def test_a_cap_is_found_too():
    truth = Temper(1.0, cap=1.0)
    found = fit_temper(ensemble(), mixtures(8), measured(truth, 8, noise=1e-4), COLUMNS, caps=(1.0, 4.0, np.inf))
    assert found.temper == truth


def test_losses_of_plain_mde_keep_it():
    assert fit_temper(ensemble(), mixtures(8), measured(Temper(), 8, noise=1e-3), COLUMNS).temper == Temper()


def test_noise_that_hides_the_temper_keeps_plain_mde():
    assert fit_temper(ensemble(), mixtures(8), measured(Temper(0.3), 8, noise=1.0), COLUMNS).temper == Temper()


def test_a_shift_of_a_column_changes_nothing():
    losses = measured(Temper(0.3), 8, noise=1e-3)
    one, two = (fit_temper(ensemble(), mixtures(8), losses + shift, COLUMNS) for shift in ([0, 0], [5.0, -2.0]))
    assert one.temper == two.temper
    assert one.errors == pytest.approx(two.errors, abs=1e-9)


@pytest.mark.parametrize("num", [0, 1, 3])
def test_few_runs_keep_plain_mde(num):
    assert fit_temper(ensemble(), mixtures(8)[:num], measured(Temper(0.3), 8)[:num], COLUMNS).temper == Temper()


def test_missing_measurements_are_left_out():
    losses = measured(Temper(0.3), 10, noise=1e-4)
    losses[0], losses[1, 0] = np.nan, np.nan
    assert fit_temper(ensemble(), mixtures(10), losses, COLUMNS).temper == Temper(0.3)


def test_errors_are_those_of_runs_left_out_of_the_shift():
    losses, weights = measured(Temper(), 5, noise=0.1), mixtures(5)
    residuals = losses - ensemble().predict(weights, COLUMNS)
    direct = [residuals[m] - np.delete(residuals, m, axis=0).mean(axis=0) for m in range(5)]
    assert fit_temper(ensemble(), weights, losses, COLUMNS).errors[0] == pytest.approx(
        np.sqrt(np.mean(np.square(direct)))
    )


def test_scores_and_wrong_shapes_are_refused():
    with pytest.raises(MixtureError, match="give losses only"):
        fit_temper(ensemble(), mixtures(4), np.zeros((4, 1)), ["score/x"])
    with pytest.raises(MixtureError, match=r"expected \(4, 2\) measured losses, got shape \(3, 2\)"):
        fit_temper(ensemble(), mixtures(4), np.zeros((3, 2)), COLUMNS)
