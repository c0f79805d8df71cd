"""One column's Gaussian process: its covariance and algebra against the textbook, its fit against planted truths."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from mixopt.search import gp

torch.set_num_threads(1)

K = 3
POSITIONS = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
LAYOUT = gp.Layout(K, POSITIONS)
JITTER = 1e-6  # what the module adds to the diagonal before it factors


def rows(num, seed=0, *, rungs=None, trials=None):
    """Encoded inputs like those of real histories: every rung, repeated trials, a predictor's losses."""
    rng = np.random.default_rng(seed)
    where = rng.integers(0, 3, num) if rungs is None else np.broadcast_to(rungs, num)
    groups = rng.integers(-1, 4, num) if trials is None else np.broadcast_to(trials, num)
    parts = [rng.uniform(0, 1, (num, 2 * K)), rng.normal(0, 0.5, (num, K)), rng.normal(size=(num, 1))]
    return torch.tensor(np.column_stack([*parts, where, groups]), dtype=torch.float64)


def kernel(seed=0, *, links=None, layout=LAYOUT):
    """A draw from the prior, one spread wide."""
    modes, spreads = layout.prior()
    theta = modes + spreads * torch.tensor(np.random.default_rng(seed).normal(size=len(modes)))
    drawn = gp.Kernel(layout, theta)
    return drawn if links is None else drawn.with_links(torch.tensor(links, dtype=torch.float64))


def covariance(process, a, b):
    return process.matrix(process.prepare(a), process.prepare(b))


def of_observations(process, where, known):
    """The (N, N) covariance of noisy values."""
    own = process.prepare(where)
    return process.matrix(own, own) + torch.diag(process.noise(own) + known + JITTER)


def by_hand(process, a, b):
    """One entry of the covariance as the module's docstring writes it."""
    value = {name: process.value(name).tolist() for name in process.layout.slices}
    r, s = int(a[-2]), int(b[-2])
    near = math.exp(-abs(float(POSITIONS[r] - POSITIONS[s])))
    p = [*value["link"], 1.0]
    share = value["common"][0] + (1 - value["common"][0]) * (r == s)
    link = p[r] * p[s] + share * math.sqrt(1 - p[r] ** 2) * math.sqrt(1 - p[s] ** 2)
    lengths = np.array(value["length"] * 2)
    distance = math.sqrt(5 * float((((a - b)[: 2 * K].numpy() / lengths) ** 2).sum()))
    matern = (1 + distance + distance**2 / 3) * math.exp(-distance)
    linear = value["linear"][0] ** 2 * float(a[2 * K : 3 * K] @ b[2 * K : 3 * K])
    amplitude = value["amplitude"][0] ** 2 * value["stretch"][r] * value["stretch"][s]
    trial = value["trial"][0] ** 2 * near if a[-1] == b[-1] >= 0 else 0.0
    return 16 + 4 * near + 0.1 * float(a[-3] * b[-3]) * link + amplitude * link * (matern + linear) + trial


def posterior(num=12, seed=0, *, known=None):
    where, rng = rows(num, seed), np.random.default_rng(100 + seed)
    noise = torch.zeros(num, dtype=torch.float64) if known is None else known
    return gp.Posterior(kernel(seed), where, torch.tensor(rng.normal(size=num)), noise)


def fitted(where, values, layout=LAYOUT):
    return gp.fit(where, values, torch.zeros(len(values), dtype=torch.float64), layout)


def textbook(process, where, values, known, asked):
    """Means and variances of Rasmussen and Williams 2006, Eqs. 2.23 and 2.24, with an explicit inverse."""
    inverse = torch.linalg.inv(of_observations(process, where, known))
    across = covariance(process, asked, where)
    rest = covariance(process, asked, asked) - across @ inverse @ across.T
    return across @ inverse @ values, rest


@pytest.mark.parametrize("seed", range(3))
def test_every_entry_of_the_covariance_is_the_formula_of_the_docstring(seed):
    process, a, b = kernel(seed), rows(6, seed), rows(5, seed + 10)
    expected = [[by_hand(process, x, y) for y in b] for x in a]
    assert np.allclose(covariance(process, a, b).numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("links", [None, (-0.95, -0.95), (0.0, 0.95), (0.95, -0.95), (0.0, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_covariances_are_symmetric_and_positive_semi_definite(seed, links):
    where = rows(30, seed)
    matrix = covariance(kernel(seed, links=links), where, where)
    assert torch.allclose(matrix, matrix.T, atol=1e-12)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-9 * float(matrix.diagonal().max())


@pytest.mark.parametrize("seed", range(3))
def test_links_between_rungs_are_correlations_and_those_with_the_target_are_the_hyperparameters(seed):
    process = kernel(seed, links=(-0.6, 0.9))
    assert torch.allclose(process.links.diagonal(), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(process.links[:2, 2], torch.tensor([-0.6, 0.9], dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(process.links).min()) > -1e-12
    assert float(process.links.abs().max()) <= 1 + 1e-12


def test_a_rung_without_a_link_tells_the_target_only_about_the_level():
    low, top = rows(4, 1, rungs=0, trials=-1), rows(4, 2, rungs=2, trials=-1)
    shift = 16 + 4 * math.exp(-1.0)
    assert torch.allclose(covariance(kernel(links=(0.0, 0.5)), low, top), torch.tensor(shift, dtype=torch.float64))


def test_pairs_are_the_diagonal_of_the_matrix():
    process, a, b = kernel(1), rows(9, 1), rows(9, 2)
    one, two = process.prepare(a), process.prepare(b)
    assert torch.allclose(process.pairs(one, two), process.matrix(one, two).diagonal())
    # The matrix expands squares of distances, whose rounding costs half the digits near 0.
    assert torch.allclose(process.pairs(one, one), process.matrix(one, one).diagonal(), atol=1e-6)


def test_noise_is_that_of_the_rows_rung():
    process = kernel(2)
    noise = process.noise(process.prepare(rows(3, rungs=[2, 0, 1])))
    assert torch.allclose(noise, process.value("noise")[[2, 0, 1]].square())


@pytest.mark.parametrize("seed", range(4))
def test_the_log_evidence_is_the_density_of_a_multivariate_normal(seed):
    known = torch.tensor(np.random.default_rng(seed).uniform(0, 0.5, 12))
    found = posterior(seed=seed, known=known)
    matrix = of_observations(found.kernel, found.rows, known).numpy()
    assert found.log_evidence() == pytest.approx(multivariate_normal.logpdf(found.values.numpy(), cov=matrix), rel=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_residuals_left_out_are_those_of_fits_without_the_row(seed):
    found, expected = posterior(9, seed), []
    for row in range(9):
        others = [i for i in range(9) if i != row]
        asked, known = found.rows[row : row + 1], found.known[others]
        mean, rest = textbook(found.kernel, found.rows[others], found.values[others], known, asked)
        spread = rest[0, 0] + found.kernel.noise(found.kernel.prepare(asked))[0] + JITTER
        expected.append(float((found.values[row] - mean[0]) / spread.sqrt()))
    assert np.allclose(found.left_out().numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_posterior_means_and_covariances_are_those_of_the_textbook(seed):
    known = torch.tensor(np.random.default_rng(seed).uniform(0, 0.5, 12))
    found, asked = posterior(seed=seed, known=known), rows(7, seed + 20)
    mean, rest = textbook(found.kernel, found.rows, found.values, known, asked)
    prepared = found.kernel.prepare(asked)
    # The shift's variance of 20 scales costs digits; amplitudes of prior draws are near 1.
    assert torch.allclose(found.mean(prepared), mean, atol=1e-6)
    assert torch.allclose(found.covariance(prepared), rest, atol=1e-6)
    assert torch.allclose(found.variance(prepared), rest.diagonal(), atol=1e-6)


def test_without_rows_the_posterior_is_the_prior():
    nothing, asked = posterior(0), rows(4, 5)
    prepared = nothing.kernel.prepare(asked)
    assert torch.equal(nothing.mean(prepared), torch.zeros(4, dtype=torch.float64))
    assert torch.allclose(nothing.variance(prepared), nothing.kernel.pairs(prepared, prepared))
    assert nothing.log_evidence() == 0


def test_one_more_row_never_widens_the_posterior():
    whole, asked = posterior(12), rows(20, 7)
    part = gp.Posterior(whole.kernel, whole.rows[:8], whole.values[:8], whole.known[:8])
    prepared = whole.kernel.prepare(asked)
    assert bool((whole.variance(prepared) <= part.variance(prepared) + 1e-9).all())


def test_the_order_of_rows_changes_nothing():
    found, order = posterior(12), torch.tensor(np.random.default_rng(3).permutation(12))
    other = gp.Posterior(found.kernel, found.rows[order], found.values[order], found.known[order])
    prepared = found.kernel.prepare(rows(5, 9))
    assert torch.allclose(found.mean(prepared), other.mean(prepared), atol=1e-7)
    assert other.log_evidence() == pytest.approx(found.log_evidence(), rel=1e-9)


def test_known_noise_counts_beside_the_learned_one():
    where, values = rows(1, rungs=2, trials=0), torch.ones(1, dtype=torch.float64)
    trusted, doubted = (
        gp.Posterior(kernel(), where, values, torch.tensor([known], dtype=torch.float64)) for known in (0.0, 9.0)
    )
    prepared = trusted.kernel.prepare(where)
    assert float(doubted.variance(prepared)) > float(trusted.variance(prepared))
    assert float(doubted.mean(prepared)) < float(trusted.mean(prepared))


@pytest.mark.parametrize("num", [0, 1, 3])
def test_fewer_than_four_rows_keep_the_modes_of_the_priors(num):
    found = fitted(rows(num), torch.linspace(-1, 1, num, dtype=torch.float64))
    assert torch.equal(found.theta, LAYOUT.prior()[0])


def test_a_fit_is_deterministic():
    where, values = rows(15), torch.tensor(np.random.default_rng(0).normal(size=15))
    assert torch.equal(fitted(where, values).theta, fitted(where, values).theta)


def test_a_fit_is_at_least_as_likely_as_the_modes():
    where, values = rows(20), torch.tensor(np.random.default_rng(0).normal(size=20))
    modes, spreads = LAYOUT.prior()

    def density(theta):
        known = torch.zeros(20, dtype=torch.float64)
        evidence = gp.Posterior(gp.Kernel(LAYOUT, theta), where, values, known).log_evidence()
        return evidence - 0.5 * float(((theta - modes) / spreads).square().sum())

    assert density(fitted(where, values).theta) > density(modes)


@pytest.mark.parametrize("noise", [0.05, 0.4])
def test_a_planted_noise_level_is_found(noise):
    """Sixty rows at the target, a smooth truth of unit size; within a factor of 1.5 over the two levels."""
    where = rows(60, 4, rungs=2, trials=-1)
    where[:, -3] = 0
    truth = torch.sin(3 * where[:, 0]) + where[:, 1]
    values = truth - truth.mean() + noise * torch.tensor(np.random.default_rng(5).normal(size=60))
    assert float(fitted(where, values).value("noise")[2]) == pytest.approx(noise, rel=0.5)


def test_a_domain_that_matters_gets_a_shorter_length_than_those_that_do_not():
    where = rows(50, 6, rungs=2, trials=-1)
    where[:, -3] = 0
    values = torch.sin(6 * where[:, 1]) + torch.sin(6 * where[:, K + 1])
    lengths = fitted(where, values - values.mean()).value("length")
    assert float(lengths[1]) < 0.5 * float(lengths[[0, 2]].min())


def test_a_rung_without_rows_is_scaled_like_the_others():
    where = rows(30, 7, rungs=2, trials=-1)
    where[:, -3] = 0
    values = 6 * torch.sin(3 * where[:, 0])
    found = fitted(where, values - values.mean())
    assert float(found.value("amplitude")) > 2
    assert torch.allclose(found.value("stretch")[:2], torch.ones(2, dtype=torch.float64), atol=1e-6)
    modes = gp.Kernel(LAYOUT, LAYOUT.prior()[0])
    assert torch.allclose(found.value("link"), modes.value("link"), atol=1e-6)
    assert torch.allclose(found.value("noise")[:2], modes.value("noise")[:2], atol=1e-6)


def test_equal_mixtures_with_different_values_are_noise_and_the_mean_lies_between():
    where = rows(8, 8, rungs=2, trials=-1)
    where[:, -3] = 0
    twice, smooth = torch.cat([where, where]), torch.sin(2 * where[:, 0])
    smooth = smooth - smooth.mean()
    agreeing, differing = torch.cat([smooth, smooth]), torch.cat([smooth - 0.5, smooth + 0.5])
    quiet, noisy = fitted(twice, agreeing), fitted(twice, differing)
    assert float(noisy.value("noise")[2]) > 0.3 > 3 * float(quiet.value("noise")[2])
    found = gp.Posterior(noisy, twice, differing, torch.zeros(16, dtype=torch.float64))
    mean = found.mean(noisy.prepare(where))
    assert bool(((mean > smooth - 0.5) & (mean < smooth + 0.5)).all())


def test_rows_that_are_all_the_same_can_be_fitted():
    where = rows(1, 9, rungs=2, trials=-1).expand(10, -1).clone()
    found = fitted(where, torch.linspace(-1, 1, 10, dtype=torch.float64))
    assert bool(torch.isfinite(found.theta).all())


def test_believing_a_row_keeps_the_means_and_narrows_the_posterior():
    found, asked = posterior(10), rows(5, 12)
    more = found.believe(rows(2, 13))
    prepared = found.kernel.prepare(asked)
    assert torch.allclose(found.mean(prepared), more.mean(prepared), atol=1e-6)
    assert bool((more.variance(prepared) <= found.variance(prepared) + 1e-9).all())
