"""How strongly mixture weights should follow the prefix, fitted on a few trained mixtures.

The temper and the cap of the prefix posterior are chosen from a grid by how well the
ensemble, shifted per column, predicts runs that the shift has not seen. Plain MDE is on
the grid and keeps its place unless another is clearly better.

    M mixtures with measured losses, K domains, J columns, G tempers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import PLAIN, Temper
from .errors import MixtureError
from .mde import MDE
from .mixture import Array

GRID = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Tempers to try: an untempered posterior decides for one expert within a few tokens (METHODS 1.4)."""

FEWEST_RUNS = 4
"""With fewer, the error of the difference of two tempers cannot be told."""

_CLEARLY = 2.0  # standard errors of the paired difference


@dataclass(frozen=True, eq=False)
class TemperFit:
    """A chosen temper, and what it was chosen from.

    Attributes:
        temper: The choice.
        tempers: G tempers that were tried, plain MDE first.
        errors: (G,) root mean squared error of runs left out of the shift, nats per token.
    """

    temper: Temper
    tempers: tuple[Temper, ...]
    errors: Array


def fit_temper(
    mde: MDE,
    weights: Array,
    losses: Array,
    columns: Sequence[str],
    *,
    taus: Sequence[float] = GRID,
    caps: Sequence[float] = (np.inf,),
) -> TemperFit:
    """Choose temper and cap by leave-one-out error after a fitted shift per column.

    Another than plain MDE is chosen only if runs' errors are smaller by two standard errors
    of their difference, and of these the one with the smallest squared error.

    Args:
        mde: The ensemble; its own temper does not matter.
        weights: (M, K) mixtures that were trained.
        losses: (M, J) their losses, nats per token; NaN where a column was not measured.
        columns: J columns, `loss/<set>`.
        taus: Tempers to try; 0 is always among them.
        caps: Caps to try with each of them, nats.

    Returns:
        The choice; plain MDE with fewer than 4 runs.

    Raises:
        MixtureError: If the shapes do not agree, or a column is no loss.
    """
    tempers = (PLAIN, *(Temper(tau, cap) for tau in taus if tau > 0 for cap in caps))
    scores = [name for name in columns if not name.startswith("loss/")]
    if scores or np.shape(losses) != (len(weights), len(columns)):
        raise MixtureError(
            f"expected ({len(weights)}, {len(columns)}) measured losses, got shape {np.shape(losses)} of "
            f"{', '.join(columns)}; give losses only, one row per mixture"
        )
    known = np.isfinite(losses)
    rows, used = known.any(axis=1), np.flatnonzero(known.any(axis=0))
    names, measured = [columns[int(j)] for j in used], np.asarray(losses)[np.ix_(rows, used)]
    if not len(measured):
        return TemperFit(PLAIN, tempers, np.full(len(tempers), np.nan))
    errors_GM = np.stack([_left_out(measured - mde.with_temper(t).predict(weights[rows], names)) for t in tempers])
    rms = np.sqrt(errors_GM.mean(axis=1))
    clear = _clearly_better(errors_GM)
    best = int(np.where(clear, rms, np.inf).argmin()) if clear.any() else 0
    return TemperFit(tempers[best], tempers, rms)


def _clearly_better(errors_GM: Array) -> NDArray[np.bool_]:
    """Return (G,) whether errors are smaller than those of the first by two standard errors."""
    num = errors_GM.shape[1]
    if num < FEWEST_RUNS:
        return np.zeros(len(errors_GM), dtype=bool)
    # Roots, because a square lets one run decide.
    gains_GM = np.sqrt(errors_GM[0]) - np.sqrt(errors_GM)
    return np.asarray(gains_GM.mean(axis=1) > _CLEARLY * gains_GM.std(axis=1, ddof=1) / np.sqrt(num))


def _left_out(residuals_MJ: Array) -> Array:
    """Return (M,) mean squared residuals after a shift per column fitted to the other runs."""
    counts_J = np.isfinite(residuals_MJ).sum(axis=0)
    centered_MJ = residuals_MJ - np.nanmean(residuals_MJ, axis=0)
    # Leaving a run out of a mean of n moves its residual by the factor n / (n - 1).
    factors_J = counts_J / np.maximum(counts_J - 1, 1)
    return np.asarray(np.nanmean((centered_MJ * factors_J) ** 2, axis=1))
