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
ENOUGH_TARGETS = 3  # runs at the target before a link is judged; two hardly tell a slope from noise
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


def measure(posterior: gp.Posterior, rung: int) -> Array:
    """Return (G,) log evidences of a column for each link of a rung; flat where rows say nothing."""
    rungs = posterior.rows[:, -2].long()
    target = posterior.kernel.layout.num_rungs - 1
    if not bool((rungs == rung).any()) or not bool((rungs == target).any()):
        return np.zeros(len(GRID))
    links = posterior.kernel.value("link").repeat(len(GRID), 1)
    links[:, rung] = torch.tensor(np.tanh(GRID))
    return np.array([posterior.with_links(link).log_evidence() for link in links])


def pool(evidences: Sequence[Array]) -> tuple[Array, Link]:
    """Return (J,) posterior mean links of the columns, and what a typical column's is.

    Args:
        evidences: J arrays (G,), from `measure`.
    """
    columns = np.stack(list(evidences))
    near = _normal(GRID[:, None], GRID, COLUMN_SPREAD)  # log N(u; m): (m, u)
    prior = _normal(GRID, gp.LINK_MODE, gp.LINK_SPREAD)
    about = logsumexp(columns[:, None] + near, axis=-1)  # (J, m)
    total = about.sum(0) + prior
    means = [
        _mean(np.exp(_normalized(_carry(total - own, near) + column)))
        for own, column in zip(about, columns, strict=True)
    ]
    common = np.exp(_normalized(total))
    reached = np.cumsum(common)
    low, high = (float(np.tanh(GRID[np.searchsorted(reached, level)])) for level in (0.05, 0.95))
    return np.array(means), Link(_mean(common), low, high)


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


def _carry(log_common: Array, near: Array) -> Array:
    """Return the (G,) log density of one column's link given a density of the common one."""
    return np.asarray(logsumexp(_normalized(log_common)[:, None] + near, axis=0))


def _normal(x: Array, mean: Array | float, spread: float) -> Array:
    density = -0.5 * ((x - mean) / spread) ** 2
    return np.asarray(density - logsumexp(density, axis=-1, keepdims=True))


def _normalized(log_density: Array) -> Array:
    return np.asarray(log_density - logsumexp(log_density))


def _mean(density: Array) -> float:
    return float(density @ np.tanh(GRID))
