"""What cheap rungs know of the target: pooling over columns, and planted links that are found."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from mixopt import Constraints, Fidelity, Ladder
from mixopt.runs_table import RunsTable
from mixopt.search import gp, links
from mixopt.search.encoding import Encoder, Evidence
from mixopt.search.links import GRID, Link
from mixopt.search.surrogate import Surrogate

torch.set_num_threads(1)

DOMAINS = ("a", "b", "c", "d")
LADDER = Ladder(tuple(Fidelity(name, name, 0, 0, 0.0, cost) for name, cost in (("low", 0.05), ("top", 1.0))))


def peaked(at, width=0.15):
    """Log evidence of a column whose link is known to be tanh(at)."""
    return -0.5 * ((GRID - at) / width) ** 2


def prior_mean(extra=0.0):
    """Mean link on the grid under the prior, its spreads widened by another."""
    usual, doubt = (
        norm.pdf(GRID, mode, np.hypot(spread, extra))
        for mode, spread in ((gp.LINK_MODE, gp.LINK_SPREAD), (links.DOUBT_MODE, links.DOUBT_SPREAD))
    )
    density = (1 - links.DOUBT) * usual / usual.sum() + links.DOUBT * doubt / doubt.sum()
    return float(density @ np.tanh(GRID))


def columns_of(draws, num, signs, seed):
    """`num` smooth columns of mixtures; at the cheap rung times a sign, or another column's if the sign is 0."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(size=(2, num, len(DOMAINS)))
    truth, other = (np.sin(2 * draws @ s.T) + np.sqrt(draws) @ s.T for s in slopes)
    return truth, signs * truth if signs else other


def surrogate(sign, *, seed=0, num_low=30, num_top=12, columns=3):
    """Rungs of disjoint mixtures with a planted relation between them."""
    rng = np.random.default_rng(seed)
    draws = rng.dirichlet(np.ones(len(DOMAINS)), num_low + num_top)
    truth, cheap = columns_of(draws, columns, sign, seed)
    low = np.arange(num_low + num_top) < num_low
    values = np.where(low[:, None], 5 + cheap, 3 + 0.4 * truth) + 0.01 * rng.normal(size=truth.shape)
    names = tuple(f"loss/c{j}" for j in range(columns))
    table = RunsTable(
        DOMAINS,
        tuple(f"r{i}" for i in range(len(draws))),
        tuple(np.where(low, "low", "top").tolist()),
        draws,
        dict(zip(names, values.T, strict=True)),
        np.where(low, 0.05, 1.0),
    )
    evidence = Evidence.of(table.history(), LADDER, DOMAINS)
    return Surrogate(Encoder.of(None, Constraints.simplex(DOMAINS), 0), evidence, names)


def test_flat_evidence_leaves_the_prior():
    found = links.pool([np.zeros(len(GRID))] * 3)
    assert found.typical.mean == pytest.approx(prior_mean(), abs=1e-6)
    # A column varies around the common link: the variances add up, but for the ends of the grid.
    assert np.allclose(found.means, prior_mean(links.COLUMN_SPREAD), atol=0.02)


def test_an_offset_of_the_evidence_means_nothing():
    one, two = (links.pool([peaked(0.5) + offset, peaked(1.0)]) for offset in (0.0, -1e4))
    assert np.allclose(one.means, two.means)
    assert (one.typical.mean, one.typical.low, one.typical.high) == pytest.approx(
        (two.typical.mean, two.typical.low, two.typical.high)
    )


@pytest.mark.parametrize("at", [-1.0, -0.5, 0.0, 0.5, 1.5, 2.5])
def test_a_column_that_knows_its_link_gets_it(at):
    assert links.pool([peaked(at)]).means[0] == pytest.approx(np.tanh(at), abs=0.05)


def test_columns_that_agree_narrow_the_interval():
    one, many = (links.pool([peaked(0.5, 0.5)] * num).typical for num in (1, 13))
    assert many.high - many.low < 0.6 * (one.high - one.low)
    assert many.low < np.tanh(0.5) < many.high


def test_a_column_without_evidence_learns_from_the_others():
    flat = np.zeros(len(GRID))
    alone, with_others = (links.pool(some).means[0] for some in ([flat], [flat, *[peaked(-0.5)] * 8]))
    assert with_others < 0 < alone


def test_the_order_of_columns_changes_nothing():
    evidences = [peaked(-0.5), peaked(0.5, 0.6), peaked(1.5)]
    one, two = links.pool(evidences), links.pool(evidences[::-1])
    assert np.allclose(one.means, two.means[::-1])
    assert one.typical.mean == pytest.approx(two.typical.mean)


def test_the_interval_is_ordered_and_inside_minus_one_and_one():
    for at in (-2.0, 0.0, 3.5):
        link = links.pool([peaked(at)] * 5).typical
        assert -1 < link.low <= link.high < 1


def test_strata_rise_and_average_to_the_mean_links():
    found = links.pool([peaked(0.5, 0.6), peaked(1.0, 0.8), np.zeros(len(GRID))])
    assert found.strata.shape == (links.NUM_STRATA, 3)
    assert np.allclose(found.strata.mean(0), found.means)
    assert (np.diff(found.strata, axis=0) >= -1e-12).all()


def test_before_there_are_target_runs_the_lowest_stratum_doubts_the_sign():
    strata = links.pool([np.zeros(len(GRID))] * 4).strata
    assert (strata[0] < 0).all()
    assert (strata[-1] > 0.9).all()


def test_columns_are_trusted_no_more_than_their_objective():
    high = [peaked(2.0)] * 5
    free, capped = links.pool(high), links.pool(high, peaked(0.3))
    assert (free.means > 0.9).all()
    assert capped.typical.mean < 0.5
    assert (capped.means <= capped.typical.mean).all()
    assert (capped.strata <= free.strata + 1e-12).all()


def test_an_objective_that_shows_nothing_follows_its_columns_loosely():
    columns = [peaked(1.5)] * 5
    without, flat = links.pool(columns).typical, links.pool(columns, np.zeros(len(GRID))).typical
    assert flat.low < without.low <= without.mean
    assert flat.mean > 0.6


def test_a_rung_without_rows_says_nothing_about_its_link():
    found = surrogate(1.0, num_low=0, num_top=8)
    for name in found.pooled:
        assert not links.measure(found.column(name).posterior, 0).any()


@pytest.mark.parametrize("seed", range(3))
def test_a_negative_link_is_found_between_rungs_without_a_common_mixture(seed):
    (link,) = surrogate(-1.0, seed=seed).rung_links()
    assert link.high < 0
    assert link.mean < -0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_positive_link_is_found_between_rungs_without_a_common_mixture(seed):
    (link,) = surrogate(1.0, seed=seed).rung_links()
    assert link.low > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_independent_rungs_are_not_believed_to_be_linked(seed):
    (link,) = surrogate(0.0, seed=seed).rung_links()
    assert link.low <= 0 < link.high
    assert link.mean < prior_mean(gp.LINK_SPREAD)


def test_a_negative_link_turns_the_ranking_of_the_cheap_rung_around():
    found, rng = surrogate(-1.0, num_top=6), np.random.default_rng(9)
    asked = torch.tensor(rng.dirichlet(np.ones(len(DOMAINS)), 40))
    column = found.column("loss/c0")
    with torch.no_grad():
        low, top = (column.mean(column.rows(found.encoder.encode(asked), rung)).numpy() for rung in (0, 1))
    assert np.corrcoef(low, top)[0, 1] < -0.5


SURE, UNSURE = Link(0.8, 0.5, 0.9), Link(0.3, -0.2, 0.7)


@pytest.mark.parametrize(
    ("link", "spent", "targets", "trusted", "dropped"),
    [
        (UNSURE, 0.5, 3, False, True),  # judged: perhaps no link
        (UNSURE, 0.5, 3, True, True),
        (SURE, 5.0, 3, False, False),  # proven: no allowance
        (UNSURE, 0.0, 9, False, False),  # never bought, so never shown
        (UNSURE, 0.6, 0, False, False),  # within the allowance of 0.5 + 0.15
        (SURE, 0.7, 0, False, True),  # beyond it, whatever few runs say
        (SURE, 0.9, 2, False, False),  # each target run adds to it
        (SURE, 0.7, 0, True, False),  # a predictor vouches for the ladder
    ],
)
def test_a_rung_is_dropped_once_judged_or_beyond_its_allowance(link, spent, targets, trusted, dropped):
    reasons = links.unproven(LADDER, [link], spent=[spent, 0.0], targets=targets, trusted=trusted)
    assert set(reasons) == ({"low"} if dropped else set())
    assert all("low is not bought" in reason and "correlation" in reason for reason in reasons.values())


@pytest.mark.filterwarnings("error")
def test_many_sure_columns_are_pooled_without_a_warning():
    pooled = links.pool([peaked(1.5, 0.01)] * 40, peaked(1.5, 0.01))
    assert np.all(np.isfinite(pooled.means))
    assert pooled.typical.mean == pytest.approx(np.tanh(1.5), abs=0.05)
