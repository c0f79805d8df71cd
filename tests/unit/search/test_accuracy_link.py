"""The link from losses to accuracy: planted links are found, and few runs say that they are few."""

import numpy as np
import pytest
from scipy.special import expit

from mixopt import ConfigError
from mixopt.search.accuracy_link import fit_link

CHANCE, QUESTIONS = 0.25, 400
GRID = np.linspace(2.4, 3.6, 25)


def runs(num, slope, *, shares=(0.5, 0.5), seed=0, residual=0.01):
    """Losses, measured accuracies, and accuracies over endless questions, of a known link."""
    rng = np.random.default_rng(seed)
    losses = 3 + 0.2 * rng.normal(size=(num, len(shares)))
    above = expit(-1 - slope * (losses - 3) / 0.2 @ np.array(shares))
    accuracies = CHANCE + (1 - CHANCE) * above + residual * rng.normal(size=num)
    return losses, rng.binomial(QUESTIONS, np.clip(accuracies, 0, 1)) / QUESTIONS, accuracies


def link(num, slope, **options):
    losses, measured, _ = runs(num, slope, **options)
    return fit_link(losses, measured, chance=CHANCE, num_questions=QUESTIONS)


def test_a_known_link_is_recovered_on_new_mixtures():
    """Binomial noise is 0.023 and the residual 0.01: thirty runs leave about 0.01."""
    losses, _, truth = runs(200, 1.0, seed=1, residual=0.0)
    found = link(30, 1.0)
    assert found.verdict == "linked"
    assert np.sqrt(np.mean((found.predict(losses)[0] - truth) ** 2)) < 0.015


def test_the_shares_of_the_losses_are_learned():
    found = link(40, 1.5, shares=(1.0, 0.0))
    slopes = found.slopes.mean(axis=0)
    assert slopes[0] > 3 * slopes[1]


@pytest.mark.parametrize(("num", "slope"), [(4, 1.0), (8, 0.5), (16, 1.0), (16, 0.0)])
def test_ninety_percent_intervals_cover_at_least_four_fifths(num, slope):
    """Ten links of 50 new mixtures each; measured 0.91 to 0.99."""
    inside = []
    for seed in range(10):
        losses, _, truth = runs(50, slope, seed=100 + seed)
        mean, std = link(num, slope, seed=seed).predict(losses)
        inside.append(np.abs(truth - mean) < 1.645 * std)
    assert np.mean(inside) > 0.8


@pytest.mark.parametrize("num", [0, 3, 20])
def test_accuracy_never_rises_with_a_loss_and_stays_between_chance_and_1(num):
    found = link(num, 0.8)
    points = np.stack(np.meshgrid(GRID, GRID, indexing="ij"), axis=-1)
    mean = found.predict(points.reshape(-1, 2))[0].reshape(25, 25)
    assert all((np.diff(mean, axis=axis) <= 1e-12).all() for axis in (0, 1))
    assert mean.min() >= CHANCE
    assert mean.max() <= 1


def test_without_runs_anything_is_possible_and_few_runs_leave_the_link_unknown():
    assert link(0, 1.0).predict(np.full((1, 2), 3.0))[1][0] > 0.2
    assert {link(num, 1.0).verdict for num in (0, 1, 2)} == {"unknown"}
    assert link(0, 1.0).probability == pytest.approx(0.5, abs=0.01)


def test_more_runs_narrow_the_answer():
    stds = [link(num, 0.7).predict(np.full((1, 2), 3.1))[1][0] for num in (0, 2, 8, 40)]
    assert stds == sorted(stds, reverse=True)


def test_constant_accuracies_give_no_slope():
    found = fit_link(np.linspace(2.5, 3.5, 16)[:, None], np.full(16, 0.4), chance=CHANCE)
    assert found.verdict == "not linked"
    assert np.ptp(found.predict(GRID[:, None])[0]) < 1e-3


def test_accuracies_that_rise_with_the_loss_are_not_linked():
    losses, measured, _ = runs(30, 1.0)
    assert fit_link(6 - losses, measured, chance=CHANCE, num_questions=QUESTIONS).verdict == "not linked"


def test_unknown_numbers_of_questions_leave_their_noise_to_the_residual():
    losses, measured, _ = runs(40, 1.0, residual=0.0)
    known, unknown = (fit_link(losses, measured, chance=CHANCE, num_questions=n) for n in (QUESTIONS, None))
    assert unknown.residuals.mean() > known.residuals.mean() + 0.005


def test_the_unit_of_the_losses_and_the_order_of_runs_change_nothing():
    losses, measured, _ = runs(12, 1.0)
    one = fit_link(losses, measured, chance=CHANCE).predict(losses)
    other = fit_link(3.3 * losses[::-1] + 1, measured[::-1], chance=CHANCE).predict(3.3 * losses + 1)
    assert np.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracies": np.zeros(3)}, r"\(N, J\) losses and \(N,\) accuracies"),
        ({"losses": np.full((4, 1), np.nan)}, "expected finite"),
        ({"chance": 1.0}, r"link\.chance"),
        ({"num_questions": 0}, r"link\.num_questions"),
    ],
)
def test_what_cannot_be_used_is_refused(changes, message):
    arguments = {"losses": np.zeros((4, 1)), "accuracies": np.zeros(4), **changes}
    with pytest.raises(ConfigError, match=message):
        fit_link(arguments.pop("losses"), arguments.pop("accuracies"), **arguments)
