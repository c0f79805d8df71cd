"""How much a cheaper rung knows of the target: one link per column, learned together.

A column has few target runs, so its own link is hardly known; but columns of one table
tend to have similar links. Per column the evidence is measured on a grid of links, all
other hyperparameters fixed; then atanh(link_j) ~ N(m, 0.4^2) around a common m with the
prior of `gp.py`, and column j gets its posterior mean, in which m has learned from the
other columns (empirical Bayes; Gelman et al., Bayesian Data Analysis, Section 5.4). A
mean of a wide posterior is near 0: what is not known to be linked is not trusted, and
not bought. J columns, G grid points.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp

from mixopt.fidelity import Ladder
from mixopt.mixture import Array

from . import gp
from .initial import BLOCK_SHARE

logger = logging.getLogger(__name__)

GRID = np.linspace(-2.0, 3.5, 23)  # atanh of the link: -0.96 to 0.998
COLUMN_SPREAD = 0.4  # of columns around their common link, in atanh
WHOLE_SPREAD = 0.8  # of the objective's link around that of its columns: what they have in common may be shared less
DOUBT, DOUBT_MODE, DOUBT_SPREAD = 0.2, -0.6, 0.8  # share of the prior, in atanh, of rungs that mislead
ENOUGH_TARGETS = 3  # runs at the target before a link is judged; two hardly tell a slope from noise
NUM_STRATA = 5
ALLOWANCE = 0.15  # target runs' worth of cheap runs per target run that may be bought on trust


@dataclass(frozen=True, eq=False)
class Link:
    """What is believed of one rung's link to the target, in a typical column.

    Attributes:
        mean: Posterior mean, in (-1, 1).
        low: 0.05 quantile.
        high: 0.95 quantile.
    """

    mean: float
    low: float
    high: float

    @property
    def proven(self) -> bool:
        """Whether the interval leaves 0 out."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True, eq=False)
class Pooled:
    """What J columns together know of a rung's links to the target.

    Attributes:
        means: (J,) posterior mean links.
        typical: The link of a typical column.
        strata: (W, J) mean links if the common one lies in each of W equally probable ranges, lowest first.
    """

    means: Array
    typical: Link
    strata: Array


def measure(posterior: gp.Posterior, rung: int) -> Array:
    """Return (G,) log evidences of a column for each link of a rung; flat where rows say nothing."""
    rungs = posterior.rows[:, -2].long()
    target = posterior.kernel.layout.num_rungs - 1
    if not bool((rungs == rung).any()) or not bool((rungs == target).any()):
        return np.zeros(len(GRID))
    links = posterior.kernel.value("link").repeat(len(GRID), 1)
    links[:, rung] = torch.tensor(np.tanh(GRID))
    return np.array([posterior.with_links(link).log_evidence() for link in links])


def pool(evidences: Sequence[Array], whole: Array | None = None) -> Pooled:
    """Learn the links of one rung from J columns and, if it is given, from their objective.

    Args:
        evidences: J arrays (G,), from `measure`.
        whole: (G,) likewise of the objective's own values, or None.
    """
    columns, shown = np.stack(list(evidences)), np.tanh(GRID)
    near = _normal(GRID[:, None], GRID, COLUMN_SPREAD)  # log N(u; m): (m, u)
    about = logsumexp(columns[:, None] + near, axis=-1)  # (J, m)
    common = np.exp(_normalized(about.sum(0) + _prior()))
    # A column's link given m: what the others say of m, carried over, times its own evidence.
    given = np.exp(columns[:, None] + near - about[..., None])  # (J, m, u), each row a density over u
    means, strata = given @ shown @ common, _strata(common) @ (given @ shown).T
    if whole is None:
        return Pooled(means, _link(common), strata)
    with np.errstate(divide="ignore"):  # what many columns rule out has probability 0
        about_whole = np.log(common)
    total = np.exp(_normalized(logsumexp(about_whole[:, None] + _normal(GRID[:, None], GRID, WHOLE_SPREAD), 0) + whole))
    typical, caps = _link(total), _strata(total) @ shown
    return Pooled(np.minimum(means, typical.mean), typical, np.minimum(strata, caps[:, None]))


def unproven(
    ladder: Ladder, links: Sequence[Link], *, spent: Sequence[float], targets: int, trusted: bool
) -> dict[str, str]:
    """Return {rung: why, in words} of the cheap rungs that should not be bought for now.

    A rung must show that it knows something of the target: the interval of its link must
    not hold 0. Before there are target runs enough to tell, it has an allowance.

    Args:
        ladder: R rungs.
        links: What is believed of the R - 1 cheap ones.
        spent: (R,) charges of the runs of each rung so far, in target runs.
        targets: Number of target runs measured.
        trusted: Whether a predictor vouches for the ladder, so that no allowance is kept.
    """
    reasons = {}
    for rung, link, charge in zip(ladder, links, spent, strict=False):
        about = f"its correlation with the target is {link.mean:.2f} ({link.low:.2f} to {link.high:.2f})"
        if targets >= ENOUGH_TARGETS and charge and not link.proven:
            reasons[rung.name] = f"{rung.name} is not bought: {about}, perhaps none"
        elif targets < ENOUGH_TARGETS and not trusted and charge >= BLOCK_SHARE + ALLOWANCE * (1 + targets):
            reasons[rung.name] = f"{rung.name} is not bought before more is known: {about}"
    for reason in reasons.values():
        logger.info("rung dropped: %s", reason)
    return reasons


def _prior() -> Array:
    """Return the (G,) log prior of a common link: most rungs know much of the target, some mislead."""
    usual = _normal(GRID, gp.LINK_MODE, gp.LINK_SPREAD) + np.log(1 - DOUBT)
    return np.asarray(np.logaddexp(usual, _normal(GRID, DOUBT_MODE, DOUBT_SPREAD) + np.log(DOUBT)))


def _link(density: Array) -> Link:
    reached = np.cumsum(density)
    low, high = (float(np.tanh(GRID[np.searchsorted(reached, level)])) for level in (0.05, 0.95))
    return Link(float(density @ np.tanh(GRID)), low, high)


def _strata(density: Array) -> Array:
    """Cut a (G,) density into (NUM_STRATA, G) densities of equal mass, lowest first."""
    edges = np.concatenate([[0.0], np.cumsum(density)])
    cuts = np.linspace(0, edges[-1], NUM_STRATA + 1)
    shares = np.minimum(edges[1:], cuts[1:, None]) - np.maximum(edges[:-1], cuts[:-1, None])
    return np.asarray(np.maximum(shares, 0) * NUM_STRATA / edges[-1])


def _normal(x: Array, mean: Array | float, spread: float) -> Array:
    density = -0.5 * ((x - mean) / spread) ** 2
    return np.asarray(density - logsumexp(density, axis=-1, keepdims=True))


def _normalized(log_density: Array) -> Array:
    return np.asarray(log_density - logsumexp(log_density))
